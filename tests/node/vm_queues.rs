//! `networkInterfaceMultiqueue`: a guest's NIC has a queue pair per vCPU, and packets pass on each of them.

use std::fs;
use std::path::PathBuf;

use e2e::{eventually, output};

use crate::vm_node::{BOOT, Node};
use crate::vm_on_vhost_user::{daemon, link_is};

const NAME: &str = "vm1";
const ADDRESS: &str = "10.10.10.14";

impl Node {
    /// An example with two vCPUs and as many queue pairs; `cpu` is what it says of its vCPUs.
    fn multiqueue(&self, name: &str, cpu: &str) -> PathBuf {
        let path = self.manifest(name);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(cpu) && text.contains("devices:\n"), "{text}");
        let text = text.replace(cpu, "cores: 2");
        let text = text.replace("devices:\n", "devices:\n          networkInterfaceMultiqueue: true\n");
        fs::write(&path, text).unwrap();
        path
    }

    /// How often each of the guest's receive queues has interrupted it.
    fn interrupts(&self, address: &str) -> Vec<u64> {
        let table = self.in_guest(address, "cat /proc/interrupts");
        let lines = table.lines().filter(|line| line.contains("-input."));
        lines
            .map(|line| line.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).sum())
            .collect()
    }

    /// The guest has two pairs, and what it sends by one is answered on it.
    fn both_pairs_work(&self, name: &str, address: &str) {
        let interface = &self.launcher.status(name)["status"]["interfaces"][0];
        assert_eq!(interface["queueCount"], 2, "{interface}");
        let channels = self.in_guest(address, "ethtool -l eth0");
        let combined: Vec<_> = channels.lines().filter(|line| line.starts_with("Combined:")).collect();
        assert_eq!(combined, ["Combined:\t2", "Combined:\t2"], "{channels}");
        assert_eq!(self.in_guest(address, "ls /sys/class/net/eth0/queues | grep -c rx").trim(), "2");
        for queue in 0..2 {
            let before = self.interrupts(address);
            assert_eq!(before.len(), 2, "{before:?}");
            // The CPU that sends chooses the pair.
            let mask = 1 << queue;
            self.in_guest(address, &format!("taskset {mask} ping -c 20 -i 0.05 -W 10 10.10.10.1"));
            let after = self.interrupts(address);
            assert!(after[queue] >= before[queue] + 10, "pair {queue}: {before:?}, then {after:?}");
        }
    }
}

#[test]
fn every_vcpu_has_a_queue_pair_of_its_own() {
    let node = Node::new();
    let before = node.before();
    node.up_as(NAME, &node.multiqueue("vm1.yaml", "cores: 1"), &[]);
    node.reach(NAME, ADDRESS);
    node.both_pairs_work(NAME, ADDRESS);

    // The guest gives a pair back: what came on it comes on the other. Then it takes it again, many times.
    node.in_guest(ADDRESS, "ethtool -L eth0 combined 1 && taskset 2 ping -c 3 -W 10 10.10.10.1");
    let often = "for pairs in 2 1 2 1 2 1 2 1 2; do ethtool -L eth0 combined $pairs || exit 1; done";
    node.in_guest(ADDRESS, often);
    node.both_pairs_work(NAME, ADDRESS);

    let vmm = node.launcher.vmm(NAME);
    output(&mut node.key.login(&node.client, ADDRESS, "reboot"));
    eventually("another VMM", BOOT, || node.launcher.vmm(NAME).filter(|now| Some(*now) != vmm));
    node.reach(NAME, ADDRESS);
    node.both_pairs_work(NAME, ADDRESS);
    node.launcher.run("down", &[NAME]);
    before.assert_unchanged();
}

/// How often the guest has kicked each of its transmit queues.
fn kicks(node: &Node, address: &str) -> Vec<u64> {
    let table = node.in_guest(address, "ethtool -S eth0");
    let counts = table.lines().filter_map(|line| line.trim().split_once(": "));
    // "tx0_kicks: 5"; "tx_kicks" is the sum.
    let queue = |name: &str| name.strip_prefix("tx")?.strip_suffix("_kicks")?.parse::<usize>().ok();
    let counts = counts.filter(|(name, _)| queue(name).is_some());
    let kicks: Vec<_> = counts.filter_map(|(_, count)| count.parse().ok()).collect();
    assert_eq!(kicks.len(), 2, "{table}");
    kicks
}

/// The guest sends by either of its queues, and is answered.
fn sends_by_both(node: &Node, name: &str, address: &str) {
    let interface = &node.launcher.status(name)["status"]["interfaces"][0];
    assert_eq!(interface["queueCount"], 2, "{interface}");
    for queue in 0..2 {
        let before = kicks(node, address);
        // The CPU that sends chooses the queue. A backend that is busy wants few kicks.
        let mask = 1 << queue;
        let pings = node.in_guest(address, &format!("taskset {mask} ping -c 20 -i 0.05 -W 10 10.10.10.1"));
        assert!(pings.contains("20 packets received"), "{pings}");
        let after = kicks(node, address);
        assert!(after[queue] > before[queue], "queue {queue}: {before:?}, then {after:?}");
    }
}

#[test]
fn a_backend_serves_every_queue_pair_of_its_guest() {
    const FAST: &str = "fast1";
    const FAST_ADDRESS: &str = "10.10.10.16";
    let node = Node::new();
    node.client.sh("ethtool -K eth0 tx off");
    let before = node.before();
    let mut backend = daemon();
    let manifest = node.multiqueue("vm-vhostuser.yaml", "cores: 2");
    let text = fs::read_to_string(&manifest).unwrap();
    let several = text.replace(r#"{"type": "vhost-user"}"#, r#"{"type": "vhost-user", "queues": 2}"#);
    assert_ne!(several, text);
    fs::write(&manifest, several).unwrap();
    node.up_as(FAST, &manifest, &[]);
    node.reach(FAST, FAST_ADDRESS);
    sends_by_both(&node, FAST, FAST_ADDRESS);
    node.in_guest(FAST_ADDRESS, "ethtool -L eth0 combined 1 && taskset 2 ping -c 3 -W 10 10.10.10.1");
    node.in_guest(FAST_ADDRESS, "ethtool -L eth0 combined 2");
    sends_by_both(&node, FAST, FAST_ADDRESS);

    backend.child().kill().unwrap();
    backend.child().wait().unwrap();
    link_is(&node, "down");
    let backend = daemon();
    link_is(&node, "up");
    node.reach(FAST, FAST_ADDRESS);
    sends_by_both(&node, FAST, FAST_ADDRESS);

    let vmm = node.launcher.vmm(FAST);
    output(&mut node.key.login(&node.client, FAST_ADDRESS, "reboot"));
    eventually("another VMM", BOOT, || node.launcher.vmm(FAST).filter(|now| Some(*now) != vmm));
    node.reach(FAST, FAST_ADDRESS);
    sends_by_both(&node, FAST, FAST_ADDRESS);
    node.launcher.run("down", &[FAST]);
    drop(backend);
    before.assert_unchanged();
}
