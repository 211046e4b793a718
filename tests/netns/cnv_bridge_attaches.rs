//! `cnv-bridge` puts a pod on a bridge, guards what it may send, and leaves nothing behind.

use std::time::Duration;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, eventually, output, sh};
use serde_json::{Value, json};

fn config(more: Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// A bridge `br1` with a host 192.0.2.1 on it.
fn bridge_with_a_host() -> Namespace {
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let host = Namespace::new("host");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", host.name()));
    sh("ip link set uplink up master br1");
    host.sh("ip address add 192.0.2.1/24 dev eth0");
    host.sh("ip link set eth0 up");
    host
}

/// Whether an answer comes within so many seconds: long where one is expected, short where none is.
fn answers(from: &Namespace, to: &str, seconds: u8) -> bool {
    let wait = seconds.to_string();
    output(from.command("ping").args(["-c", "1", "-W", &wait, to])).status.success()
}

#[test]
fn a_pod_talks_through_the_bridge() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = CniCall::new("cnv-bridge", config(json!({}))).netns(&pod);
    let result = call.call("ADD").success();
    pod.sh("ip address add 192.0.2.2/24 dev net1");
    pod.sh("ping -c 1 -W 5 192.0.2.1");
    call.clone().with("prevResult", result).call("CHECK").success();
    call.call("DEL").success();
    call.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn the_host_end_has_no_ipv6_of_its_own() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 up type bridge");
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config(json!({}))).netns(&pod);
    let result = call.call("ADD").success();
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    // The pod's own address comes with the carrier, as the host end's would.
    eventually("the pod has an address", Duration::from_secs(20), || {
        Some(pod.sh("ip -6 -brief address show dev net1 scope link"))
            .filter(|address| address.contains("fe80::"))
    });
    assert_eq!(sh(&format!("ip -6 address show dev {veth}")), "");
    assert_eq!(sh(&format!("ip -6 route show table all dev {veth}")), "");
    call.call("DEL").success();

    // Where that cannot be set, the pod is attached all the same.
    sh("mount --bind /proc/sys /proc/sys");
    sh("mount -o remount,bind,ro /proc/sys");
    let answer = call.call("ADD");
    assert!(answer.stderr.contains("disable_ipv6"), "{}", answer.stderr);
    answer.success();
    call.call("DEL").success();
}

#[test]
fn each_version_gets_the_result_it_knows() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let pod = Namespace::new("pod");
        let mac = json!({"cni": {"mac": "02:00:00:00:00:05"}});
        let call =
            CniCall::new("cnv-bridge", config(json!({"cniVersion": version, "mtu": 1400, "args": mac})))
                .netns(&pod);
        let result = call.call("ADD").success();
        assert_eq!(result["cniVersion"], version);
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 3);
        assert_eq!(interfaces[0]["name"], "br1");
        assert_eq!(interfaces[1].get("sandbox"), None);
        assert_eq!(interfaces[2]["name"], "net1");
        assert_eq!(interfaces[2]["mac"], "02:00:00:00:00:05");
        assert_eq!(interfaces[2]["sandbox"], pod.path().to_str().unwrap());
        assert_eq!(interfaces[2].get("mtu").is_some(), version == "1.1.0");
        let link = pod.sh("ip -oneline link show net1");
        assert!(link.contains("mtu 1400") && link.contains("02:00:00:00:00:05"), "{link}");
        call.call("DEL").success();
    }
}

#[test]
fn a_port_takes_its_bridge_s_mtu_unless_told() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 mtu 9000 up type bridge");
    let pod = Namespace::new("pod");
    CniCall::new("cnv-bridge", config(json!({}))).netns(&pod).call("ADD").success();
    assert!(pod.sh("ip link show net1").contains("mtu 9000"));
    assert!(sh("ip link show br1").contains("mtu 9000"));
}

