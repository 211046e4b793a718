//! `cnv-bridge` in the place of the reference plugin: pods, bridges and networks as they are found work as with it, or better.

use std::fs;
use std::process::Command;
use std::time::Duration;

use e2e::{CniCall, Daemon, Namespace, Sandbox, Snapshot, eventually, output, sh};
use serde_json::{Value, json};

use crate::cnv_bridge_ipam::{PLUGINS, answering};

const LIMIT: Duration = Duration::from_secs(20);

fn call(pod: &Namespace, more: Value) -> CniCall {
    let mut config = json!({"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", PLUGINS)
}

/// Has the test's own IPAM plugin assign these addresses.
fn assigning(addresses: &[&str]) {
    let ips: Vec<_> = addresses.iter().map(|address| json!({"address": address})).collect();
    answering(&json!({"cniVersion": "1.0.0", "ips": ips}).to_string());
}

fn pings(from: &Namespace, to: &str) -> bool {
    output(from.command("ping").args(["-c", "1", "-W", "20", to])).status.success()
}

#[test]
fn a_pod_whose_ipv6_is_switched_off_gets_its_addresses() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let off = |which: &str| fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").unwrap();
    pod.netns().run(|| ["all", "default"].map(off)).unwrap();
    assigning(&["192.0.2.9/24", "2001:db8::9/64"]);
    let call = call(&pod, json!({"isGateway": true, "ipam": {"type": "fixed"}}));
    let result = call.call("ADD").success();
    assert!(pings(&pod, "2001:db8::1") && pings(&pod, "2001:db8::9"));
    call.with("prevResult", result).call("CHECK").success();
}

#[test]
fn a_bridge_that_is_down_is_set_up_and_told_of_as_it_is_then() {
    let _sandbox = Sandbox::enter();
    // Without an address of its own it takes one of its ports'.
    sh("ip link add br1 type bridge");
    let pod = Namespace::new("pod");
    let call = call(&pod, json!({}));
    let result = call.call("ADD").success();
    let address = fs::read_to_string("/sys/class/net/br1/address").unwrap();
    assert_eq!(result["interfaces"][0]["mac"], address.trim());
    assert!(sh("ip -o link show br1").contains(",UP"));
    let check = call.with("prevResult", result);
    check.call("CHECK").success();
    sh("ip link set br1 down");
    let (code, text) = check.call("CHECK").error();
    assert!(code == 105 && text.contains("state of br1 is down"), "{text}");
}

#[test]
fn each_subnet_of_a_network_has_its_gateway_on_the_bridge() {
    let _sandbox = Sandbox::enter();
    let subnets = ["192.0.2.9/24", "198.51.100.9/24", "2001:db8::9/64", "2001:db8:1::9/64"];
    assigning(&subnets);
    for forced in [false, true] {
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({"isGateway": true, "forceAddress": forced, "ipam": {"type": "fixed"}}));
        let result = call.call("ADD").success();
        for gateway in ["192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:1::1"] {
            assert!(pings(&pod, gateway), "{gateway}");
        }
        call.clone().with("prevResult", result).call("CHECK").success();
        call.call("DEL").success();
    }
}

#[test]
fn the_node_knows_its_gateways_addresses_when_add_returns() {
    let _sandbox = Sandbox::enter();
    assigning(&["2001:db8::9/64", "2001:db8:1::9/64"]);
    // The kernel makes an address its own by a lock that these want too.
    let lines: String = (0..50_000).map(|n| format!("link set lo mtu {}\n", 1400 + n % 2)).collect();
    fs::write("/run/busy", lines).unwrap();
    let _busy = [(); 3].map(|()| Daemon::start(Command::new("ip").args(["-batch", "/run/busy"])));
    for _ in 0..20 {
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({"isGateway": true, "ipam": {"type": "fixed"}}));
        call.call("ADD").success();
        for gateway in ["2001:db8::1", "2001:db8:1::1"] {
            let route = sh(&format!("ip -6 route get {gateway} oif br1"));
            assert!(route.starts_with("local"), "{route}");
        }
        // The last pod takes the bridge with it.
        call.call("DEL").success();
    }
}

