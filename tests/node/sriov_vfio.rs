//! A VF with a vfio driver stays on the host for a VMM; `sriov` sets it up and says where it is.

use std::fs;
use std::path::Path;

use e2e::{CniCall, Namespace, sh};
use serde_json::{Value, json};

use crate::sriov_nic::Nic;

#[test]
fn a_vfio_vf_is_set_up_and_comes_back() {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    let before = nic.state();
    let pod = Namespace::new("pod");
    let more = json!({"vlan": 100, "trust": "on", "runtimeConfig": {"mac": "02:00:00:00:00:01"}});
    let call = nic.call(0, more).netns(&pod);
    let result = call.call("ADD").success();
    let expected = json!({
        "name": "net1", "mac": "02:00:00:00:00:01", "pciID": nic.vf(0), "sandbox": pod.path(),
    });
    assert_eq!(result["interfaces"], json!([expected]));
    assert_eq!(nic.vf_info(0)["address"], "02:00:00:00:00:01");
    assert_eq!(nic.vf_info(0)["vlan_list"], json!([{"vlan": 100}]));
    assert!(!pod.sh("ip link").contains("net1"));
    call.clone().with("prevResult", result).call("CHECK").success();
    let other_pod = Namespace::new("pod");
    let other = nic.call(0, json!({})).netns(&other_pod).container("other");
    assert_eq!(other.call("ADD").error().0, 123);
    drop(pod);
    call.without("CNI_NETNS").call("DEL").success();
    assert_eq!(nic.state(), before);
}

#[test]
fn the_device_info_file_is_written_once_and_goes_with_del() {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    let folder = Path::new("/var/run/k8s.cni.cncf.io/devinfo/cni");
    let file = folder.join("default-blue-device.json");
    let pod = Namespace::new("pod");
    let call = nic.call(0, json!({"runtimeConfig": {"CNIDeviceInfoFile": file}})).netns(&pod);
    call.call("ADD").success();
    let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let pci = json!({"pci-address": nic.vf(0), "pf-pci-address": nic.address()});
    assert_eq!(written, json!({"type": "pci", "version": "1.1.0", "pci": pci}));
    call.call("DEL").success();
    assert!(!file.exists());

    let theirs = json!({"type": "pci", "version": "1.0.0", "pci": {"pci-address": nic.vf(0), "vendor": "x"}});
    fs::write(&file, theirs.to_string()).unwrap();
    call.call("ADD").success();
    call.call("DEL").success();
    assert_eq!(fs::read_to_string(&file).unwrap(), theirs.to_string(), "the device plugin's file");

    let wrong = json!({"type": "pci", "version": "1.0.0", "pci": {"pci-address": "0000:00:00.0"}});
    fs::write(&file, wrong.to_string()).unwrap();
    let (code, message) = call.call("ADD").error();
    assert!(code == 126 && message.contains("is about 0000:00:00.0"), "{code} {message}");
    fs::remove_file(&file).unwrap();
}

#[test]
fn check_and_gc_see_a_vfio_vf_as_any_other() {
    let nic = Nic::with_vfs(2);
    nic.bind_vfio(0);
    nic.bind_vfio(1);
    let before = nic.state();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let calls: Vec<_> = (0..2)
        .map(|index| {
            nic.call(index, json!({"vlan": 100})).netns(&pods[index]).container(&format!("c{index}"))
        })
        .collect();
    let results: Vec<_> = calls.iter().map(|call| call.call("ADD").success()).collect();
    assert_eq!(calls[0].call("STATUS").success(), Value::Null);
    sh(&format!("ip link set {} vf 0 vlan 101", nic.link));
    let (code, message) = calls[0].clone().with("prevResult", results[0].clone()).call("CHECK").error();
    assert!(code == 105 && message.contains("vlan 101 qos 0, expected vlan 100 qos 0"), "{code} {message}");

    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    let config = json!({
        "cniVersion": "1.1.0", "name": "blue", "type": "sriov", "cni.dev/valid-attachments": valid,
    });
    CniCall::new("sriov", config).call("GC").success();
    assert_eq!(nic.state()[0], before[0], "c0 is in no valid list");
    calls[1].clone().with("prevResult", results[1].clone()).call("CHECK").success();
    calls[1].call("DEL").success();
    assert_eq!(nic.state(), before);
}
