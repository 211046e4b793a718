//! Any two kinds of end may be joined, whichever side of a guest's socket listens. The pairs that are not here are in the other
//! files of the backend: two guests, a guest with a tap or a NIC, a NIC or a tap with a tap.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use e2e::{Namespace, Sandbox, eventually, sh};
use nix::sys::socket::{setsockopt, sockopt};

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

#[test]
fn a_row_of_datagrams_goes_whole_from_a_tap_to_a_tap_and_is_cut_up_behind_it() {
    let _sandbox = Sandbox::enter();
    let far = Namespace::new("far");
    for (line, address) in [("near", 1), ("far", 2)] {
        let lines = [
            format!("ip tuntap add dev {line} mode tap vnet_hdr"),
            format!("ip addr add 192.0.2.{address}/24 dev {line}"),
            format!("ip link set {line} up"),
        ];
        lines.iter().for_each(|line| drop(if address == 1 { sh(line) } else { far.sh(line) }));
    }
    far.sh("nft add table netdev seen");
    far.sh("nft add chain netdev seen entering { type filter hook ingress device far priority 0 ; }");
    far.sh("nft add rule netdev seen entering udp dport 9000 counter");
    let _backend = backend(&[&format!("tap:near,tap:far?netns={}", far.path().display())]);
    sh("ping -c 1 -w 20 192.0.2.2");

    let receiver = far.netns().run(|| UdpSocket::bind("192.0.2.2:9000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(LIMIT)).unwrap();
    let sender = UdpSocket::bind("192.0.2.1:0").unwrap();
    setsockopt(&sender, sockopt::UdpGsoSegment, &1000).unwrap();
    let sent: Vec<u8> = (0..4900_u16).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
    sender.send_to(&sent, "192.0.2.2:9000").unwrap();
    for datagram in sent.chunks(1000) {
        let mut bytes = [0; 2000];
        let length = receiver.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..length], *datagram);
    }
    let counted = far.sh("nft list chain netdev seen entering");
    assert!(counted.contains("packets 1 bytes"), "{counted}");
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
