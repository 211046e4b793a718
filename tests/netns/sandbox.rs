//! The tests' own ground holds: nothing gets in or out of a sandbox, and a snapshot sees what changes.

use std::panic;
use std::path::Path;

use e2e::{Namespace, Sandbox, Snapshot, sh};

#[test]
fn a_sandbox_starts_with_a_loopback_and_nothing_else() {
    let _sandbox = Sandbox::enter();
    let links = sh("ip -oneline -brief link show");
    assert_eq!(links.lines().count(), 1, "{links}");
    assert!(links.starts_with("lo "), "{links}");
    assert_eq!(sh("ls /sys/class/net").trim(), "lo");
    assert_eq!(sh("ls -A /run"), "netns\n");
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn nothing_in_a_sandbox_writes_to_etc() {
    let _sandbox = Sandbox::enter();
    for path in ["/etc/resolv.conf", "/etc/made-by-a-test"] {
        let error = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{path}");
    }
    let replaced = std::fs::rename("/etc/resolv.conf", "/etc/resolv.conf.old");
    assert_eq!(replaced.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_link_between_two_namespaces_carries_packets() {
    let _sandbox = Sandbox::enter();
    let (client, server) = (Namespace::new("client"), Namespace::new("server"));
    sh(&format!("ip link add c netns {} type veth peer name s netns {}", client.name(), server.name()));
    client.sh("ip address add 192.0.2.1/24 dev c");
    server.sh("ip address add 192.0.2.2/24 dev s");
    client.sh("ip link set c up");
    server.sh("ip link set s up");
    client.sh("ping -c 1 -W 5 192.0.2.2");
}

#[test]
fn a_snapshot_of_an_unchanged_machine_is_the_same() {
    let _sandbox = Sandbox::enter();
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("a"), "1").unwrap();
    let before = Snapshot::take(&[files.path()]);
    {
        let pod = Namespace::new("pod");
        sh(&format!("ip link add v0 type veth peer name v1 netns {}", pod.name()));
        sh("ip link del v0");
    }
    before.assert_unchanged();
}

#[test]
fn a_snapshot_sees_whatever_is_left_behind() {
    let _sandbox = Sandbox::enter();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("a");
    std::fs::write(&file, "1").unwrap();
    let pod = Namespace::new("pod");
    for (leave, clean) in [
        ("ip link add left type bridge", "ip link del left"),
        ("ip address add 192.0.2.1/32 dev lo", "ip address del 192.0.2.1/32 dev lo"),
        ("nft add table bridge left", "nft delete table bridge left"),
        ("ip netns add left", "ip netns del left"),
    ] {
        assert_change_is_seen(files.path(), || drop(sh(leave)));
        sh(clean);
    }
    assert_change_is_seen(files.path(), || std::fs::write(&file, "2").unwrap());
    drop(pod);
}

#[track_caller]
fn assert_change_is_seen(files: &Path, change: impl FnOnce()) {
    let before = Snapshot::take(&[files]);
    change();
    let verdict = panic::catch_unwind(|| before.assert_unchanged());
    assert!(verdict.is_err(), "the change was not seen");
}
