//! `vhost-net-backend` runs with the capabilities that its guide names, and no others.

use std::process::Command;

use e2e::{Daemon, Sandbox, binary, output};

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
