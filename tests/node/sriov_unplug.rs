//! A VF leaves a guest that runs, is the node's again, and comes back, the same or another.

use std::fs;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use e2e::{Launcher, Namespace, SshKey, eventually, example, output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::sriov_guest::{BOOT, Story, pod, up};
use crate::sriov_nic::{Nic, pings};

const LIMIT: Duration = Duration::from_secs(60);

/// Types a line on the guest's console.
fn type_in(launcher: &Launcher, line: &str) {
    let mut command = launcher.command("console", &["vm-sriov"]);
    let mut console = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // Ctrl-] leaves.
    console.stdin.take().unwrap().write_all(format!("{line}\n\x1d").as_bytes()).unwrap();
    assert!(console.wait().unwrap().success());
}

/// Waits until the guest has said `text`, which is not in the line that it echoes.
fn says(launcher: &Launcher, line: &str, text: &str) {
    type_in(launcher, line);
    eventually(text, LIMIT, || launcher.console("vm-sriov").contains(text).then_some(()));
}

fn message(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the status shows of the guest's interfaces: name and address.
fn interfaces(launcher: &Launcher) -> Vec<(Value, Value)> {
    let status = launcher.status("vm-sriov");
    let interfaces = status["status"]["interfaces"].as_array().cloned().unwrap_or_default();
    interfaces.into_iter().map(|mut one| (one["name"].take(), one["mac"].take())).collect()
}

#[test]
fn a_vf_leaves_a_running_guest_and_another_comes() {
    let nic = Nic::with_vfs(3);
    nic.bind_vfio(0);
    nic.bind_vfio(1);
    let before = nic.state();
    let near = pod(&nic, 2, 100, "192.0.2.2/24");
    let with_pod = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let _story = Story(&launcher);
    let key = SshKey::generate(folder.path());
    let started = up(&launcher, folder.path(), &key, &[nic.vf(0), nic.vf(1)]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    eventually("the guest is ready", BOOT, || {
        launcher.console("vm-sriov").contains("guest ready: vm-sriov").then_some(())
    });
    assert!(pings(&near.0, "192.0.2.1"), "before");
    let there = [("fast".into(), "02:00:00:00:00:01".into())];
    assert_eq!(interfaces(&launcher), there);
    let unknown = message(&output(&mut launcher.command("unplug", &["vm-sriov", "slow"])));
    assert!(unknown.contains("there is no interface slow; there are: fast"), "{unknown}");
    assert!(launcher.run("plug", &["vm-sriov", "fast"]).contains("fast is plugged"), "it is already");

    assert_eq!(launcher.run("unplug", &["vm-sriov", "fast"]), "default/vm-sriov: fast is unplugged\n");
    assert_eq!(nic.state(), with_pod, "the VF is as it was before");
    assert_eq!(interfaces(&launcher), []);
    let shown = launcher.run("status", &["vm-sriov"]);
    assert!(shown.contains("Interface fast:") && shown.contains("unplugged"), "{shown}");
    says(&launcher, "echo left=$(ls /sys/class/net | wc -l)", "left=1");
    assert!(!pings(&near.0, "192.0.2.1"), "unplugged");
    assert!(launcher.run("unplug", &["vm-sriov", "fast"]).contains("fast is unplugged"), "it is already");

    // Somebody else has the first VF meanwhile.
    let other = Namespace::new("other");
    let taken = nic.call(0, json!({})).netns(&other).container("other");
    taken.call("ADD").success();
    let configure = "ip address add 192.0.2.1/24 dev eth0; ip link set eth0 up";
    for turn in ["second", "third"] {
        assert_eq!(launcher.run("plug", &["vm-sriov", "fast"]), "default/vm-sriov: fast is plugged\n");
        assert_eq!(interfaces(&launcher), there);
        assert_eq!(nic.vf_info(1)["vlan_list"], json!([{"vlan": 100}]));
        let there = format!(
            "until [ -e /sys/class/net/eth0 ]; do sleep 1; done; echo {turn}=$(cat /sys/class/net/eth0/address)"
        );
        says(&launcher, &there, &format!("{turn}=02:00:00:00:00:01"));
        says(
            &launcher,
            &format!("echo {turn}@$(readlink -f /sys/class/net/eth0/device)"),
            &format!("{turn}@/sys/devices/pci0000:00/0000:00:0c.0"),
        );
        says(&launcher, &format!("{configure}; echo up=${{?}}{turn}"), &format!("up=0{turn}"));
        let answers = || pings(&near.0, "192.0.2.1").then_some(());
        eventually("the guest answers by its new VF", LIMIT, answers);
        if turn == "second" {
            lets_go_late(&launcher);
        }
    }
    is_not_believed(&launcher, &nic.group_file(1));
    launcher.run("down", &["vm-sriov"]);
    taken.call("DEL").success();
    near.1.call("DEL").success();
    assert_eq!(nic.state(), before);
}

/// Unplugs from a guest that does not hear of it before whoever asked has given up, and then lets go.
fn lets_go_late(launcher: &Launcher) {
    let vmm = Pid::from_raw(launcher.vmm("vm-sriov").unwrap());
    kill(vmm, Signal::SIGSTOP).unwrap();
    let kept = message(&output(&mut launcher.command("unplug", &["vm-sriov", "fast"])));
    assert!(kept.contains("the guest has not let go of interface fast within 30 s"), "{kept}");
    assert_eq!(interfaces(launcher).len(), 1, "it has it still");
    kill(vmm, Signal::SIGCONT).unwrap();
    eventually("the wish is heard", LIMIT, || interfaces(launcher).is_empty().then_some(()));
}

/// Unplugs from a VMM that says it has closed the VF while its group is still open. Here this test has it open as well, by
/// the VMM's own descriptor, which nobody can tell from a VMM that lies. The VF is taken from it by its end.
fn is_not_believed(launcher: &Launcher, group: &Path) {
    let vmm = launcher.vmm("vm-sriov").unwrap();
    let _held = descriptor_of(vmm, group);
    launcher.run("unplug", &["vm-sriov", "fast"]);
    let told = "the VMM said that it had closed the device of interface fast, and has not";
    assert!(launcher.story().contains(told), "{}", launcher.story());
    assert_ne!(launcher.vmm("vm-sriov"), Some(vmm), "the liar is gone");
    assert_eq!(interfaces(launcher), []);
}

/// A copy of the descriptor by which a process has a file open.
fn descriptor_of(process: i32, file: &Path) -> OwnedFd {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten();
    let mut numbers =
        descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == file));
    let number = numbers.next().unwrap().file_name().to_str().unwrap().parse().unwrap();
    let process = rustix::process::Pid::from_raw(process).unwrap();
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_getfd(process, number, rustix::process::PidfdGetfdFlags::empty()).unwrap()
}

#[test]
fn a_guest_that_never_lets_go_is_waited_for_with_a_limit_and_loses_the_vf_at_its_end() {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    let before = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let _story = Story(&launcher);
    let key = SshKey::generate(folder.path());
    let manifest = example("vm-sriov.yaml", &key, folder.path());
    let pool = format!("openshift.io/nics={}", nic.vf(0));
    let started = launcher.up_halted(&manifest, &["--device-pool", &pool]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let attached = nic.state();
    for _ in 0..2 {
        let kept = message(&output(&mut launcher.command("unplug", &["vm-sriov", "fast"])));
        assert!(
            kept.contains("the guest has not let go of interface fast within 30 s, and still has it"),
            "{kept}"
        );
        assert_eq!(nic.state(), attached);
        assert_eq!(interfaces(&launcher).len(), 1);
    }
    let busy = message(&output(&mut launcher.command("plug", &["vm-sriov", "fast"])));
    assert!(busy.contains("interface fast is being plugged or unplugged"), "{busy}");

    kill(Pid::from_raw(launcher.vmm("vm-sriov").unwrap()), Signal::SIGKILL).unwrap();
    eventually("the VF is the node's again", LIMIT, || (nic.state() == before).then_some(()));
    assert_eq!(interfaces(&launcher), []);
    // The next guest runs without, until it is plugged; that needs no help of the guest's.
    eventually("the next guest has it", LIMIT, || {
        output(&mut launcher.command("plug", &["vm-sriov", "fast"])).status.success().then_some(())
    });
    assert_eq!(nic.state(), attached);
    launcher.run("down", &["vm-sriov", "--now"]);
    assert_eq!(nic.state(), before);
}
