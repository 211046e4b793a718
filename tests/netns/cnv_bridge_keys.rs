//! `cnv-bridge` honours the keys of the reference plugin: gateways, addresses from any IPAM plugin, port flags.

use std::fs;
use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, output, sh};
use serde_json::{Value, json};

/// Debian's `containernetworking-plugins`.
const FOREIGN_PLUGINS: &str = "/usr/lib/cni";

fn call(pod: &Namespace, more: Value) -> CniCall {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", FOREIGN_PLUGINS)
}

/// `host-local` with both families; its files in the sandbox's own /run.
fn ipam() -> Value {
    json!({
        "type": "host-local", "dataDir": "/run/ipam", "routes": [{"dst": "198.51.100.0/24"}],
        "ranges": [[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]],
    })
}

fn pings(from: &Namespace, to: &str) -> bool {
    output(from.command("ping").args(["-c", "1", "-W", "20", to])).status.success()
}

#[test]
fn a_network_of_its_own_gets_a_bridge_addresses_and_a_gateway() {
    let _sandbox = Sandbox::enter();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let before = Snapshot::take(&[Path::new("/run/ipam")]);
    let calls = pods.each_ref().map(|pod| call(pod, json!({"isDefaultGateway": true, "ipam": ipam()})));
    let results = calls.each_ref().map(|call| call.call("ADD").success());
    let addresses: Vec<_> =
        results.iter().map(|result| result["ips"][0]["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, ["192.0.2.2/24", "192.0.2.3/24"]);
    assert_eq!(results[0]["ips"][0]["gateway"], "192.0.2.1");
    assert_eq!(results[0]["ips"][0]["interface"], 2);
    for peer in ["192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::3"] {
        assert!(pings(&pods[0], peer), "{peer}");
    }
    let routes = pods[0].sh("ip route") + &pods[0].sh("ip -6 route");
    for route in ["default via 192.0.2.1", "198.51.100.0/24 via 192.0.2.1", "default via 2001:db8::1"] {
        assert!(routes.contains(route), "{route} is not in {routes}");
    }
    for (setting, value) in
        [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv6/conf/br1/accept_ra", "0")]
    {
        assert_eq!(
            fs::read_to_string(format!("/proc/sys/net/{setting}")).unwrap().trim(),
            value,
            "{setting}"
        );
    }
    pods[0].sh("ip link set net1 down");
    pods[0].sh("ip link set net1 up");
    assert!(
        pods[0].sh("ip -6 address show dev net1").contains("2001:db8::2/64"),
        "IPv6 addresses go with the carrier"
    );
    for route in ["198.51.100.0/24 via 192.0.2.1", "default via 192.0.2.1", "default via 2001:db8::1"] {
        pods[0].sh(&format!("ip route replace {route} dev net1"));
    }
    for (call, result) in calls.iter().zip(&results) {
        call.clone().with("prevResult", result.clone()).call("CHECK").success();
    }
    pods[1].sh("ip address del 192.0.2.3/24 dev net1");
    let check = calls[1].clone().with("prevResult", results[1].clone()).call("CHECK");
    assert!(check.error().1.contains("address 192.0.2.3/24"));
    pods[0].sh("ip route del 198.51.100.0/24");
    let check = calls[0].clone().with("prevResult", results[0].clone()).call("CHECK");
    assert!(check.error().1.contains("route to 198.51.100.0/24"));

    calls[0].call("DEL").success();
    sh("ip link show br1");
    calls[1].call("DEL").success();
    calls[1].call("DEL").success();
    // What host-local itself keeps.
    for leftover in ["lock", "last_reserved_ip.0", "last_reserved_ip.1"] {
        fs::remove_file(format!("/run/ipam/net/{leftover}")).unwrap();
    }
    fs::remove_dir_all("/run/ipam").unwrap();
    before.assert_unchanged();
}

#[test]
fn a_bridge_that_was_there_stays() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 type bridge");
    let pod = Namespace::new("pod");
    let call = call(&pod, json!({"isGateway": true, "ipam": ipam()}));
    call.call("ADD").success();
    call.call("DEL").success();
    sh("ip link show br1");
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = call(&pod, json!({"isDefaultGateway": true, "macspoofchk": true, "ipam": ipam()}));
    let crashes = call.cut_off_add(|| {
        before.assert_unchanged();
        // No address is lost: the last reservation went with the DEL.
        let reserved = fs::read_dir("/run/ipam/net").map(|list| list.count()).unwrap_or(0);
        assert!(reserved <= 3, "host-local still has an address reserved");
    });
    assert!(crashes >= 15, "one crash for each change that ADD makes, but there were {crashes}");
}

#[test]
fn another_address_on_the_bridge_is_in_the_way_unless_forced() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    sh("ip address add 203.0.113.1/24 dev br1");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let (code, message) = call(&pod, json!({"isGateway": true, "ipam": ipam()})).call("ADD").error();
    assert!(code == 106 && message.contains("203.0.113.1/24"), "{code} {message}");
    before.assert_unchanged();
    call(&pod, json!({"isGateway": true, "forceAddress": true, "ipam": ipam()})).call("ADD").success();
    let addresses = sh("ip -o address show br1");
    assert!(addresses.contains("192.0.2.1/24") && !addresses.contains("203.0.113.1"), "{addresses}");
}

#[test]
fn an_address_that_another_host_has_is_noticed() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let other = Namespace::new("other");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", other.name()));
    sh("ip link set uplink up master br1");
    other.sh("ip address add 2001:db8::2/64 dev eth0 nodad");
    other.sh("ip link set eth0 up");
    let pod = Namespace::new("pod");
    let ipam =
        json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "2001:db8::/64"}]]});
    let wanted = json!({"enabledad": true, "ipam": ipam});
    let (code, message) = call(&pod, wanted.clone()).call("ADD").error();
    assert!(code == 107 && message.contains("another host"), "{code} {message}");
    other.sh("ip address del 2001:db8::2/64 dev eth0");
    let result = call(&pod, wanted).call("ADD").success();
    let address = pod.sh("ip -6 -o address show net1 scope global");
    assert!(!address.contains("tentative"), "{address}");
    assert!(result["ips"][0]["address"].as_str().unwrap().starts_with("2001:db8::"));
}