#[test]
fn neighbours_learn_at_once_who_has_an_address_now() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let host = Namespace::new("host");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", host.name()));
    sh("ip link set uplink up master br1");
    host.sh("ip address add 192.0.2.1/24 dev eth0");
    host.sh("ip address add 2001:db8::1/64 dev eth0 nodad");
    host.sh("ip link set eth0 up");
    eventually("the host's port forwards", LIMIT, || {
        sh("bridge link show dev uplink").contains("state forwarding").then_some(())
    });
    // What another had until now.
    for address in ["192.0.2.9", "2001:db8::9"] {
        host.sh(&format!("ip neigh add {address} lladdr 02:00:00:00:00:66 dev eth0 nud stale"));
    }
    let pod = Namespace::new("pod");
    assigning(&["192.0.2.9/24", "2001:db8::9/64"]);
    let keys = json!({"macspoofchk": true, "ipspoofchk": true, "ipam": {"type": "fixed"}});
    let result = call(&pod, keys).call("ADD").success();
    let own = result["interfaces"][2]["mac"].as_str().unwrap();
    for address in ["192.0.2.9", "2001:db8::9"] {
        eventually("the host knows the address by its new owner", LIMIT, || {
            host.sh(&format!("ip neigh show {address}")).contains(own).then_some(())
        });
    }
}

#[test]
fn a_default_route_comes_beside_the_one_that_a_pod_has() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    pod.sh("ip link add eth0 type veth peer name far");
    pod.sh("ip link set far up");
    pod.sh("ip link set eth0 up");
    for (address, gateway) in [("198.51.100.2/24", "198.51.100.1"), ("2001:db8:9::2/64", "2001:db8:9::1")] {
        pod.sh(&format!("ip address add {address} dev eth0"));
        pod.sh(&format!("ip route add default via {gateway} dev eth0"));
    }
    assigning(&["192.0.2.9/24", "2001:db8::9/64"]);
    let call = call(&pod, json!({"isDefaultGateway": true, "ipam": {"type": "fixed"}}));
    let result = call.call("ADD").success();
    assert!(pod.sh("ip route get 203.0.113.1").contains("via 192.0.2.1 dev net1"));
    assert!(pod.sh("ip -6 route").contains("via 2001:db8::1 dev net1"));
    call.clone().with("prevResult", result).call("CHECK").success();
    call.call("DEL").success();
    assert!(pod.sh("ip route get 203.0.113.1").contains("via 198.51.100.1 dev eth0"));
}

#[test]
fn gc_takes_away_a_network_s_own_bridge_with_its_last_port() {
    let _sandbox = Sandbox::enter();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    assigning(&["192.0.2.9/24"]);
    let before = Snapshot::take(&[]);
    let calls = pods.each_ref().map(|pod| call(pod, json!({"isGateway": true, "ipam": {"type": "fixed"}})));
    calls.iter().for_each(|call| drop(call.call("ADD").success()));
    let gc = |valid: Value| calls[0].clone().with("cni.dev/valid-attachments", valid).call("GC").success();
    gc(json!([{"containerID": pods[0].name(), "ifname": "net1"}]));
    assert!(sh("ip link show br1").contains(",UP"));
    gc(json!([]));
    before.assert_unchanged();
}

#[test]
fn names_that_are_too_long_are_refused_and_let_go() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = call(&pod, json!({"name": "n".repeat(200)})).container(&"c".repeat(64));
    let (code, text) = call.call("ADD").error();
    assert!(code == 7 && text.contains("too long"), "{text}");
    call.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn check_takes_what_the_rest_of_the_chain_made_of_the_interface() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let bridge = call(&pod, json!({"mtu": 1500, "disableContainerInterface": true}));
    let result = bridge.call("ADD").success();
    let tuning = json!({"cniVersion": "1.1.0", "name": "net", "type": "cnv-tuning", "mtu": 1400});
    let tuning = CniCall::new("cnv-tuning", tuning).netns(&pod).with("prevResult", result);
    let check = bridge.with("prevResult", tuning.call("ADD").success());
    check.call("CHECK").success();
    // Whoever asked for an interface that is down sets it up.
    pod.sh("ip link set net1 up");
    check.call("CHECK").success();
    pod.sh("ip link set net1 mtu 1300");
    let (code, text) = check.call("CHECK").error();
    assert!(code == 105 && text.contains("MTU of net1 is 1300, expected 1400"), "{text}");
}