#[test]
fn a_forged_address_is_dropped_and_counted() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let pods = [true, false].map(|guarded| {
        let pod = Namespace::new("pod");
        let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": guarded}))).netns(&pod);
        call.clone().container(pod.name()).call("ADD").success();
        let address = if guarded { "192.0.2.2" } else { "192.0.2.3" };
        pod.sh(&format!("ip address add {address}/24 dev net1"));
        assert!(answers(&pod, "192.0.2.1", 20));
        (pod, call)
    });
    for (pod, _) in &pods {
        pod.sh("ip link set net1 address 02:00:00:00:00:66");
    }
    assert!(!answers(&pods[0].0, "192.0.2.1", 1), "a forged address passed the check");
    assert!(answers(&pods[1].0, "192.0.2.1", 20), "without a check any address passes");
    let rules = sh("nft list ruleset bridge");
    let rule = rules.lines().find(|line| line.contains("ether saddr !=")).unwrap();
    assert!(!rule.contains("packets 0 "), "{rules}");
    let of_ports = sh("nft list counters table bridge cnv-bridge");
    assert!(of_ports.contains("net1 pod") || of_ports.contains(pods[0].0.name()), "{of_ports}");
    assert!(!of_ports.contains("packets 0 "), "{of_ports}");
    for (pod, call) in &pods {
        call.clone().container(pod.name()).call("DEL").success();
    }
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn the_check_of_one_port_does_not_mind_the_others() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let calls = ["c1", "c2", "c3"].map(|container| {
        let pod = Namespace::new("pod");
        let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true})));
        let call = call.netns(&pod).container(container);
        let result = call.call("ADD").success();
        (pod, call.with("prevResult", result))
    });
    for (index, (_, call)) in calls.iter().enumerate() {
        call.call("DEL").success();
        let left = calls.len() - index - 1;
        assert_eq!(sh("nft list ruleset").matches("comment \"guestwire").count(), left);
        for (_, other) in calls.iter().skip(index + 1) {
            other.call("CHECK").success();
        }
    }
    assert_eq!(sh("nft list ruleset"), "");
}

#[test]
fn del_needs_no_namespace() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let before = Snapshot::take(&[]);
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true}))).netns(&pod);
    call.call("ADD").success();
    call.clone().without("CNI_NETNS").call("DEL").success();
    call.call("ADD").success();
    drop(pod);
    call.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn del_minds_nothing_that_somebody_took_away_by_hand() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let changes = [
        "nft delete table bridge cnv-bridge",
        "nft flush table bridge cnv-bridge",
        "nft flush chain bridge cnv-bridge mac-check",
        "nft flush set bridge cnv-bridge macs",
        "nft delete element bridge cnv-bridge ports { PORT }",
        "nft delete element bridge cnv-bridge mac-checked { PORT }",
        "nft add table bridge cnv-bridge { flags dormant ; }",
        "ip link delete PORT",
        "ip link set PORT nomaster",
        "ip link set PORT down name other",
        "ip link delete br1",
    ];
    for change in changes {
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true}))).netns(&pod);
        let result = call.call("ADD").success();
        let port = result["interfaces"][1]["name"].as_str().unwrap();
        sh(&change.replace("PORT", port));
        call.call("DEL").success();
        assert_eq!(sh("nft list ruleset"), "", "{change}");
        assert_eq!(sh("ip -brief link show type veth"), "", "{change}");
        assert!(!pod.sh("ip -brief link").contains("net1"), "{change}");
        if change != "ip link delete br1" {
            sh("ip link delete br1");
        }
    }
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true}))).netns(&pod);
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert_eq!(crashes, 9, "one crash for each change that ADD makes");
    call.cut_off_del(|| before.assert_unchanged());
}

#[test]
fn an_add_that_was_never_deleted_makes_way_for_the_next() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true})));
    let (first, second) = (Namespace::new("pod"), Namespace::new("pod"));
    call.clone().netns(&first).call("ADD").success();
    let result = call.clone().netns(&second).call("ADD").success();
    let host_end = result["interfaces"][1]["name"].as_str().unwrap();
    sh(&format!("ip link set {host_end} down name renamed"));
    let third = Namespace::new("pod");
    let result = call.clone().netns(&third).call("ADD").success();
    assert!(!sh("ip -brief link").contains("renamed"), "its alternative name finds it");
    call.netns(&third).with("prevResult", result).call("CHECK").success();
}

#[test]
fn gc_removes_only_what_nobody_claims() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    let pods = [0, 1, 2].map(|_| Namespace::new("pod"));
    let call = CniCall::new("cnv-bridge", config(json!({"cniVersion": "1.1.0", "macspoofchk": true})));
    for (number, pod) in pods.iter().enumerate() {
        let call = call.clone().netns(pod).container(&format!("c{number}"));
        let network = if number == 2 { "other" } else { "net" };
        call.with("name", network.into()).call("ADD").success();
    }
    let valid = json!([{"containerID": "c0", "ifname": "net2"}, {"containerID": "c1", "ifname": "net1"}]);
    call.clone().with("cni.dev/valid-attachments", valid).call("GC").success();
    let links = |pod: &Namespace| pod.sh("ip -brief link").lines().count();
    assert_eq!(pods.each_ref().map(links), [1, 2, 2]);
    assert_eq!(sh("nft list ruleset").matches("comment \"guestwire").count(), 2);
    assert_eq!(call.call("GC").error().0, 7, "a GC that names no valid attachment removes nothing");
}

