//! Whatever happens between ADD and DEL, a VF comes back as it was, and only to whom it belongs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use e2e::{CniCall, Namespace, binary, eventually, run, sh};
use netlink::Netlink;
use serde_json::{Value, json};

use crate::sriov_nic::{JOURNAL, Nic};

/// A network that sets all that this NIC can.
fn all() -> Value {
    json!({"vlan": 100, "vlanQoS": 2, "mac": "02:00:00:00:00:01", "spoofchk": "off", "trust": "on", "max_tx_rate": 50})
}

fn journal(address: &str) -> PathBuf {
    PathBuf::from(format!("{JOURNAL}/{address}.json"))
}

/// One VF with a vfio driver.
fn vfio() -> Nic {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    nic
}

/// Cuts ADD off after each of its changes, as SIGKILL does, and lets DEL clear away; how many there are.
fn crashes_of_add(nic: &Nic, more: &Value) -> usize {
    let before = nic.state();
    let mut crashes = 0;
    loop {
        let pod = Namespace::new("pod");
        let call = nic.call(0, more.clone()).netns(&pod);
        let crashing = call.clone().var("GUESTWIRE_CRASH_AFTER", (crashes + 1).to_string());
        if crashing.call("ADD").code == Some(0) {
            call.call("DEL").success();
            break;
        }
        crashes += 1;
        assert!(crashes < 50, "the crashes never end");
        // A pod that failed is often gone before its DEL comes.
        let gone = crashes % 2 == 0;
        if gone {
            drop(pod);
            call.without("CNI_NETNS").call("DEL").success();
        } else {
            call.call("DEL").success();
        }
        assert_eq!(nic.state(), before, "after crash {crashes}");
        assert!(!journal(&nic.vf(0)).exists());
    }
    assert_eq!(nic.state(), before);
    crashes
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    assert_eq!(crashes_of_add(&Nic::with_vfs(1), &all()), 12, "one crash for each change that ADD makes");
}

#[test]
fn what_a_crash_left_of_a_vf_with_a_vfio_driver_is_gone_after_del() {
    let file = Path::new("/var/run/k8s.cni.cncf.io/devinfo/cni/default-blue-crash.json");
    let mut more = all();
    more["runtimeConfig"] = json!({"CNIDeviceInfoFile": file});
    assert_eq!(crashes_of_add(&vfio(), &more), 8, "five attributes, a file, and the journal twice");
    assert!(!file.exists());
}

/// Cuts DEL off after each of its changes, and lets the next finish; how many there are.
fn crashes_of_del(nic: &Nic) -> usize {
    let before = nic.state();
    let mut crashes = 0;
    loop {
        let pod = Namespace::new("pod");
        let call = nic.call(0, all()).netns(&pod);
        call.call("ADD").success();
        let crashing = call.clone().var("GUESTWIRE_CRASH_AFTER", (crashes + 1).to_string());
        let done = crashing.call("DEL").code == Some(0);
        call.call("DEL").success();
        assert_eq!(nic.state(), before, "after crash {crashes}");
        if done {
            return crashes;
        }
        crashes += 1;
        assert!(crashes < 50, "the crashes never end");
    }
}

#[test]
fn a_del_that_is_cut_off_anywhere_is_finished_by_the_next() {
    let crashes = crashes_of_del(&Nic::with_vfs(1));
    assert!(crashes >= 8, "{crashes}");
    let crashes = crashes_of_del(&vfio());
    assert!(crashes >= 5, "{crashes}");
}

#[test]
fn an_add_after_a_crash_needs_no_del() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let pod = Namespace::new("pod");
    let call = nic.call(0, all()).netns(&pod);
    assert_ne!(call.clone().var("GUESTWIRE_CRASH_AFTER", "6").call("ADD").code, Some(0));
    call.call("ADD").success();
    call.call("CHECK").success();
    call.call("DEL").success();
    assert_eq!(nic.state(), before);
}

