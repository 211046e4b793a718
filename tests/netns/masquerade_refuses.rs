//! What `masquerade` cannot do, it refuses by name, and leaves the pod alone.

use serde_json::{Value, json};

use crate::masquerade_ground::Ground;

fn refused(ground: &Ground, more: Value) -> (u64, String) {
    let error = ground.call(more).call("ADD").error();
    for kind in ["bridge", "tun"] {
        assert_eq!(ground.pod.sh(&format!("ip link show type {kind}")), "");
    }
    assert_eq!(ground.pod.sh("nft list ruleset"), "");
    error
}

#[test]
fn a_subnet_that_hides_a_pod_address_is_refused() {
    let ground = Ground::dual_stack();
    ground.pod.sh("ip link add other type veth peer name rehto");
    ground.pod.sh("ip address add 172.16.5.1/16 dev other");
    for (more, message) in [
        (
            json!({"vmNetworkCIDR": "192.0.2.128/25"}),
            "vmNetworkCIDR: 192.0.2.128/25 overlaps 192.0.2.10/24 of eth0 in the container",
        ),
        (
            json!({"vmNetworkCIDR": "172.16.0.0/12"}),
            "vmNetworkCIDR: 172.16.0.0/12 overlaps 172.16.5.1/16 of other",
        ),
        (json!({"vmIPv6NetworkCIDR": "2001:db8::/32"}), "vmIPv6NetworkCIDR: 2001:db8::/32 overlaps"),
    ] {
        let (code, said) = refused(&ground, more);
        assert!(code == 7 && said.starts_with(message), "{code}: {said}");
    }
}

#[test]
fn two_nics_cannot_have_one_guest_network() {
    let ground = Ground::dual_stack();
    ground.pod.sh("ip link add net1 type veth peer name 1ten");
    ground.pod.sh("ip address add 203.0.113.10/24 dev net1");
    ground.call(json!({})).call("ADD").success();
    let (code, said) = ground.call(json!({})).ifname("net1").call("ADD").error();
    assert_eq!(code, 7);
    assert!(said.contains("10.0.2.0/24 overlaps 10.0.2.1/24 of k6t-eth0"), "{said}");
}

#[test]
fn a_pod_interface_without_an_address_is_refused() {
    let ground = Ground::without_addresses();
    let (code, said) = refused(&ground, json!({}));
    assert_eq!(code, 130);
    assert!(said.starts_with("interface eth0 of the container has no IPv4 or IPv6 address"), "{said}");
    let (code, said) = ground.call(json!({})).ifname("net1").call("ADD").error();
    assert_eq!((code, said.as_str()), (110, "the container has no interface net1"));
}

#[test]
fn an_mtu_that_cannot_work_is_refused() {
    let ground = Ground::dual_stack();
    ground.pod.sh("ip link set eth0 mtu 1500");
    let (code, said) = refused(&ground, json!({"mtu": 1501}));
    assert_eq!((code, said.as_str()), (7, "mtu: is 1501; allowed: up to 1500, that of eth0"));
    let (code, said) = refused(&ground, json!({"mtu": 1279}));
    assert!(code == 7 && said.contains("IPv6, which needs 1280"), "{said}");
}

#[test]
fn bad_ports_are_refused_by_name() {
    let ground = Ground::dual_stack();
    for (more, message) in [
        (json!({"ports": [{"port": 0}]}), "ports[0].port: is 0; allowed: 1 to 65535"),
        (json!({"ports": [{"port": 65536}]}), "ports[0].port: is 65536"),
        (json!({"ports": [{"port": 49153}]}), "ports[0]: TCP port 49153 is reserved"),
        (json!({"portRanges": [{"start": 90, "end": 80}]}), "portRanges[0]: ends at 80, before its start 90"),
        (json!({"portRanges": [{"start": 1, "end": 65535}]}), "portRanges[0]: TCP port 49152 is reserved"),
    ] {
        let (code, said) = refused(&ground, more);
        assert!(code == 7 && said.starts_with(message), "{code}: {said}");
    }
}

#[test]
fn a_misspelt_key_is_warned_of() {
    let ground = Ground::dual_stack();
    let answer = ground.call(json!({"vmNetwrokCIDR": "10.0.9.0/24"})).call("ADD");
    assert!(
        answer.stderr.contains("did you mean \\\"vmNetworkCIDR\\\"?")
            || answer.stderr.contains("did you mean \"vmNetworkCIDR\"?"),
        "{}",
        answer.stderr
    );
    answer.success();
}