#[test]
fn check_names_the_first_difference() {
    let _sandbox = Sandbox::enter();
    let _host = bridge_with_a_host();
    sh("ip link add br2 up type bridge");
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config(json!({"macspoofchk": true, "mtu": 1400}))).netns(&pod);
    let result = call.call("ADD").success();
    let check = call.clone().with("prevResult", result.clone());
    check.call("CHECK").success();
    let host = result["interfaces"][1]["name"].as_str().unwrap();
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    let changes = [
        (
            format!("ip link set {host} alias x"),
            format!("ip link set {host} alias {}", alias(host)),
            "alias of",
        ),
        (format!("ip link set {host} down"), format!("ip link set {host} up"), "state of"),
        (format!("ip link set {host} mtu 1300"), format!("ip link set {host} mtu 1400"), "MTU of veth"),
        (
            format!("ip link set {host} master br2"),
            format!(
                "ip link set {host} master br1; ip link set {host} type bridge_slave group_fwd_mask 0xfffd"
            ),
            "master of",
        ),
        (
            format!("ip link set {host} type bridge_slave group_fwd_mask 0"),
            format!("ip link set {host} type bridge_slave group_fwd_mask 0xfffd"),
            "mask of forwarded groups of",
        ),
        (
            "nft add table bridge cnv-bridge { flags dormant ; }".to_owned(),
            "nft add table bridge cnv-bridge".to_owned(),
            "is not in force",
        ),
        (
            format!("nft add element bridge cnv-bridge macs {{ {host} . 02:00:00:00:00:99 }}"),
            format!("nft delete element bridge cnv-bridge macs {{ {host} . 02:00:00:00:00:99 }}"),
            "is not ours",
        ),
        (
            format!("nft delete element bridge cnv-bridge macs {{ {host} . {mac} }}"),
            format!("nft add element bridge cnv-bridge macs {{ {host} . {mac} }}"),
            "is not ours",
        ),
        (
            format!("nft delete element bridge cnv-bridge mac-checked {{ {host} }}"),
            format!("nft add element bridge cnv-bridge mac-checked {{ {host} }}"),
            "is absent",
        ),
        (
            format!("nft add element bridge cnv-bridge ip-checked {{ {host} }}"),
            format!("nft delete element bridge cnv-bridge ip-checked {{ {host} }}"),
            "without IP addresses",
        ),
        ("nft add rule bridge cnv-bridge mac-check accept".to_owned(), String::new(), "is not ours"),
        ("nft flush table bridge cnv-bridge".to_owned(), String::new(), "is not ours"),
        ("nft delete table bridge cnv-bridge".to_owned(), String::new(), "is absent"),
    ];
    for (change, restore, message) in changes {
        // An alias has blanks, which the words of a line cannot.
        change_by_words(&change);
        let (code, text) = check.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        if !restore.is_empty() {
            restore.split("; ").for_each(change_by_words);
            check.call("CHECK").success();
        }
    }
    call.call("DEL").success();
    let call = call.with("cniVersion", "1.1.0".into());
    let result = call.call("ADD").success();
    let check = call.clone().with("prevResult", result.clone());
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    for (change, restore, message) in [
        ("ip link set net1 mtu 1300", "ip link set net1 mtu 1400", "MTU of net1"),
        (
            "ip link set net1 address 02:00:00:00:00:66",
            &format!("ip link set net1 address {mac}"),
            "address of net1",
        ),
        ("ip link set net1 down", "ip link set net1 up", "state of net1"),
        ("ip link del net1", "true", "absent"),
    ] {
        pod.sh(change);
        let (_, text) = check.call("CHECK").error();
        assert!(text.contains(message), "{change}: {text}");
        pod.sh(restore);
    }
    assert_eq!(call.call("CHECK").error().0, 7, "without prevResult there is nothing to compare with");
}

fn alias(link: &str) -> String {
    std::fs::read_to_string(format!("/sys/class/net/{link}/ifalias")).unwrap().trim().to_owned()
}

fn change_by_words(line: &str) {
    match line.split_once(" alias ") {
        Some((command, alias)) => {
            let mut words = command.split_whitespace();
            let mut command = std::process::Command::new(words.next().unwrap());
            e2e::run(command.args(words).arg("alias").arg(alias));
        }
        None => drop(sh(line)),
    }
}
