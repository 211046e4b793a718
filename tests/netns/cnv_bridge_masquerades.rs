//! `ipMasq`: what a pod sends out of its network leaves by the node's address, for as long as the pod is there.

use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, output, sh};
use serde_json::{Value, json};

fn call(pod: &Namespace, more: Value) -> CniCall {
    let ranges = json!([[{"subnet": "192.0.2.0/24"}], [{"subnet": "2001:db8::/64"}]]);
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "isDefaultGateway": true,
        "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "/run/ipam", "ranges": ranges},
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", "/usr/lib/cni")
}

/// A host outside that knows the node's addresses (198.51.100.1, 2001:db8:1::1) and no route to the pods'.
fn world() -> Namespace {
    let world = Namespace::new("world");
    sh(&format!("ip link add outside type veth peer name eth0 netns {}", world.name()));
    for (address, peer) in [("198.51.100.1/24", "198.51.100.2/24"), ("2001:db8:1::1/64", "2001:db8:1::2/64")]
    {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        sh(&format!("ip address add {address} dev outside {nodad}"));
        world.sh(&format!("ip address add {peer} dev eth0 {nodad}"));
    }
    sh("ip link set outside up");
    world.sh("ip link set eth0 up");
    world
}

fn pings(from: &Namespace, to: &str, seconds: u8) -> bool {
    let wait = seconds.to_string();
    output(from.command("ping").args(["-c", "1", "-W", &wait, to])).status.success()
}

#[test]
fn a_pod_reaches_the_world_by_the_node_s_address() {
    let _sandbox = Sandbox::enter();
    let _world = world();
    let pods = [true, false].map(|masquerade| {
        let pod = Namespace::new("pod");
        call(&pod, json!({"ipMasq": masquerade})).call("ADD").success();
        pod
    });
    assert!(pings(&pods[0], "192.0.2.3", 20) && pings(&pods[0], "2001:db8::3", 20));
    assert!(!sh("nft list table inet cnv-bridge").contains("packets 1 "), "translated within the network");
    for outside in ["198.51.100.2", "2001:db8:1::2"] {
        assert!(pings(&pods[0], outside, 20), "{outside}");
        assert!(!pings(&pods[1], outside, 1), "{outside} answered an address it has no route to");
    }
    let rules = sh("nft list table inet cnv-bridge");
    for part in ["ip saddr vmap @masquerade4", "ip6 saddr vmap @masquerade6", "ip daddr != 192.0.2.0/24"] {
        assert!(rules.contains(part), "{part} is not in {rules}");
    }
    assert!(rules.contains("ip6 saddr 2001:db8::2 ip6 daddr != 2001:db8::/64"), "{rules}");
}

#[test]
fn del_takes_away_one_pod_s_part_and_with_the_last_all() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let before = sh("nft list ruleset");
    let calls = pods.each_ref().map(|pod| call(pod, json!({})));
    let results = calls.each_ref().map(|call| call.call("ADD").success());
    calls[0].clone().without("CNI_NETNS").call("DEL").success();
    calls[0].call("DEL").success();
    calls[1].clone().with("prevResult", results[1].clone()).call("CHECK").success();
    let rules = sh("nft list table inet cnv-bridge");
    assert!(!rules.contains("192.0.2.2") && rules.contains("192.0.2.3"), "{rules}");
    calls[1].call("DEL").success();
    assert_eq!(sh("nft list ruleset"), before);
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = call(&pod, json!({}));
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert!(crashes >= 15, "one crash for each change that ADD makes, but there were {crashes}");
    call.cut_off_del(|| before.assert_unchanged());
}

