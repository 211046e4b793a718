//! `cnv-bridge` is the gateway of a network with a VLAN in that VLAN, and takes everything away with its last pod.

use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, at_once, output, sh};
use serde_json::{Value, json};

fn attach(pod: &Namespace, more: Value) -> CniCall {
    let ranges = json!([[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]);
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "isDefaultGateway": true,
        "preserveDefaultVlan": false, "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": ranges},
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", "/usr/lib/cni")
}

fn pings(from: &Namespace, to: &str, seconds: u8) -> bool {
    let wait = seconds.to_string();
    output(from.command("ping").args(["-c", "1", "-W", &wait, to])).status.success()
}

fn bridge_that_was_there() {
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
}

#[test]
fn pods_reach_the_gateway_of_their_vlan_and_the_last_takes_it_away() {
    let _sandbox = Sandbox::enter();
    bridge_that_was_there();
    let pods = [0, 1, 2].map(|_| Namespace::new("pod"));
    let before = Snapshot::take(&[]);
    let calls = [&pods[0], &pods[1]].map(|pod| attach(pod, json!({"vlan": 100})));
    let results = calls.each_ref().map(|call| call.call("ADD").success());
    let gateway = &results[0]["interfaces"][3];
    assert!(gateway["name"] == "br1.100" && gateway.get("sandbox").is_none(), "{}", results[0]);
    for address in ["192.0.2.1", "2001:db8::1", "192.0.2.3"] {
        assert!(pings(&pods[0], address, 30), "{address}");
    }
    // In another VLAN the same address is somebody else's.
    let other = json!({
        "vlan": 200, "name": "other", "isDefaultGateway": false,
        "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50"}]]},
    });
    let other = attach(&pods[2], other);
    other.call("ADD").success();
    assert!(!pings(&pods[2], "192.0.2.1", 2), "VLAN 200 reached the gateway of VLAN 100");
    other.call("DEL").success();

    let check = calls[0].clone().with("prevResult", results[0].clone());
    check.call("CHECK").success();
    for (change, restore, message) in [
        ("ip link set br1.100 down", "ip link set br1.100 up", "state of br1.100 is down"),
        (
            "bridge vlan del dev br1 vid 100 self",
            "bridge vlan add dev br1 vid 100 self",
            "VLANs of br1 is without 100",
        ),
        (
            "ip address del 192.0.2.1/24 dev br1.100",
            "ip address add 192.0.2.1/24 dev br1.100",
            "gateway's address 192.0.2.1/24 on br1.100 is absent",
        ),
    ] {
        sh(change);
        let (code, text) = check.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        sh(restore);
        if change.contains("down") {
            // The kernel takes IPv6 addresses away with the state.
            sh("ip address add 2001:db8::1/64 dev br1.100 nodad");
        }
        check.call("CHECK").success();
    }
    calls[0].call("DEL").success();
    assert!(pings(&pods[1], "192.0.2.1", 30), "the gateway went with the first pod");
    calls[1].call("DEL").success();
    calls[1].call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn the_gateway_stays_for_the_pod_that_comes_as_the_last_goes() {
    let _sandbox = Sandbox::enter();
    bridge_that_was_there();
    let pods = [0, 1].map(|_| Namespace::new("pod"));
    let before = Snapshot::take(&[]);
    let [a, b] = pods.each_ref().map(|pod| attach(pod, json!({"vlan": 100})));
    a.call("ADD").success();
    for (goes, comes) in [(&a, &b), (&b, &a)].into_iter().cycle().take(10) {
        let (_, result) = at_once(|| goes.call("DEL").success(), || comes.call("ADD").success());
        comes.clone().with("prevResult", result).call("CHECK").success();
    }
    b.call("ADD").success();
    at_once(|| a.call("DEL").success(), || b.call("DEL").success());
    before.assert_unchanged();
}

#[test]
fn what_a_crash_left_of_a_gateway_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    bridge_that_was_there();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = attach(&pod, json!({"vlan": 100}));
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert!(crashes >= 18, "one crash for each change that ADD makes, but there were {crashes}");
    call.cut_off_del(|| before.assert_unchanged());
}

#[test]
fn the_bridge_itself_is_the_gateway_of_its_default_vlan() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    // This one is the network's own: it comes and goes with the pod.
    let call = attach(&pod, json!({"vlan": 1}));
    call.call("ADD").success();
    assert!(pings(&pod, "192.0.2.1", 30));
    assert!(!Path::new("/sys/class/net/br1.1").exists());
    call.call("DEL").success();
    let call = attach(&pod, json!({"vlan": 100}));
    call.call("ADD").success();
    assert!(pings(&pod, "192.0.2.1", 30));
    call.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn a_gateway_s_name_that_something_else_has_is_refused() {
    let _sandbox = Sandbox::enter();
    bridge_that_was_there();
    sh("ip link add br1.100 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let (code, text) = attach(&pod, json!({"vlan": 100})).call("ADD").error();
    assert!(code == 109 && text.contains("br1.100 is no gateway of the bridge's VLAN but bridge"), "{text}");
    before.assert_unchanged();
}
