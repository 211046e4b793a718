//! What a Linux guest leaves undone: segments that are large arrive whole where the other end takes them, and are cut up by
//! `vhost-net-backend` where it does not; and a guest's two queue pairs share the flows of a tap that has one queue.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use e2e::{Namespace, Sandbox, SshKey, output, run};
use serde_json::Value;

use crate::vhost_qemu::{BY_AF_XDP, BY_TAP, Network, all_is_negotiated, boot, serve, vm};

const LIMIT: Duration = Duration::from_secs(60);
/// A port on which nobody listens.
const CLOSED: u16 = 9;
/// Bytes that are sent each way.
const BYTES: usize = 2_000_000;
/// Connections; that all of them come by one queue of two is out of the question.
const FLOWS: usize = 32;

/// Counts what enters a namespace by an interface, as the interface hands it over: a large segment is one packet.
struct Entering<'n>(&'n Namespace);

impl<'n> Entering<'n> {
    fn new(namespace: &'n Namespace, interface: &str) -> Self {
        namespace.sh("nft add table netdev seen");
        let hook = format!("type filter hook ingress device {interface} priority 0");
        namespace.sh(&format!("nft add chain netdev seen entering {{ {hook} ; }}"));
        namespace.sh("nft add rule netdev seen entering tcp sport 22 counter");
        Self(namespace)
    }

    /// Packets of SSH.
    fn packets(&self) -> usize {
        let text = self.0.sh("nft --json list chain netdev seen entering");
        let list: Value = serde_json::from_str(&text).unwrap();
        let parts =
            list["nftables"].as_array().unwrap().iter().filter_map(|entry| entry["rule"]["expr"].as_array());
        let count = parts.flatten().find_map(|part| part["counter"]["packets"].as_u64());
        usize::try_from(count.unwrap_or_else(|| panic!("{text}"))).unwrap()
    }
}

/// A guest's NIC, and who is at the other end of its link.
struct Side<'n> {
    key: &'n SshKey,
    from: &'n Namespace,
    guest: &'static str,
    /// Its name in the guest.
    nic: &'static str,
}

impl Side<'_> {
    fn in_guest(&self, command: &str) -> String {
        run(&mut self.key.login(self.from, self.guest, command))
    }

    /// Bytes by TCP from the guest; says in how many packets.
    fn bytes_from_guest(&self, entering: &Entering<'_>) -> usize {
        let before = entering.packets();
        let sent = self.in_guest(&format!("head -c {BYTES} /dev/zero | cat"));
        assert_eq!(sent.len(), BYTES);
        entering.packets() - before
    }

    /// Bytes by TCP to the guest; says in how many packets its NIC has received them.
    fn bytes_to_guest(&self, folder: &Path) -> usize {
        let file = folder.join("zeros");
        std::fs::write(&file, vec![0; BYTES]).unwrap();
        let count = format!("cat /sys/class/net/{}/statistics/rx_packets", self.nic);
        let mut upload = self.key.login(self.from, self.guest, &format!("{count}; wc -c; {count}"));
        let told = upload.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let numbers: Vec<usize> = told.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(numbers[1], BYTES, "{told}");
        numbers[2] - numbers[0]
    }
}

/// How often each of the guest's queues was used: its interrupts where it receives, its kicks where it sends.
fn queues(side: &Side<'_>) -> [Vec<u64>; 2] {
    let nic = side.nic;
    let device = side.in_guest(&format!("basename $(readlink /sys/class/net/{nic}/device)"));
    let text = side.in_guest(&format!("ethtool -S {nic}; cat /proc/interrupts"));
    // "tx0_kicks: 5"; "26: 7 PCI-MSIX-0000:00:03.0 1-edge virtio1-input.0", of one CPU.
    let count = |name: String| {
        let line = text.lines().find(|line| line.split_whitespace().any(|word| word == name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing: {text}"));
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let device = device.trim();
    [
        (0..2).map(|queue| count(format!("{device}-input.{queue}"))).collect(),
        (0..2).map(|queue| count(format!("tx{queue}_kicks:"))).collect(),
    ]
}

/// Flows to and from the guest come on both its queue pairs, though the tap has one queue.
fn both_pairs_are_used(side: &Side<'_>) {
    side.in_guest(&format!("ethtool -L {} combined 2", side.nic));
    let before = queues(side);
    let address = SocketAddr::new(side.guest.parse().unwrap(), CLOSED);
    side.from
        .netns()
        .run(|| {
            for _ in 0..FLOWS {
                // The guest answers each with a reset.
                assert!(TcpStream::connect_timeout(&address, LIMIT).is_err(), "somebody listens there");
            }
        })
        .unwrap();
    let after = queues(side);
    for (way, (before, after)) in ["receives", "sends"].iter().zip(before.iter().zip(&after)) {
        let used: Vec<_> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        assert!(used.iter().all(|count| *count > 0), "the guest {way} by its queues {used:?}");
    }
}

#[test]
fn large_segments_of_linux_arrive_whole_or_cut_up_as_the_other_end_takes_them() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let network = Network::new();
    let sockets = ["a", "b"].map(|name| folder.path().join(name));
    let _daemon = serve(&network, &sockets);
    let key = SshKey::generate(folder.path());
    let [a, b] = &sockets;
    let _qemu = boot(folder.path(), &mut vm(folder.path(), [a, b], &key));
    all_is_negotiated(&key, &network.tap);
    let tap = Side { key: &key, from: &network.tap, guest: BY_TAP, nic: "eth0" };
    let wire = Side { key: &key, from: &network.wire, guest: BY_AF_XDP, nic: "eth1" };
    let entering = [Entering::new(&network.tap, "tap0"), Entering::new(&network.wire, "wire")];

    // By a tap they are whole: far fewer than there are segments of 1448 bytes.
    network.tap.sh("ip link set tap0 mtu 1500");
    let packets = tap.bytes_from_guest(&entering[0]);
    assert!(packets < BYTES / 2500, "{packets} packets of a guest");
    let packets = tap.bytes_to_guest(folder.path());
    assert!(packets < BYTES / 2500, "{packets} packets to a guest");
    // By AF_XDP each is a frame. What the guest left undone is counted as it left it.
    let handed_over = || -> usize {
        wire.in_guest("cat /sys/class/net/eth1/statistics/tx_packets").trim().parse().unwrap()
    };
    let before = handed_over();
    let packets = wire.bytes_from_guest(&entering[1]);
    assert!(packets > BYTES / 1500, "{packets} packets of a guest");
    let large = handed_over() - before;
    assert!(large < packets / 2, "{packets} packets of a guest, which sent {large}");

    both_pairs_are_used(&tap);
    assert!(output(network.tap.command("ping").args(["-c", "1", "-w", "30", BY_TAP])).status.success());
}
