//! A VM whose NIC is bound by `vhostuser`: up from a manifest, reached through vhost-net-backend, which may die.

use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, binary, eventually, output, run};

use crate::vm_node::{BOOT, Node};

const CONTROL: &str = "/run/guestwire/vhost.sock";
pub(crate) const NAME: &str = "fast1";
pub(crate) const ADDRESS: &str = "10.10.10.16";

pub(crate) fn ctl(what: &str) -> Command {
    let mut command = Command::new(binary("vhost-net-backend"));
    command.args(["ctl", what]);
    command
}

/// The daemon, which remembers its links.
pub(crate) fn daemon() -> Daemon {
    let mut command = Command::new(binary("vhost-net-backend"));
    let daemon = Daemon::start(command.args(["--control", CONTROL, "--state", "/run/guestwire/state"]));
    eventually("the daemon answers", Duration::from_secs(60), || {
        output(&mut ctl("list")).status.success().then_some(())
    });
    daemon
}

pub(crate) fn link_is(node: &Node, state: &str) {
    eventually(&format!("the link is {state}"), BOOT, || {
        (node.launcher.status(NAME)["status"]["interfaces"][0]["linkState"] == state).then_some(())
    });
}

/// Bytes through a TCP connection each way, counted where they arrive.
fn transfers(node: &Node) {
    const BYTES: &str = "4000000";
    let there = node.in_guest(ADDRESS, &format!("head -c {BYTES} /dev/zero | cat"));
    assert_eq!(there.len().to_string(), BYTES, "from the guest");
    let mut login = node.key.login(&node.client, ADDRESS, "wc -c");
    let zeros = node.folder.path().join("zeros");
    std::fs::write(&zeros, vec![0; 4_000_000]).unwrap();
    let counted = login.stdin(std::fs::File::open(zeros).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8(counted.stdout).unwrap().trim(), BYTES, "to the guest");
}

#[test]
fn a_guest_is_reached_through_a_backend_that_dies_and_comes_back() {
    let node = Node::new();
    // A finished checksum is what AF_XDP needs of the client's side.
    node.client.sh("ethtool -K eth0 tx off");
    let before = node.before();
    let mut backend = daemon();
    node.up_as(NAME, &node.manifest("vm-vhostuser.yaml"), &[]);
    node.reach(NAME, ADDRESS);
    link_is(&node, "up");
    node.becomes(NAME, "the address is seen by the backend", |v4| v4 == [ADDRESS]);
    assert_eq!(node.launcher.status(NAME)["status"]["interfaces"][0]["infoSource"], "domain, wire");
    transfers(&node);

    // Killed in the middle of a run: the guest sees its link go, then come.
    backend.child().kill().unwrap();
    backend.child().wait().unwrap();
    link_is(&node, "down");
    let backend = daemon();
    link_is(&node, "up");
    node.reach(NAME, ADDRESS);
    transfers(&node);
    let carrier = node.in_guest(ADDRESS, "cat /sys/class/net/eth0/carrier_changes");
    assert!(carrier.trim().parse::<u32>().unwrap() >= 2, "the link's changes that the guest saw: {carrier}");

    // A reboot from inside takes the rings back first, and hands over others.
    let vmm = node.launcher.vmm(NAME);
    output(&mut node.key.login(&node.client, ADDRESS, "reboot"));
    eventually("another VMM", BOOT, || node.launcher.vmm(NAME).filter(|now| Some(*now) != vmm));
    node.reach(NAME, ADDRESS);

    node.launcher.run("down", &[NAME]);
    let left = run(&mut ctl("list"));
    assert!(!left.contains("cni-"), "{left}");
    drop(backend);
    before.assert_unchanged();
}
