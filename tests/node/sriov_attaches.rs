//! `sriov` puts a VF into a pod as its network asks, and gives it back as it was.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::{Namespace, eventually, sh};
use serde_json::{Value, json};

use crate::sriov_nic::{JOURNAL, Nic, has_carrier, pings};

#[test]
fn vlans_separate_vfs_and_join_them() {
    let nic = Nic::with_vfs(3);
    let before = nic.state();
    let pods: Vec<_> = [(1, 100), (2, 100), (3, 200)]
        .into_iter()
        .map(|(number, vlan)| {
            let pod = Namespace::new("pod");
            let mac = format!("02:00:00:00:00:0{number}");
            let call = nic.call(number - 1, json!({"vlan": vlan, "runtimeConfig": {"mac": mac}}));
            let call = call.netns(&pod).container(&format!("c{number}"));
            let result = call.call("ADD").success();
            assert_eq!(result["interfaces"][0]["mac"], mac.as_str());
            pod.sh(&format!("ip address add 192.0.2.{number}/24 dev net1"));
            has_carrier(&pod);
            (pod, call.with("prevResult", result))
        })
        .collect();
    assert!(pings(&pods[0].0, "192.0.2.2"), "one VLAN");
    assert!(!pings(&pods[0].0, "192.0.2.3"), "VLAN 100 reached VLAN 200");
    assert!(!pings(&pods[2].0, "192.0.2.1"), "VLAN 200 reached VLAN 100");
    for (_, call) in &pods {
        call.call("CHECK").success();
        call.call("DEL").success();
    }
    assert_eq!(nic.state(), before);
}

#[test]
fn every_attribute_is_set_and_reported_in_every_version() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let more = json!({
        "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1q", "mac": "02:00:00:00:00:01", "spoofchk": "off",
        "trust": "on", "max_tx_rate": 100, "link_state": "auto",
    });
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::new("pod");
        let call = nic.call(0, more.clone()).netns(&pod).with("cniVersion", version.into());
        let result = call.call("ADD").success();
        assert_eq!(result["cniVersion"], version);
        if version == "1.1.0" {
            let expected = json!({
                "name": "net1", "mac": "02:00:00:00:00:01", "mtu": 1500, "pciID": nic.vf(0),
                "sandbox": pod.path(),
            });
            assert_eq!(result["interfaces"], json!([expected]));
        }
        let info = nic.vf_info(0);
        assert_eq!(info["address"], "02:00:00:00:00:01");
        assert_eq!(info["vlan_list"], json!([{"vlan": 100, "qos": 3}]));
        assert_eq!(info["rate"], json!({"max_tx": 100, "min_tx": 0}));
        assert_eq!((&info["spoofchk"], &info["trust"]), (&json!(false), &json!(true)));
        call.call("DEL").success();
        assert_eq!(nic.state(), before, "{version}");
    }
}

#[test]
fn addresses_come_from_ipam_and_go_with_del() {
    let nic = Nic::with_vfs(2);
    let before = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let pods: Vec<_> = [1, 2]
        .into_iter()
        .map(|number| {
            ipam_plugin(folder.path(), &format!("ipam{number}"), &format!("192.0.2.{number}/24"), &log);
            let pod = Namespace::new("pod");
            let call = nic.call(number - 1, json!({"ipam": {"type": format!("ipam{number}")}}));
            let call = call.netns(&pod).container(&format!("c{number}")).var("CNI_PATH", folder.path());
            let result = call.call("ADD").success();
            let address = format!("192.0.2.{number}/24");
            assert_eq!(result["ips"][0]["address"], address.as_str());
            assert_eq!(result["ips"][0]["interface"], 0);
            assert!(pod.sh("ip route").contains("198.51.100.0/24 via 192.0.2.254"));
            (pod, call.with("prevResult", result))
        })
        .collect();
    has_carrier(&pods[0].0);
    has_carrier(&pods[1].0);
    assert!(pings(&pods[0].0, "192.0.2.2"));
    pods[0].1.call("CHECK").success();
    pods[0].0.sh("ip address del 192.0.2.1/24 dev net1");
    let (code, message) = pods[0].1.call("CHECK").error();
    assert!(code == 105 && message.contains("192.0.2.1/24 is absent"), "{code} {message}");
    for (_, call) in &pods {
        call.call("DEL").success();
    }
    assert_eq!(nic.state(), before);
    let calls = fs::read_to_string(&log).unwrap();
    assert_eq!(calls, "ADD c1 net1\nADD c2 net1\nCHECK c1 net1\nCHECK c1 net1\nDEL c1 net1\nDEL c2 net1\n");
}