#[test]
fn check_names_what_is_missing_and_del_minds_none_of_it() {
    let _sandbox = Sandbox::enter();
    let changes = [
        ("nft flush chain inet cnv-bridge postrouting", "is not looked up"),
        ("nft delete element inet cnv-bridge masquerade4 { 192.0.2.2 }", "is without 192.0.2.2/24"),
        ("nft delete element inet cnv-bridge masquerade6 { 2001:db8::2 }", "is without 2001:db8::2/64"),
        ("nft add rule inet cnv-bridge PORT accept", "is not ours"),
        ("nft flush chain inet cnv-bridge PORT", "is absent"),
        (
            "nft flush chain inet cnv-bridge PORT; add rule inet cnv-bridge PORT accept",
            "is without 192.0.2.2/24",
        ),
        (
            "nft flush chain inet cnv-bridge postrouting; delete chain inet cnv-bridge postrouting",
            "is not looked up",
        ),
        (
            "nft flush chain inet cnv-bridge postrouting; delete map inet cnv-bridge masquerade6",
            "is not looked up",
        ),
        ("nft add table inet cnv-bridge { flags dormant ; }", "is not looked up"),
        ("nft delete table inet cnv-bridge", "is not looked up"),
    ];
    for (change, message) in changes {
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({}));
        let result = call.call("ADD").success();
        let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        let check = call.clone().with("prevResult", result);
        check.call("CHECK").success();
        sh(&change.replace("PORT", &port));
        let (code, text) = check.call("CHECK").error();
        assert!(
            code == 105 && text.contains(&format!("masquerading of {port} {message}")),
            "{change}: {text}"
        );
        call.call("DEL").success();
        assert_eq!(sh("nft list ruleset"), "", "{change}");
        // Else host-local goes on with the next address of its range.
        std::fs::remove_dir_all("/run/ipam").unwrap();
    }
}

#[test]
fn the_next_add_wakes_a_table_that_somebody_switched_off() {
    let _sandbox = Sandbox::enter();
    let (first, second) = (Namespace::new("pod"), Namespace::new("pod"));
    let checks = [&first, &second].map(|pod| {
        let call = call(pod, json!({}));
        let result = call.call("ADD").success();
        sh("nft add table inet cnv-bridge { flags dormant ; }");
        call.with("prevResult", result)
    });
    checks[0].call("CHECK").error();
    let third = Namespace::new("pod");
    call(&third, json!({})).call("ADD").success();
    checks.iter().for_each(|check| drop(check.call("CHECK").success()));
}

#[test]
fn gc_finds_what_a_vanished_pod_left() {
    let _sandbox = Sandbox::enter();
    let pods = [0, 1, 2].map(|_| Namespace::new("pod"));
    for (number, pod) in pods.iter().enumerate() {
        let network = if number == 2 { "other" } else { "net" };
        call(pod, json!({"name": network, "macspoofchk": true}))
            .container(&format!("c{number}"))
            .call("ADD")
            .success();
    }
    let [gone, kept, _other] = pods;
    let valid = json!([{"containerID": "c1", "ifname": "net1"}]);
    let gc = json!({"cniVersion": "1.1.0", "macspoofchk": true, "cni.dev/valid-attachments": valid});
    let gc = call(&kept, gc);
    drop(gone);
    e2e::eventually(
        "the kernel takes the vanished pod's link away",
        std::time::Duration::from_secs(20),
        || (sh("ip -brief link show type veth").lines().count() == 2).then_some(()),
    );
    let (_, text) = gc.call("GC").error();
    assert!(
        text.contains("IPAM plugin host-local"),
        "Debian's host-local is older than GC, but that is all: {text}"
    );
    for family in ["inet", "bridge"] {
        let rules = sh(&format!("nft list ruleset {family}"));
        let owners = ["net1 c0 net", "net1 c1 net", "net1 c2 other"].map(|owner| rules.contains(owner));
        assert_eq!(owners, [false, true, true], "{rules}");
    }
}

#[test]
fn an_address_belongs_to_whom_ipam_gave_it_last() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let (first, second) = (Namespace::new("pod"), Namespace::new("pod"));
    let former = call(&first, json!({}));
    former.call("ADD").success();
    // The reservation is lost, as when IPAM's files were: the next pod gets the same address.
    std::fs::remove_dir_all(Path::new("/run/ipam")).unwrap();
    let call = call(&second, json!({}));
    let result = call.call("ADD").success();
    assert_eq!(result["ips"][0]["address"], "192.0.2.2/24");
    let check = call.with("prevResult", result);
    check.call("CHECK").success();
    former.call("DEL").success();
    check.call("CHECK").success();
}

#[test]
fn either_backend_is_taken_and_a_network_without_addresses_is_warned_of() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    for (more, warning) in [
        (json!({"ipMasqBackend": "iptables"}), Some("masquerading all the same by nftables")),
        (json!({"ipMasqBackend": "nftables"}), None),
        (json!({"ipam": {}}), Some("ipMasq does nothing without ipam")),
    ] {
        let pod = Namespace::new("pod");
        let answer = call(&pod, more.clone()).call("ADD");
        assert_eq!(answer.stderr.contains("WARN"), warning.is_some(), "{more}: {}", answer.stderr);
        assert!(warning.is_none_or(|warning| answer.stderr.contains(warning)), "{}", answer.stderr);
        answer.success();
    }
}
