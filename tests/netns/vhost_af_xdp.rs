//! A guest on a NIC by AF_XDP: it is reached from the wire, the host keeps what is its own, and nothing stays behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{Namespace, Sandbox, binary, eventually, output, sh};

use crate::vhost_guests::{Guest, await_socket, backend};
use crate::vhost_steering::{Wire, frame, label, start};

/// Somebody on the wire.
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const MAC: &str = "02:00:00:00:00:07";

/// `nic` here is wired to `wire` in a namespace, which has 192.0.2.9.
pub(crate) fn wired() -> Namespace {
    let peer = Namespace::new("wire");
    sh(&format!("ip link add nic type veth peer name wire netns {}", peer.name()));
    sh("ip link set nic up");
    peer.sh("ip addr add 192.0.2.9/24 dev wire");
    peer.sh("ip link set wire up");
    peer
}

/// A guest that answers ARP and pings for any address.
pub(crate) fn guest(directory: &Path, socket: &Path) -> Guest {
    let port = format!("path={},queue_size=256,mac={MAC}", socket.display());
    let mut guest = Guest::start(directory, "guest.log", "icmpecho", &[port]);
    guest.say("start");
    guest.received(1);
    guest
}

pub(crate) fn link(socket: &Path, nic: &str) -> String {
    format!("vhost-user:{},{nic}", socket.display())
}

#[test]
fn a_killed_backend_leaves_no_program_and_starts_again_at_once() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let peer = wired();
    for _ in 0..3 {
        let backend = backend(&[&link(&socket, "af_xdp:nic")]);
        await_socket(&socket);
        let _guest = guest(directory.path(), &socket);
        peer.sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
        assert!(sh("ip link show nic").contains("xdp"));
        // By SIGKILL; the next is started at once.
        drop(backend);
        std::fs::remove_file(&socket).unwrap();
    }
    let clean = || (!sh("ip link show nic").contains("xdp")).then_some(());
    eventually("the kernel has taken the program off", Duration::from_secs(5), clean);
}

#[test]
fn a_link_that_goes_down_and_up_again_goes_on() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let peer = wired();
    let _backend = backend(&[&link(&socket, "af_xdp:nic")]);
    await_socket(&socket);
    let _guest = guest(directory.path(), &socket);
    for end in ["nic", "wire"] {
        peer.sh("ping -c 1 -w 20 192.0.2.2");
        let set = |state: &str| {
            let line = format!("ip link set {end} {state}");
            if end == "nic" { sh(&line) } else { peer.sh(&line) }
        };
        set("down");
        set("up");
        peer.sh("ping -c 1 -w 20 192.0.2.2");
    }
}

/// A tap in a bridge of its own, whose frames the backend sends by `nic`; its peer `wire` is in another bridge.
struct Road {
    from: Wire,
    to: Wire,
    _sandbox: Sandbox,
}

impl Road {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (from, to) = (Wire::at_bridge("guest"), Wire::at_bridge("far"));
        sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        sh("ip link set tap0 up master guest");
        sh("ip link add nic type veth peer name wire");
        sh("ip link set wire up master far");
        sh("ip link set nic up");
        Self { from, to, _sandbox: sandbox }
    }

    /// The label of the next frame that arrives.
    fn next(&self) -> u8 {
        let arrived = eventually("the next frame arrives", Duration::from_secs(20), || self.to.next());
        label(&arrived).unwrap()
    }
}

#[test]
fn the_end_of_a_burst_is_sent_when_a_nic_that_was_busy_is_not() {
    let road = Road::new();
    // It holds what waits to be sent on, more of which the socket's own limit does not let out.
    sh("tc qdisc add dev far-look root tbf rate 4mbit burst 5000 limit 2000000");
    let (_backend, _) = start("af_xdp:nic");
    for label in 0..=250 {
        let mut bytes = frame(label, PEER, None);
        bytes.resize(1400, 0x5a);
        road.from.send(0, &bytes);
    }
    for label in 0..=250 {
        assert_eq!(road.next(), label);
    }
}

#[test]
fn frames_that_are_not_the_guests_stay_with_the_host() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let peer = wired();
    sh("ip addr add 192.0.2.1/24 dev nic");
    let _backend = backend(&[&link(&socket, &format!("af_xdp:nic?mac={MAC}"))]);
    await_socket(&socket);
    let _guest = guest(directory.path(), &socket);
    peer.sh("ping -c 3 -i 0.2 -w 20 192.0.2.1");
    // ARP stays with the host, so the guest is known by its address.
    peer.sh(&format!("ip neigh add 192.0.2.2 lladdr {MAC} dev wire"));
    peer.sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
}

#[test]
fn a_nic_that_is_taken_or_absent_is_named() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let _peer = wired();
    let socket = |name: &str| directory.path().join(name);
    let _backend = backend(&[&link(&socket("a"), "af_xdp:nic")]);
    await_socket(&socket("a"));
    let refusal = |nic: &str| {
        let mut command = Command::new(binary("vhost-net-backend"));
        let output = output(command.args(["--link", &link(&socket("b"), nic)]));
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let taken = refusal("af_xdp:nic");
    assert!(taken.contains("nic has an XDP program of somebody else"), "{taken}");
    let absent = refusal("af_xdp:nix");
    assert!(absent.contains("there is no interface nix"), "{absent}");
    sh("ip link add other type veth peer name rehto");
    let queue = refusal("af_xdp:other:5");
    assert!(queue.contains("other has no queue 5"), "{queue}");
}