#[test]
fn a_late_del_leaves_the_next_owner_alone() {
    let nic = Nic::with_vfs(1);
    let (first_pod, second_pod) = (Namespace::new("pod"), Namespace::new("pod"));
    let first = nic.call(0, all()).netns(&first_pod).container("first");
    let second = nic.call(0, all()).netns(&second_pod).container("second");
    first.call("ADD").success();
    let (code, message) = second.call("ADD").error();
    assert!(code == 123 && message.contains("interface net1 of container first"), "{code} {message}");
    first.call("DEL").success();
    let result = second.call("ADD").success();
    let taken = nic.state();
    for _ in 0..2 {
        first.call("DEL").success();
        first.clone().without("CNI_NETNS").call("DEL").success();
        assert_eq!(nic.state(), taken);
        second.clone().with("prevResult", result.clone()).call("CHECK").success();
    }
}

#[test]
fn a_vf_whose_pod_vanished_goes_to_the_next() {
    let nic = Nic::with_vfs(2);
    let before = nic.state();
    let gone = Namespace::new("pod");
    nic.call(0, all()).netns(&gone).container("gone").call("ADD").success();
    drop(gone);
    let pod = Namespace::new("pod");
    let call = nic.call(0, all()).netns(&pod).container("next");
    call.call("ADD").success();
    call.call("DEL").success();
    assert_eq!(nic.state(), before);

    // The address that the vanished pod had may be wanted on another VF.
    let gone = Namespace::new("pod");
    nic.call(0, all()).netns(&gone).container("gone").call("ADD").success();
    drop(gone);
    let call = nic.call(1, all()).netns(&pod).container("next");
    call.call("ADD").success();
    call.call("DEL").success();
    assert_eq!(nic.state(), before);
}

#[test]
fn an_interface_that_was_renamed_or_moved_is_found() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let (pod, elsewhere) = (Namespace::new("pod"), Namespace::new("elsewhere"));
    let call = nic.call(0, all()).netns(&pod);
    call.call("ADD").success();
    pod.sh("ip link set net1 down");
    pod.sh("ip link set net1 name other");
    pod.sh("ip link set other mtu 1400");
    call.call("DEL").success();
    assert_eq!(nic.state(), before);

    call.call("ADD").success();
    pod.sh(&format!("ip link set net1 netns {}", elsewhere.name()));
    // Whose cached configuration is lost asks without the device.
    call.clone().with("deviceID", Value::Null).call("DEL").success();
    assert_eq!(nic.state(), before);

    let name = nic.vf_link(0).unwrap();
    call.call("ADD").success();
    sh(&format!("ip link add {name} type veth peer name peer"));
    call.call("DEL").success();
    assert_eq!(nic.vf_link(0).unwrap(), format!("vf{}", nic.vf(0).replace([':', '.'], "")));
    sh(&format!("ip link del {name}"));
}

#[test]
fn an_alternative_name_that_udev_gives_meanwhile_is_not_in_the_way() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let name = nic.vf_link(0).unwrap();
    for _ in 0..5 {
        let pod = Namespace::new("pod");
        let call = nic.call(0, all()).netns(&pod);
        call.call("ADD").success();
        drop(pod);
        let index = eventually("the VF's interface is on the host", Duration::from_secs(60), || {
            fs::read_to_string(format!("/sys/class/net/{}/ifindex", nic.vf_link(0)?)).ok()
        });
        run(Command::new("udevadm").args(["settle", "--timeout=60"]));
        // As udev does, but as often and as soon as DEL gives it the chance; six names are in its way at most.
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let host = Netlink::open().unwrap();
                let mut given = 0;
                while given < 6 && !released.load(Relaxed) {
                    given += u32::from(host.add_alt_name(index.trim().parse().unwrap(), &name).is_ok());
                }
            });
            let answer = call.without("CNI_NETNS").call("DEL");
            released.store(true, Relaxed);
            answer.success();
        });
        assert_eq!(nic.state(), before);
    }
}

#[test]
fn a_reboot_leaves_nothing_to_undo() {
    let nic = Nic::with_vfs(1);
    let pod = Namespace::new("pod");
    let call = nic.call(0, all()).netns(&pod);
    call.call("ADD").success();
    let file = journal(&nic.vf(0));
    let written = fs::read_to_string(&file).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let of_another_boot = written.replace(boot.trim(), "00000000-0000-4000-8000-000000000000");
    assert_ne!(written, of_another_boot);

    let fresh = Nic::with_vfs(1);
    fs::create_dir_all(JOURNAL).unwrap();
    let before = fresh.state();
    fs::write(&file, &of_another_boot).unwrap();
    call.clone().without("CNI_NETNS").call("DEL").success();
    assert!(!file.exists());
    assert_eq!(fresh.state(), before);

    fs::write(&file, &of_another_boot).unwrap();
    let next = nic.call(0, all()).netns(&pod).container("next");
    next.call("ADD").success();
    next.call("DEL").success();
    assert_eq!(fresh.state(), before);
}

