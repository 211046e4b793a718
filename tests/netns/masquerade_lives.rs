//! `masquerade` over time: repeated, interrupted, changed by others, taken away.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use e2e::{CniCall, Namespace, Snapshot, eventually};
use serde_json::json;

use crate::masquerade_ground::{CLIENT_V4, Ground, POD_V4, config, ip, tcp};

/// Everything in the pod's namespace; the sandbox's own is not where masquerade works. Forwarding is on before, for it
/// stays on, and the kernel shows that in its routes.
fn snapshot(pod: &Namespace) -> Snapshot {
    pod.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
    pod.netns().run(|| Snapshot::take(&[])).unwrap()
}

fn assert_unchanged(pod: &Namespace, before: &Snapshot) {
    pod.netns().run(|| before.assert_unchanged()).unwrap();
}

#[test]
fn add_check_and_del_leave_the_pod_as_it_was() {
    let ground = Ground::dual_stack();
    let before = snapshot(&ground.pod);
    let call = ground.call(json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}], "istio": true}));
    let result = call.call("ADD").success();
    call.clone().with("prevResult", result).call("CHECK").success();
    call.call("DEL").success();
    assert_unchanged(&ground.pod, &before);
    call.call("DEL").success();
}

#[test]
fn a_repeated_add_changes_nothing_under_a_running_guest() {
    let ground = Ground::dual_stack();
    let call = ground.connect(json!({}));
    let before = snapshot(&ground.pod);
    call.call("ADD").success();
    assert_unchanged(&ground.pod, &before);
    assert_eq!(tcp(&ground.client, POD_V4, 80, &ground.guest), ip(CLIENT_V4));
    call.call("CHECK").success();
}

#[test]
fn a_repeated_add_with_other_ports_replaces_the_rules_and_keeps_the_links() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 80}]}));
    ground.call(json!({"ports": [{"port": 81}]})).call("ADD").success();
    let Ground { client, pod, guest, .. } = &ground;
    assert_eq!(tcp(client, POD_V4, 81, guest), ip(CLIENT_V4));
    assert!(tcp(client, POD_V4, 80, pod).is_some(), "a stale rule forwards port 80");
}

#[test]
fn a_repeated_add_with_another_tap_makes_it_anew() {
    let ground = Ground::dual_stack();
    ground.call(json!({"queues": 1, "vmNetworkCIDR": "10.0.9.0/24"})).call("ADD").success();
    let call = ground.call(json!({"queues": 4}));
    call.call("ADD").success();
    assert!(ground.pod.sh("ip -details link show tap0").contains("multi_queue numqueues"));
    let bridge = ground.pod.sh("ip -4 -brief address show k6t-eth0");
    assert!(bridge.contains("10.0.2.1/24") && !bridge.contains("10.0.9.1"), "{bridge}");
    call.call("CHECK").success();
}

#[test]
fn what_a_crash_left_is_gone_after_del_and_no_hindrance_to_add() {
    let ground = Ground::dual_stack();
    let before = snapshot(&ground.pod);
    let call = ground.call(json!({}));
    let mut crashes = 0;
    while call.clone().var("GUESTWIRE_CRASH_AFTER", (crashes + 1).to_string()).call("ADD").code != Some(0) {
        crashes += 1;
        assert!(crashes < 50, "the crashes never end");
        if crashes % 2 == 0 {
            call.call("ADD").success();
            call.call("CHECK").success();
        }
        call.call("DEL").success();
        assert_unchanged(&ground.pod, &before);
    }
    // Links and their aliases, settings, addresses, rules, states: fewer would mean that some are not told.
    assert!(crashes >= 12, "only {crashes} changes can be interrupted");
}

#[test]
fn a_failed_add_leaves_the_pod_as_it_was() {
    let ground = Ground::dual_stack();
    let settings = "sysctl net.ipv4.ip_forward net.bridge.bridge-nf-call-iptables";
    let before = (snapshot(&ground.pod), ground.pod.sh(settings));
    // Somebody else's bridge of that name stops it before, a table that a process keeps to itself in the middle.
    ground.pod.sh("ip link add k6t-eth0 type bridge");
    ground.pod.sh("ip link set k6t-eth0 alias mine");
    assert_eq!(ground.call(json!({})).call("ADD").error().0, 103);
    ground.pod.sh("ip link del k6t-eth0");
    assert_unchanged(&ground.pod, &before.0);
    let mut owner = ground.pod.command("nft");
    let owner = owner.arg("--interactive").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut owner = owner.spawn().unwrap();
    let mut commands = owner.stdin.take().unwrap();
    commands.write_all(b"add table inet guestwire-masquerade-eth0 { flags owner; }\n").unwrap();
    eventually("the table is there", Duration::from_secs(20), || {
        ground.pod.sh("nft list tables").contains("guestwire-masquerade-eth0").then_some(())
    });
    let held = snapshot(&ground.pod);
    let (code, message) = ground.call(json!({})).call("ADD").error();
    assert!(code == 131 && message.starts_with("nf_tables refused to"), "{code}: {message}");
    assert_unchanged(&ground.pod, &held);
    drop(commands);
    owner.wait().unwrap();
    eventually("the table is gone", Duration::from_secs(20), || {
        ground.pod.sh("nft list tables").is_empty().then_some(())
    });
    assert_unchanged(&ground.pod, &before.0);
    assert_eq!(ground.pod.sh(settings), before.1);
}

