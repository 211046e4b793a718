//! `vhost-net-backend` runs with the capabilities that its guide names, and no others.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use e2e::{Daemon, Namespace, Sandbox, binary, output, sh};

use crate::vhost_af_xdp::{guest, link, wired};
use crate::vhost_guests::{Guest, await_socket};

/// The backend with one link, root without any capabilities but these (`+net_admin,+bpf`), and with this much memory to lock.
fn backend(capabilities: &str, locked: &str, link: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={locked}")).arg("setpriv");
    command.arg(format!("--bounding-set=-all{capabilities}")).arg(binary("vhost-net-backend"));
    command.args(["--link", link]);
    command
}

#[test]
fn guest_to_guest_needs_no_capability() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| directory.path().join(name));
    let ends = format!("vhost-user:{},vhost-user:{}", first.display(), second.display());
    let _backend = Daemon::start(&mut backend("", "0", &ends));
    await_socket(&second);
    let ports = [&first, &second].map(|socket| format!("path={},queue_size=256", socket.display()));
    let mut guest = Guest::start(directory.path(), "guest.log", "flowgen", &ports);
    guest.say("start");
    guest.await_frames(2, 1000);
}

#[test]
fn af_xdp_needs_three_capabilities_and_memory_to_lock() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let peer = wired();
    let ends = link(&socket, "af_xdp:nic");
    let needed = ["+net_admin", "+net_raw", "+bpf"];
    for missing in needed {
        let others: Vec<_> = needed.into_iter().filter(|capability| *capability != missing).collect();
        let refused = output(&mut backend(&format!(",{},+ipc_lock", others.join(",")), "0", &ends));
        let reason = String::from_utf8(refused.stderr).unwrap();
        assert!(
            !refused.status.success() && reason.contains("Operation not permitted"),
            "{missing}: {reason}"
        );
    }
    let needed = format!(",{}", needed.join(","));
    let refused = output(&mut backend(&needed, "0", &ends));
    let reason = String::from_utf8(refused.stderr).unwrap();
    assert!(reason.contains("16777216 bytes of locked memory"), "{reason}");
    let _backend = Daemon::start(&mut backend(&format!("{needed},+ipc_lock"), "0", &ends));
    await_socket(&socket);
    let _guest = guest(directory.path(), &socket);
    peer.sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
}

#[test]
fn a_tap_is_its_owners_without_any_capability_or_needs_one() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    // Outside of the folders of the one who builds.
    let program = directory.path().join("backend");
    std::fs::copy(binary("vhost-net-backend"), &program).unwrap();
    sh("ip tuntap add dev own0 mode tap vnet_hdr user 65534");
    sh("ip tuntap add dev root0 mode tap vnet_hdr user 0");
    let ends = |tap: &str| format!("vhost-user:{},tap:{tap}", directory.path().join(tap).display());
    let nobody = |tap: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]);
        command.arg(&program).args(["--link", &ends(tap)]);
        command
    };
    let _backend = Daemon::start(&mut nobody("own0"));
    await_socket(&directory.path().join("own0"));
    let reason = String::from_utf8(output(&mut nobody("root0")).stderr).unwrap();
    assert!(reason.contains("root0: Operation not permitted"), "{reason}");
    // Root without capabilities is its owner; of another's, it needs one.
    let _owner = Daemon::start(&mut backend("", "0", &ends("root0")));
    await_socket(&directory.path().join("root0"));
    sh("ip tuntap add dev other0 mode tap vnet_hdr user 65534");
    let reason = String::from_utf8(output(&mut backend("", "0", &ends("other0"))).stderr).unwrap();
    assert!(reason.contains("other0: Operation not permitted"), "{reason}");
    let _admin = Daemon::start(&mut backend(",+net_admin", "0", &ends("other0")));
    await_socket(&directory.path().join("other0"));
}

#[test]
fn another_network_namespace_needs_one_capability_more() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let there = Namespace::new("there");
    there.sh("ip tuntap add dev tap0 mode tap vnet_hdr user 0");
    let socket = directory.path().join("guest");
    let ends = format!("vhost-user:{},tap:tap0?netns={}", socket.display(), there.path().display());
    let reason = String::from_utf8(output(&mut backend(",+net_admin", "0", &ends)).stderr).unwrap();
    assert!(
        reason.contains("the network namespace of an end") && reason.contains("Operation not permitted"),
        "{reason}"
    );
    let _backend = Daemon::start(&mut backend(",+sys_admin", "0", &ends));
    await_socket(&socket);
}
