//! Any two kinds of end may be joined, whichever side of a guest's socket listens. The pairs that are not here are in the other
//! files of the backend: two guests, a guest with a tap or a NIC, a NIC or a tap with a tap.

use std::path::Path;
use std::time::Duration;

use e2e::{Sandbox, eventually, sh};

use crate::vhost_af_xdp::wired;
use crate::vhost_guests::{Guest, await_socket, backend, tap_of_host};
use crate::vhost_steering::{Wire, frame};

const LIMIT: Duration = Duration::from_secs(20);
const MAC: &str = "02:00:00:00:00:07";

/// A guest that answers ARP and pings, and whose VMM listens at `socket`. It waits for the backend before it begins.
fn listening(directory: &Path, name: &str, socket: &Path) -> Guest {
    let port = format!("path={},server=1,queue_size=256,mac={MAC}", socket.display());
    let mut guest = Guest::start(directory, name, "icmpecho", &[port]);
    guest.say("start");
    guest.received(1);
    guest
}

#[test]
fn a_nic_and_a_nic() {
    let _sandbox = Sandbox::enter();
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    let wires = ["one", "two"].map(|name| Wire::new(name, 2));
    let _backend = backend(&["af_xdp:one:0-1,af_xdp:two"]);
    eventually("both are attached", LIMIT, || {
        ["one", "two"].iter().all(|name| sh(&format!("ip link show {name}")).contains("xdp")).then_some(())
    });
    let arrives = |from: usize, queue: usize, label: u8| {
        let sent = frame(label, [2, 0, 0, 0, 0, 8], Some(5));
        let arrived = eventually("the frame is on the other side", LIMIT, || {
            wires[from].send(queue, &sent);
            wires[1 - from].next()
        });
        assert_eq!(arrived, sent);
        while wires[1 - from].next().is_some() {}
    };
    for (from, queue, label) in [(0, 0, 1), (0, 1, 2), (1, 0, 3)] {
        arrives(from, queue, label);
    }
}

/// A guest whose VMM listens is reached through the other end, also after either side was killed.
fn whoever_is_killed(other: &str, ping: impl Fn(&str) -> String) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let link = format!("vhost-user:{}?client,{other}", socket.display());
    let mut daemon = backend(&[&link]);
    for life in ["first.log", "second.log"] {
        let _guest = listening(directory.path(), life, &socket);
        ping("ping -c 3 -i 0.2 -w 20 192.0.2.2");
        drop(daemon);
        daemon = backend(&[&link]);
        ping("ping -c 3 -i 0.2 -w 20 192.0.2.2");
        // The VMM is killed and leaves its socket.
        std::fs::remove_file(&socket).unwrap();
    }
}

#[test]
fn a_guest_whose_vmm_listens_and_a_tap_whoever_is_killed() {
    let _sandbox = Sandbox::enter();
    tap_of_host();
    whoever_is_killed("tap:tap0", sh);
}

#[test]
fn a_guest_whose_vmm_listens_and_a_nic_whoever_is_killed() {
    let _sandbox = Sandbox::enter();
    let peer = wired();
    whoever_is_killed("af_xdp:nic", |command| peer.sh(command));
}

#[test]
fn a_guest_whose_vmm_listens_and_one_whose_vmm_connects() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let [listens, connects] = ["a", "b"].map(|name| directory.path().join(name));
    let _backend =
        backend(&[&format!("vhost-user:{}?client,vhost-user:{}", listens.display(), connects.display())]);
    await_socket(&connects);
    let ports = [
        format!("path={},server=1,queue_size=256", listens.display()),
        format!("path={},queue_size=256", connects.display()),
    ];
    let mut guest = Guest::start(directory.path(), "guest.log", "flowgen", &ports);
    guest.say("start");
    guest.await_frames(2, 1000);
}