#[test]
fn an_ipam_plugin_that_fails_is_quoted_and_nothing_is_left() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let full =
        json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "192.0.2.0/30"}]]});
    let first = Namespace::new("pod");
    let first_call = call(&first, json!({"ipam": full}));
    first_call.call("ADD").success();
    let error = call(&pod, json!({"ipam": full})).call("ADD").error();
    assert!(error.1.contains("IPAM plugin host-local"), "{error:?}");
    first_call.call("DEL").success();
    drop(first);
    before.assert_unchanged();
    let missing = call(&pod, json!({"ipam": {"type": "no-such-ipam"}})).call("ADD").error();
    assert!(missing.0 == 5 && missing.1.contains("no-such-ipam"), "{missing:?}");
    before.assert_unchanged();
}

#[test]
fn port_flags_are_set_and_checked() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    for (key, on, off) in [
        ("hairpinMode", "hairpin on", "ip link set PORT type bridge_slave hairpin off"),
        ("portIsolation", "isolated on", "ip link set PORT type bridge_slave isolated off"),
    ] {
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({key: true}));
        let result = call.call("ADD").success();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        assert!(sh(&format!("ip -d link show {port}")).contains(on), "{key}");
        let check = call.with("prevResult", result.clone());
        check.call("CHECK").success();
        sh(&off.replace("PORT", port));
        assert_eq!(check.call("CHECK").error().0, 105, "{key}");
    }
    let pod = Namespace::new("pod");
    call(&pod, json!({"promiscMode": true})).call("ADD").success();
    assert!(sh("ip link show br1").contains("PROMISC"));
    let pod = Namespace::new("pod");
    call(&pod, json!({"promiscMode": false})).call("ADD").success();
    assert!(sh("ip link show br1").contains("PROMISC"), "what others asked of the bridge is theirs");
    let pod = Namespace::new("pod");
    let call = call(&pod, json!({"disableContainerInterface": true}));
    let result = call.call("ADD").success();
    assert!(!pod.sh("ip link show net1").contains(",UP"));
    call.with("prevResult", result).call("CHECK").success();
}

#[test]
fn the_network_s_own_dns_replaces_the_one_of_ipam() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let dns = json!({"nameservers": ["192.0.2.53"], "search": ["example.com"]});
    let result = call(&pod, json!({"ipam": ipam(), "dns": dns})).call("ADD").success();
    assert_eq!(result["dns"], dns);
}

#[test]
fn the_oldest_version_gets_its_addresses_too() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let result =
        call(&pod, json!({"cniVersion": "0.2.0", "isGateway": true, "ipam": ipam()})).call("ADD").success();
    assert_eq!(result["ip4"]["ip"], "192.0.2.2/24");
    assert_eq!(result["ip6"]["gateway"], "2001:db8::1");
    assert!(pings(&pod, "192.0.2.1"));
}

#[test]
fn status_tells_whether_an_add_could_work() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let missing = call(&pod, json!({"cniVersion": "1.1.0"})).call("STATUS");
    let details = missing.json["details"].as_str().unwrap().to_owned();
    assert!(details.contains("ip link add br1") && details.contains("code 100"), "{details}");
    let (code, message) = missing.error();
    assert!(code == 51 && message.contains("br1"), "{code} {message}");
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    call(&pod, json!({"cniVersion": "1.1.0"})).call("STATUS").success();
    for (more, expected, said) in [
        (json!({"vlan": 5, "preserveDefaultVlan": false}), 51, "code 102"),
        (json!({"bridge": "lo"}), 51, "code 101"),
        (json!({"ipam": {"type": "absent"}}), 50, "code 5"),
        (json!({"vlan": 5000}), 7, ""),
    ] {
        let mut config = more.clone();
        config["cniVersion"] = "1.1.0".into();
        let answer = call(&pod, config).call("STATUS");
        let details = answer.json["details"].as_str().unwrap_or_default().to_owned();
        let (code, message) = answer.error();
        assert!(code == expected && details.contains(said), "{more}: {code} {message} {details}");
    }
}