#[test]
fn a_pods_interface_tells_its_neighbours_and_keeps_its_name_on_the_node() {
    let nic = Nic::with_vfs(2);
    let before = nic.state();
    let neighbour = Namespace::new("neighbour");
    let other = nic.call(0, json!({"vlan": 100})).netns(&neighbour).container("other");
    other.call("ADD").success();
    neighbour.sh("ip address add 192.0.2.2/24 dev net1");
    neighbour.sh("sysctl -q -w net.ipv4.conf.net1.arp_accept=1");
    has_carrier(&neighbour);

    let folder = tempfile::tempdir().unwrap();
    ipam_plugin(folder.path(), "ipam1", "192.0.2.1/24", &folder.path().join("log"));
    let name = nic.vf_link(1).unwrap();
    let pod = Namespace::new("pod");
    let more = json!({"vlan": 100, "mac": "02:00:00:00:00:01", "ipam": {"type": "ipam1"}});
    let call = nic.call(1, more).netns(&pod).var("CNI_PATH", folder.path());
    call.call("ADD").success();
    let seen = eventually("the neighbour knows who has the address", Duration::from_secs(20), || {
        Some(neighbour.sh("ip neighbour show 192.0.2.1")).filter(|entry| !entry.is_empty())
    });
    assert!(seen.contains("lladdr 02:00:00:00:00:01"), "{seen}");
    assert!(pod.sh("ip link show net1").contains(&format!("altname {name}")));
    call.call("DEL").success();
    other.call("DEL").success();
    assert_eq!(nic.state(), before);
}

#[test]
fn a_failing_ipam_leaves_nothing() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\necho '{\"code\": 11, \"msg\": \"no address is free\"}'\nexit 1\n";
    executable(&folder.path().join("full"), script);
    let pod = Namespace::new("pod");
    let call = nic.call(0, json!({"vlan": 100, "ipam": {"type": "full"}})).netns(&pod);
    let (code, message) = call.var("CNI_PATH", folder.path()).call("ADD").error();
    assert!(code == 11 && message.contains("no address is free"), "{code} {message}");
    assert_eq!(nic.state(), before);
    assert_eq!(entries(), 0);

    // Nor does a configuration that was spoiled meanwhile keep the VF.
    let call = nic.call(0, json!({"vlan": 100})).netns(&pod);
    call.call("ADD").success();
    let (code, message) = call.with("ipam", 7.into()).call("DEL").error();
    assert!(code == 7 && message.contains("ipam: must be an object"), "{code} {message}");
    assert_eq!(nic.state(), before);
    assert_eq!(entries(), 0);
}

#[test]
fn check_names_what_is_not_as_add_made_it() {
    let nic = Nic::with_vfs(1);
    let pod = Namespace::new("pod");
    let more = json!({"vlan": 100, "mac": "02:00:00:00:00:01", "trust": "on"});
    let call = nic.call(0, more).netns(&pod);
    let unattached = call.call("CHECK").error();
    assert!(unattached.0 == 105 && unattached.1.contains("not attached"), "{unattached:?}");
    let result = call.call("ADD").success();
    let call = call.with("prevResult", result);
    call.call("CHECK").success();
    let link = &nic.link;
    for (change, restore, message) in [
        (
            format!("ip link set {link} vf 0 vlan 101"),
            format!("ip link set {link} vf 0 vlan 100"),
            "vlan 101 qos 0, expected vlan 100 qos 0",
        ),
        (
            format!("ip link set {link} vf 0 trust off"),
            format!("ip link set {link} vf 0 trust on"),
            "trust off, expected trust on",
        ),
    ] {
        sh(&change);
        let found = call.call("CHECK").error();
        assert!(found.0 == 105 && found.1.contains(message), "{found:?}");
        sh(&restore);
        call.call("CHECK").success();
    }
    pod.sh("ip link set net1 down");
    assert!(call.call("CHECK").error().1.contains("state of net1 is down"));
}

#[test]
fn status_tells_whether_there_are_vfs() {
    let nic = Nic::bare();
    let config = json!({"cniVersion": "1.1.0", "name": "blue", "type": "sriov"});
    let call = e2e::CniCall::new("sriov", config);
    assert_eq!(call.call("STATUS").error().0, 50);
    drop(nic);
    let _nic = Nic::with_vfs(1);
    assert_eq!(call.call("STATUS").success(), Value::Null);
}

/// An IPAM plugin that hands out one address and logs its calls.
fn ipam_plugin(folder: &Path, name: &str, address: &str, log: &Path) {
    let result = json!({
        "cniVersion": "1.1.0", "ips": [{"address": address, "gateway": "192.0.2.254"}],
        "routes": [{"dst": "198.51.100.0/24"}],
    });
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME >> {}\n[ $CNI_COMMAND != ADD ] || echo '{result}'\n",
        log.display()
    );
    executable(&folder.join(name), &script);
}

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// How many VFs the journal has.
fn entries() -> usize {
    let entries = fs::read_dir(JOURNAL).unwrap().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}