#[test]
fn check_blames_no_later_plugin_for_an_mtu_that_the_result_cannot_tell() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let bridge = call(&pod, json!({"cniVersion": "1.0.0", "mtu": 1500}));
    let tuning = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-tuning", "mtu": 1400});
    let tuning =
        CniCall::new("cnv-tuning", tuning).netns(&pod).with("prevResult", bridge.call("ADD").success());
    let result = tuning.call("ADD").success();
    for plugin in [bridge, tuning] {
        plugin.with("prevResult", result.clone()).call("CHECK").success();
    }
}

#[test]
fn addresses_that_a_runtime_asks_for_reach_the_ipam_plugin() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    for (key, value) in [
        ("runtimeConfig", json!({"ips": ["192.0.2.77/24"], "bandwidth": {}, "deviceID": "x"})),
        ("args", json!({"cni": {"ips": ["192.0.2.77/24"]}})),
    ] {
        let pod = Namespace::new("pod");
        // Debian's.
        let ipam = json!({"type": "static"});
        let call = call(&pod, json!({"cniVersion": "1.0.0", "ipam": ipam, key: value}));
        let result = call.args("IgnoreUnknown=true;K8S_POD_NAME=p").call("ADD").success();
        assert_eq!(result["ips"][0]["address"], "192.0.2.77/24", "{key}");
        assert!(pod.sh("ip address show net1").contains("192.0.2.77/24"), "{key}");
    }
}

#[test]
fn check_sees_an_mtu_of_the_host_end_that_came_from_the_bridge() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 mtu 1450 up type bridge");
    let pod = Namespace::new("pod");
    let call = call(&pod, json!({}));
    let result = call.call("ADD").success();
    let host = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
    let check = call.with("prevResult", result);
    check.call("CHECK").success();
    sh(&format!("ip link set {host} mtu 1300"));
    let (code, text) = check.call("CHECK").error();
    assert!(code == 105 && text.contains(&format!("MTU of {host} is 1300, expected 1450")), "{text}");
}

#[test]
fn a_late_del_leaves_the_next_owner_of_the_name_alone() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let (former, pod) = (Namespace::new("pod"), Namespace::new("pod"));
    // The same interface of the same container, of another network.
    let late = call(&former, json!({"name": "former"})).container("c1");
    let result = late.call("ADD").success();
    late.call("DEL").success();
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    sh(&format!("ip link add {host_end} type bridge"));
    late.call("DEL").success();
    sh(&format!("ip link delete {host_end} type bridge"));
    let next = call(&pod, json!({"macspoofchk": true})).container("c1");
    let attached = next.clone().with("prevResult", next.call("ADD").success());
    late.call("DEL").success();
    attached.call("CHECK").success();
    let (code, text) = late.call("ADD").error();
    assert!(code == 104 && text.contains("cannot add veth pair"), "{code} {text}");
    attached.call("CHECK").success();
}

#[test]
fn what_a_crash_left_makes_way_for_the_next_add() {
    let _sandbox = Sandbox::enter();
    let (former, pod) = (Namespace::new("pod"), Namespace::new("pod"));
    assigning(&["192.0.2.9/24", "2001:db8::9/64"]);
    let before = Snapshot::take(&[]);
    let keys =
        json!({"isDefaultGateway": true, "ipMasq": true, "macspoofchk": true, "ipam": {"type": "fixed"}});
    let next = call(&pod, keys).container("c1");
    for change in 1.. {
        let first = next.clone().netns(&former).var("GUESTWIRE_CRASH_AFTER", change.to_string());
        let ended = first.call("ADD").code;
        let result = next.call("ADD").success();
        next.clone().with("prevResult", result).call("CHECK").success();
        assert_eq!(former.sh("ip -brief link show type veth"), "", "change {change}");
        next.call("DEL").success();
        before.assert_unchanged();
        if ended == Some(0) {
            assert!(change > 15, "ADD makes more than {change} changes");
            return;
        }
    }
}