#[test]
fn gc_takes_back_what_is_in_no_valid_list() {
    let nic = Nic::with_vfs(3);
    let before = nic.state();
    let pods: Vec<_> = (0..3)
        .map(|index| {
            let pod = Namespace::new("pod");
            let call = nic.call(index, json!({"vlan": 100})).netns(&pod).container(&format!("c{index}"));
            let call = if index == 2 { call.with("name", "red".into()) } else { call };
            call.call("ADD").success();
            pod
        })
        .collect();
    let gc = |valid: Value| {
        let config = json!({"cniVersion": "1.1.0", "name": "blue", "type": "sriov", "cni.dev/valid-attachments": valid});
        CniCall::new("sriov", config).call("GC").success();
    };
    gc(json!([{"containerID": "c0", "ifname": "net1"}]));
    assert!(nic.vf_link(0).is_none(), "valid");
    assert_eq!(nic.state()[3 + 1], before[3 + 1], "gone");
    assert!(nic.vf_link(2).is_none(), "another network's");
    gc(json!([]));
    assert_eq!(nic.state()[3], before[3]);
    drop(pods);
}

#[test]
fn a_corrupt_journal_is_set_aside_and_reported() {
    let nic = Nic::with_vfs(1);
    let pod = Namespace::new("pod");
    let call = nic.call(0, json!({})).netns(&pod);
    fs::create_dir_all(JOURNAL).unwrap();
    for verb in ["ADD", "DEL"] {
        fs::write(journal(&nic.vf(0)), "{\"version\": 1, \"owner\"").unwrap();
        let (code, message) = call.call(verb).error();
        assert!(code == 127 && message.contains("is corrupt; it is now"), "{verb}: {code} {message}");
        call.call(verb).success();
    }
    let aside = fs::read_dir(JOURNAL).unwrap().flatten();
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains(".corrupt-"));
    assert_eq!(aside.count(), 2);
    let shown = run(Command::new(binary("sriov")).arg("status"));
    assert!(shown.contains(&format!("corrupt journal: {JOURNAL}/{}.corrupt-1\n", nic.vf(0))), "{shown}");
}

#[test]
fn fifty_adds_at_once_share_no_vf() {
    const VFS: usize = 7;
    let nic = Nic::with_vfs(VFS);
    let before = nic.state();
    let pods: Vec<_> = (0..50).map(|_| Namespace::new("pod")).collect();
    let calls: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            nic.call(number % VFS, json!({"vlan": 100})).netns(pod).container(&format!("c{number}"))
        })
        .collect();
    let answers: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.call("ADD"))).collect();
        running.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let mut winners = Vec::new();
    for (number, answer) in answers.into_iter().enumerate() {
        if answer.code == Some(0) {
            assert!(pods[number].sh("ip -d link show net1").contains(&nic.vf(number % VFS)));
            winners.push(number);
        } else {
            assert_eq!(answer.error().0, 123);
        }
    }
    let mut taken: Vec<_> = winners.iter().map(|number| number % VFS).collect();
    taken.sort_unstable();
    assert_eq!(taken, (0..VFS).collect::<Vec<_>>(), "each VF has one owner");
    for number in winners {
        calls[number].call("DEL").success();
    }
    assert_eq!(nic.state(), before);
}

#[test]
fn two_vfs_never_have_one_address() {
    let nic = Nic::with_vfs(2);
    let before = nic.state();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    for _ in 0..5 {
        let calls: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(index, pod)| nic.call(index, all()).netns(pod).container(&format!("c{index}")))
            .collect();
        let codes: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = calls.iter().map(|call| scope.spawn(|| call.call("ADD"))).collect();
            running
                .into_iter()
                .map(|add| add.join().unwrap())
                .map(|answer| match answer.code {
                    Some(0) => 0,
                    _ => answer.error().0,
                })
                .collect()
        });
        assert!(codes == [0, 124] || codes == [124, 0], "{codes:?}");
        for call in &calls {
            call.call("DEL").success();
        }
        assert_eq!(nic.state(), before);
    }
}
