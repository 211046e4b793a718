//! `sriov` refuses what it cannot do, says why, and has changed nothing then.

use std::fs;
use std::path::Path;

use e2e::{CniCall, Namespace, sh};
use serde_json::json;

use crate::sriov_nic::Nic;

#[test]
fn a_device_that_is_no_usable_vf_is_refused_with_the_repair() {
    let nic = Nic::with_vfs(2);
    let pod = Namespace::new("pod");
    let vf = nic.vf(1);
    let unbind = Path::new("/sys/bus/pci/drivers/igbvf/unbind");
    e2e::eventually("the network driver is ready", std::time::Duration::from_secs(60), || {
        unbind.exists().then_some(())
    });
    fs::write(unbind, &vf).unwrap();
    let before = nic.state();
    let call = nic.call(0, json!({})).netns(&pod);
    let table = [
        (call.clone().with("deviceID", nic.address().into()), 121, "is a physical function"),
        (call.clone().with("deviceID", "0000:00:00.0".into()), 121, "is not a virtual function"),
        (call.clone().with("deviceID", "0000:ff:1f.7".into()), 120, "there is no PCI device 0000:ff:1f.7"),
        (call.clone().with("deviceID", "eth0".into()), 7, "deviceID: \"eth0\" is not a PCI address"),
        (call.clone().with("deviceID", "".into()), 7, "deviceID is missing"),
        (call.clone().with("deviceID", vf.as_str().into()), 122, "has no driver"),
    ];
    for (call, code, message) in table {
        let error = call.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "expected {code} {message}, got {error:?}");
        assert_eq!(nic.state(), before);
    }
    let answer = nic.call(1, json!({})).netns(&pod).call("ADD");
    let hint = answer.json["details"].as_str().unwrap().to_owned();
    let repair = hint.split("echo ").nth(1).unwrap().split(" (").next().unwrap();
    let (address, file) = repair.split_once(" > ").unwrap();
    fs::write(file, address).unwrap();
    nic.call(1, json!({})).netns(&pod).call("ADD").success();
    nic.call(1, json!({})).netns(&pod).call("DEL").success();
}

#[test]
fn an_attribute_that_the_driver_cannot_do_is_named_and_all_is_rolled_back() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let pod = Namespace::new("pod");
    let rest = json!({"vlan": 100, "mac": "02:00:00:00:00:01", "trust": "on"});
    for (key, value, message) in [
        ("link_state", json!("enable"), "link_state enable"),
        ("vlanProto", json!("802.1ad"), "vlan 100 qos 0 802.1ad"),
        ("min_tx_rate", json!(10), "tx_rate min 10 max 0"),
        ("max_tx_rate", json!(4_000_000_000u64), "tx_rate min 0 max 4000000000"),
    ] {
        let (code, found) = nic.call(0, rest.clone()).with(key, value).netns(&pod).call("ADD").error();
        assert!(code == 125 && found.contains(message), "{code} {found}");
        assert_eq!(nic.state(), before, "{key}");
    }
}

#[test]
fn bad_values_are_refused_before_anything_is_touched() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let pod = Namespace::new("pod");
    pod.sh("ip link add taken type veth peer name peer");
    let call = nic.call(0, json!({})).netns(&pod);
    let pf_mac = fs::read_to_string(format!("/sys/class/net/{}/address", nic.link)).unwrap();
    let info = |path: &str| json!({"CNIDeviceInfoFile": path});
    let table: [(CniCall, u64, &str); 10] = [
        (call.clone().with("vlan", 4095.into()), 7, "vlan: is 4095, which IEEE 802.1Q reserves"),
        (call.clone().with("vlanQoS", 3.into()), 7, "vlanQoS: is 3 without a vlan"),
        (call.clone().with("spoofchk", true.into()), 7, "in quotes"),
        (
            call.clone().with("min_tx_rate", 9.into()).with("max_tx_rate", 5.into()),
            7,
            "more than max_tx_rate",
        ),
        (call.clone().with("mac", "01:00:5e:00:00:01".into()), 7, "allowed: unicast"),
        (call.clone().with("mac", pf_mac.trim().into()), 124, "the physical function"),
        (call.clone().with("runtimeConfig", info("/etc/passwd")), 126, "is not a .json file in"),
        (
            call.clone().with("runtimeConfig", info("/var/run/k8s.cni.cncf.io/devinfo/cni/../../x.json")),
            126,
            "is not a .json file in",
        ),
        (call.clone().ifname("taken"), 103, "has an interface taken already"),
        (call.clone().var("CNI_NETNS", "/run/netns/nowhere"), 3, "network namespace"),
    ];
    for (call, code, message) in table {
        let error = call.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "expected {code} {message}, got {error:?}");
        assert_eq!(nic.state(), before);
    }
}

#[test]
fn a_misspelt_key_is_warned_of() {
    let nic = Nic::with_vfs(1);
    let pod = Namespace::new("pod");
    let answer = nic.call(0, json!({"max-tx-rate": 10})).netns(&pod).call("ADD");
    assert!(answer.stderr.contains("did you mean \"max_tx_rate\"?"), "{}", answer.stderr);
    answer.success();
    nic.call(0, json!({})).netns(&pod).call("DEL").success();
}

#[test]
fn a_pf_that_is_down_is_warned_of() {
    let nic = Nic::with_vfs(1);
    let pod = Namespace::new("pod");
    sh(&format!("ip link set {} down", nic.link));
    let call = nic.call(0, json!({"vlan": 100})).netns(&pod);
    let answer = call.call("ADD");
    assert!(answer.stderr.contains("is down"), "{}", answer.stderr);
    answer.success();
    call.call("DEL").success();
}
