//! `vm-launcher up` to `down` with real guests on a bridge's VLAN, as the manual's examples have it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use e2e::{eventually, output, run};

use crate::vm_node::{BOOT, Node, end};

#[test]
fn two_vms_are_up_seen_and_gone_without_a_trace() {
    let node = Node::new();
    let before = node.before();
    node.up("vm1");
    node.up("vm2");
    node.reach("vm1", "10.10.10.14");
    node.reach("vm2", "10.10.10.15");
    node.becomes("vm1", "vm1's address is seen", |v4| v4 == ["10.10.10.14"]);
    node.becomes("vm2", "vm2's address is seen", |v4| v4 == ["10.10.10.15"]);
    let list = node.launcher.run("list", &[]);
    assert!(list.contains("Running  True   bridge-net=10.10.10.14"), "{list}");
    run(&mut node.key.login(&node.client, "10.10.10.14", "ping -c 1 -W 10 10.10.10.15"));

    // An address appears in the guest; then the old one goes. The status follows both.
    run(&mut node.key.login(&node.client, "10.10.10.14", "ip address add 10.10.10.24/25 dev eth0"));
    run(node.client.command("ping").args(["-c", "1", "-W", "10", "10.10.10.24"]));
    node.becomes("vm1", "both addresses are seen", |v4| v4 == ["10.10.10.24", "10.10.10.14"]);
    run(&mut node.key.login(&node.client, "10.10.10.24", "ip address del 10.10.10.14/24 dev eth0"));
    node.becomes("vm1", "the old address is gone", |v4| v4 == ["10.10.10.24"]);

    let down = node.launcher.run("down", &["vm1"]);
    assert_eq!(down, "default/vm1: down\n");
    assert_eq!(node.launcher.run("down", &["vm1"]), "default/vm1: is not there\n");
    node.launcher.run("down", &["vm2"]);
    before.assert_unchanged();
}

#[test]
fn a_killed_vmm_is_seen_and_its_guest_runs_again() {
    let node = Node::new();
    let before = node.before();
    node.up("vm1");
    node.reach("vm1", "10.10.10.14");
    let uid = node.launcher.status("vm1")["metadata"]["uid"].clone();
    let vmm = node.launcher.vmm("vm1").unwrap();
    end(vmm, Signal::SIGKILL);
    eventually("another instance runs", BOOT, || {
        let status = node.launcher.status("vm1");
        (status["metadata"]["uid"] != uid && status["status"]["phase"] == "Running").then_some(())
    });
    assert_ne!(node.launcher.vmm("vm1").unwrap(), vmm);
    assert_eq!(node.launcher.addresses("vm1"), [] as [String; 0], "the new guest has shown nothing yet");
    node.reach("vm1", "10.10.10.14");
    // A reboot from inside is the same instance in a new VMM.
    let uid = node.launcher.status("vm1")["metadata"]["uid"].clone();
    let vmm = node.launcher.vmm("vm1");
    output(&mut node.key.login(&node.client, "10.10.10.14", "reboot"));
    eventually("another VMM", BOOT, || node.launcher.vmm("vm1").filter(|now| Some(*now) != vmm));
    node.reach("vm1", "10.10.10.14");
    assert_eq!(node.launcher.status("vm1")["metadata"]["uid"], uid);
    node.launcher.run("down", &["vm1", "--now"]);
    before.assert_unchanged();
}

#[test]
fn a_killed_supervisor_takes_the_guest_along_and_gc_the_rest() {
    let node = Node::new();
    let before = node.before();
    for clean in ["gc", "up", "down"] {
        node.up("vm1");
        let vmm = node.launcher.vmm("vm1").unwrap();
        end(node.launcher.supervisor("vm1"), Signal::SIGKILL);
        eventually("the VMM dies too", BOOT, || kill(Pid::from_raw(vmm), None).err());
        let list = node.launcher.run("list", &[]);
        assert!(list.contains("Failed"), "{list}");
        match clean {
            "gc" => assert_eq!(node.launcher.run("gc", &[]), "default/vm1: removed\n"),
            "up" => {
                node.up("vm1");
                node.launcher.run("down", &["vm1", "--now"]);
            }
            _ => assert_eq!(node.launcher.run("down", &["vm1"]), "default/vm1: down\n"),
        }
        before.assert_unchanged();
    }
}

#[test]
fn a_second_vm_of_the_same_name_disturbs_nothing() {
    let node = Node::new();
    node.up("vm1");
    let (supervisor, vmm) = (node.launcher.supervisor("vm1"), node.launcher.vmm("vm1"));
    let up = output(&mut node.up_command(&node.manifest("vm1.yaml"), &[]));
    assert!(!up.status.success());
    let message = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(
        message.contains(&format!("VM default/vm1 is there already: process {supervisor} runs it")),
        "{message}"
    );
    assert_eq!((node.launcher.supervisor("vm1"), node.launcher.vmm("vm1")), (supervisor, vmm));
    node.launcher.run("down", &["vm1", "--now"]);
}