#[test]
fn thousands_of_ports_may_be_listed() {
    let ground = Ground::dual_stack();
    let ports: Vec<_> = (0..2000).map(|number| json!({"port": 1001 + 2 * number})).collect();
    let call = ground.connect(json!({"ports": ports}));
    call.call("CHECK").success();
    assert_eq!(tcp(&ground.client, POD_V4, 4999, &ground.guest), ip(CLIENT_V4));
    assert_eq!(tcp(&ground.client, POD_V4, 4998, &ground.guest), None);
}

#[test]
fn foreign_tables_are_neither_read_nor_touched() {
    let ground = Ground::dual_stack();
    let foreign = |pod: &Namespace| pod.sh("nft list table ip istio");
    ground.pod.sh("nft add table ip istio");
    ground.pod.sh("nft add chain ip istio prerouting { type nat hook prerouting priority -110; }");
    ground.pod.sh("nft add rule ip istio prerouting tcp dport 15006 counter redirect to :15006");
    let before = foreign(&ground.pod);
    let call = ground.connect(json!({}));
    call.call("ADD").success();
    call.call("CHECK").success();
    assert_eq!(foreign(&ground.pod), before);
    call.call("DEL").success();
    assert_eq!(foreign(&ground.pod), before);
}

#[test]
fn a_late_del_leaves_the_next_owner_alone() {
    let ground = Ground::dual_stack();
    let late = ground.call(json!({}));
    late.call("ADD").success();
    let next = ground.call(json!({})).container("c2");
    let result = next.call("ADD").success();
    late.call("DEL").success();
    next.with("prevResult", result).call("CHECK").success();
}

#[test]
fn del_and_gc_need_no_namespace() {
    let ground = Ground::dual_stack();
    let call = ground.call(json!({}));
    call.call("ADD").success();
    call.clone().without("CNI_NETNS").call("DEL").success();
    call.clone().var("CNI_NETNS", "/run/netns/gone").call("DEL").success();
    CniCall::new("masquerade", config(json!({"cni.dev/valid-attachments": []}))).call("GC").success();
    call.call("DEL").success();
}

#[test]
fn check_names_the_first_difference() {
    let ground = Ground::dual_stack();
    let call = ground.call(json!({"ports": [{"port": 80}]}));
    let table = "inet guestwire-masquerade-eth0";
    let changes = [
        ("ip link set tap0 down", "state of tap0 is down, expected up"),
        ("ip link set tap0 nomaster", "master of tap0 is 0"),
        ("ip link set k6t-eth0 mtu 1400", "MTU of k6t-eth0 is 1400, expected 9000"),
        ("ip address del 10.0.2.1/24 dev k6t-eth0", "10.0.2.1/24 on k6t-eth0 is absent"),
        ("ip -6 route del local ::1 dev k6t-eth0 table local", "::1 taken from k6t-eth0 is false"),
        ("sysctl -qw net.ipv4.ip_forward=0", "/proc/sys/net/ipv4/ip_forward is 0, expected 1"),
        ("sysctl -qw net.ipv4.conf.k6t-eth0.route_localnet=0", "route_localnet is 0"),
        (&format!("nft flush chain {table} inbound"), "rule \"reserved\" in chain inbound"),
        (&format!("nft add rule {table} inbound accept"), "rule \"without a comment\" in chain inbound"),
        (&format!("nft add chain {table} more"), "chain more of guestwire-masquerade-eth0 is present"),
        (&format!("nft add table {table} {{ flags dormant ; }}"), "guestwire-masquerade-eth0 is dormant"),
        (&format!("nft delete table {table}"), "guestwire-masquerade-eth0 is absent"),
        ("ip link del k6t-eth0", "k6t-eth0 is absent"),
    ];
    for (change, message) in changes {
        let result = call.call("ADD").success();
        let check = call.clone().with("prevResult", result);
        check.call("CHECK").success();
        ground.pod.sh(change);
        let (code, said) = check.call("CHECK").error();
        assert!(code == 105 && said.contains(message), "after {change}: {code}: {said}");
    }
}

#[test]
fn status_says_whether_an_add_could_work() {
    let ground = Ground::dual_stack();
    let call = CniCall::new("masquerade", config(json!({})));
    let before = Snapshot::take(&[]);
    call.call("STATUS").success();
    before.assert_unchanged();
    assert_eq!(ground.pod.sh("nft list ruleset"), "");
    assert_eq!(e2e::sh("nft list ruleset"), "", "an attempt left something");
    // No program is needed.
    call.var("PATH", "/nowhere").call("STATUS").success();
    drop(ground);
}

#[test]
fn in_a_chain_the_result_so_far_is_kept() {
    let ground = Ground::dual_stack();
    let before = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": ground.pod.path()}],
        "ips": [{"interface": 0, "address": "192.0.2.10/24", "gateway": "192.0.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let result = ground.call(json!({})).with("prevResult", before.clone()).call("ADD").success();
    assert_eq!((&result["ips"], &result["routes"]), (&before["ips"], &before["routes"]));
    assert_eq!(result["interfaces"][0], before["interfaces"][0]);
    let names: Vec<_> = (1..3).map(|index| result["interfaces"][index]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["k6t-eth0", "tap0"]);
}
