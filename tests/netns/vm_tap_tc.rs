//! `vm-tap` in `tc` mode joins a tap and the pod interface without a bridge, and can take itself away again.

use std::fs;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Duration;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, eventually, furnish, set_silence, sh, silence};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use serde_json::{Value, json};

/// `pod` and eleven digits of the SHA-256 of "blue", as KubeVirt names the pod interface of network "blue".
const POD: &str = "pod16477688c0e";
const TAP: &str = "tap16477688c0e";
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
/// EtherType for experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

struct Wired {
    pod: Namespace,
    bridge: CniCall,
    tap: CniCall,
}

/// A pod on `br1`, its interface `POD`, ready for `vm-tap`.
fn bridged() -> Wired {
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true,
        "mtu": 1400, "args": {"cni": {"mac": "02:00:00:00:00:05"}},
    });
    let bridge = CniCall::new("cnv-bridge", conf).netns(&pod).ifname(POD);
    let result = bridge.call("ADD").success();
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vm-tap", "mode": "tc", "owner": 4242, "queues": 2});
    let tap = CniCall::new("vm-tap", conf).netns(&pod).ifname(POD).with("prevResult", result.clone());
    Wired { pod, bridge: bridge.with("prevResult", result), tap }
}

/// Where vm-tap writes down what an interface was.
const RECORDS: &str = "/run/guestwire/vm-tap";

/// All there is in the pod, and the records.
fn look(pod: &Namespace) -> Snapshot {
    pod.netns().run(|| Snapshot::take(&[Path::new(RECORDS)])).unwrap()
}

fn unchanged(pod: &Namespace, before: &Snapshot) {
    pod.netns().run(|| before.assert_unchanged()).unwrap();
    assert!(!pod.sh("tc qdisc show").contains("ingress"));
}

fn frame(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    [&destination[..], &source, &EXPERIMENT, &[0; 46]].concat()
}

#[test]
fn frames_pass_both_ways_and_the_pod_keeps_what_it_was() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge, tap } = bridged();
    furnish(&pod, POD);
    let result = tap.call("ADD").success();
    let names: Vec<_> =
        result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names[2..], [json!(POD), json!(TAP)]);
    let shown = pod.sh(&format!("ip -o -d link show {TAP}"));
    assert!(
        shown.contains("user 4242") && shown.contains("multi_queue") && shown.contains("mtu 1400"),
        "{shown}"
    );
    let kept = pod.sh(&format!("ip -o address show dev {POD}"));
    assert!(kept.contains("192.0.2.7/24") && kept.contains("2001:db8::7/64"), "{kept}");
    assert!(pod.sh(&format!("ip link show {POD}")).contains("02:00:00:00:00:05"));
    tap.call("CHECK").success();
    bridge.call("CHECK").success();

    let elsewhere = Namespace::new("host");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", elsewhere.name()));
    sh("ip link set uplink up master br1");
    elsewhere.sh("ip link set eth0 address 02:00:00:00:00:09 up");
    eventually("the port forwards", Duration::from_secs(10), || {
        sh("bridge -d link show dev uplink").contains("state forwarding").then_some(())
    });
    // Stands in for the guest.
    let queue = pod.netns().run(|| tap::Queue::open(&TAP.parse().unwrap(), true)).unwrap().unwrap();
    let listener = elsewhere
        .netns()
        .run(|| {
            let all = Some(SockProtocol::EthAll);
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap()
        })
        .unwrap();
    setsockopt(&listener, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(20, 0)).unwrap();
    let header = vec![0; usize::from(tap::VNET_HEADER_LENGTH)];
    let sent = frame([0xff; 6], MAC);
    nix::unistd::write(&queue, &[&header[..], &sent].concat()).unwrap();
    let mut heard = vec![0; 2048];
    loop {
        let length = recv(listener.as_raw_fd(), &mut heard, MsgFlags::empty()).expect("a frame within 20 s");
        if heard[..length] == sent {
            break;
        }
    }
    // And back: the pod does not answer for its address, the guest hears the question. The kernel lets a tap send some
    // time after it got its carrier.
    elsewhere.sh("ip address add 192.0.2.1/24 dev eth0");
    eventually("the guest hears who asks for its address", Duration::from_secs(30), || {
        let ping = elsewhere.command("ping").args(["-c", "1", "-W", "1", "192.0.2.7"]).output().unwrap();
        assert!(!ping.status.success(), "the pod answered in the guest's place");
        let mut hear =
            || queue.file().read(&mut heard).ok().map(|length| heard[header.len()..length].to_vec());
        let is_question = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[38..42] == [192, 0, 2, 7];
        std::iter::from_fn(&mut hear).find(is_question)
    });
}

#[test]
fn del_puts_the_pod_interface_back() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge, tap } = bridged();
    for addresses in [false, true] {
        if addresses {
            furnish(&pod, POD);
        }
        let before = look(&pod);
        tap.call("ADD").success();
        assert_eq!(tap.call("ADD").error().0, 103);
        tap.call("DEL").success();
        tap.call("DEL").success();
        unchanged(&pod, &before);
    }
    pod.sh("ping -c 1 -W 5 192.0.2.7");
    bridge.call("CHECK").success();
}

#[test]
fn what_a_crash_left_is_put_back_by_del() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge, tap } = bridged();
    furnish(&pod, POD);
    let before = look(&pod);
    let crashes = tap.cut_off_add(|| {
        unchanged(&pod, &before);
        bridge.call("CHECK").success();
    });
    assert_eq!(crashes, 8, "one crash for each change that ADD makes");
    tap.cut_off_del(|| unchanged(&pod, &before));
    tap.call("ADD").success();
    drop(pod);
    tap.call("DEL").success();
    tap.call("DEL").success();
    assert!(!Path::new(RECORDS).exists(), "a record outlives its pod");
    bridge.call("DEL").success();
}

#[test]
fn settings_and_state_are_put_back_whatever_they_were() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    for (no_ipv6, no_arp, state) in
        [("1", "2", "up"), ("0", "0", "up"), ("1", "1", "down"), ("0", "8", "down")]
    {
        set_silence(&pod, POD, [no_ipv6, no_arp]);
        pod.sh(&format!("ip link set {POD} {state}"));
        let before = look(&pod);
        let put_back = || {
            assert_eq!(silence(&pod, POD), [no_ipv6, no_arp]);
            unchanged(&pod, &before);
        };
        tap.call("ADD").success();
        assert_eq!(silence(&pod, POD), ["1", "1"]);
        assert!(pod.sh(&format!("ip link show {POD}")).contains(",UP"));
        tap.call("DEL").success();
        put_back();
        tap.cut_off_add(put_back);
        tap.cut_off_del(put_back);
    }
}

#[test]
fn what_the_guest_is_to_be_told_is_in_the_result() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    furnish(&pod, POD);
    let previous = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": POD, "sandbox": pod.path()}],
        "ips": [{"interface": 0, "address": "192.0.2.7/24", "gateway": "192.0.2.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let chained = tap.clone().with("cniVersion", "1.1.0".into()).with("prevResult", previous);
    let result = chained.call("ADD").success();
    let addresses = ["192.0.2.7/24", "192.0.2.8/24", "198.51.100.9/32", "2001:db8::7/64", "2001:db8:1::7/64"];
    let told = |key: &str, member: &str| {
        let mut told: Vec<_> =
            result[key].as_array().unwrap().iter().map(|one| one[member].to_string()).collect();
        told.sort();
        told
    };
    let mut expected = addresses.map(|address| format!("\"{address}\""));
    expected.sort();
    assert_eq!(told("ips", "address"), expected);
    assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 0), "{result}");
    for route in [
        json!({"dst": "0.0.0.0/0"}),
        json!({"dst": "203.0.113.0/24", "scope": 253}),
        json!({"dst": "10.9.0.0/16", "gw": "203.0.113.5", "mtu": 1300, "advmss": 1200, "scope": 0}),
        json!({"dst": "10.10.0.0/16", "gw": "192.0.2.254", "table": 100, "scope": 0}),
        json!({"dst": "::/0", "gw": "2001:db8::1", "priority": 55, "scope": 0}),
        json!({"dst": "2001:db8:9::/48", "priority": 1024, "scope": 253}),
    ] {
        assert!(result["routes"].as_array().unwrap().contains(&route), "{route} is not in {result}");
    }
    chained.call("DEL").success();
    // As KubeVirt calls it, nobody has told of the interface yet.
    let mut conf = json!({"cniVersion": "1.0.0", "name": "binding", "type": "vm-tap", "mode": "tc"});
    conf["args"] = json!({"cni": {"logicNetworkName": "blue"}});
    let binding = CniCall::new("vm-tap", conf).netns(&pod).ifname("logicnet1");
    let result = binding.call("ADD").success();
    let interface = result["ips"][0]["interface"].as_u64().unwrap();
    assert_eq!(result["interfaces"][usize::try_from(interface).unwrap()]["name"], POD);
    assert!(result["routes"].as_array().unwrap().contains(&json!({"dst": "::/0", "gw": "2001:db8::1"})));
    binding.call("DEL").success();
    // Versions before 0.3.0 have room for one address of each family.
    tap.clone().with("cniVersion", "0.2.0".into()).without_field("prevResult").call("ADD").success();
}

#[test]
fn a_record_that_is_damaged_lost_or_left_behind_does_no_harm() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    furnish(&pod, POD);
    let before = look(&pod);
    let record = format!("{RECORDS}/c1:{POD}.json");
    tap.call("ADD").success();
    let whole = fs::read(&record).unwrap();
    for damage in [
        "",
        "{",
        "[]",
        r#"{"version":2,"network":"net","values":{}}"#,
        r#"{"version":1,"network":"net","values":{"up":true}}"#,
    ] {
        fs::write(&record, damage).unwrap();
        for verb in ["DEL", "CHECK"] {
            let (code, message) = tap.call(verb).error();
            assert!(code == 114 && message.contains(&record), "{verb} {damage}: {message}");
        }
    }
    fs::write(&record, whole).unwrap();
    tap.call("DEL").success();
    unchanged(&pod, &before);
    // Without it, what an earlier release did is done.
    tap.call("ADD").success();
    fs::remove_file(&record).unwrap();
    tap.call("CHECK").success();
    tap.call("DEL").success();
    unchanged(&pod, &before);
    // One of a DEL that was missed is not the next pod's.
    tap.call("ADD").success();
    let other = Namespace::new("other");
    other.sh(&format!("ip link add {POD} address 02:00:00:00:00:05 up type veth peer name far"));
    let untouched = other.netns().run(|| Snapshot::take(&[])).unwrap();
    let next = tap.clone().netns(&other);
    next.call("ADD").success();
    next.call("DEL").success();
    other.netns().run(|| untouched.assert_unchanged()).unwrap();
}

#[test]
fn a_route_that_can_no_longer_be_made_is_named_and_the_others_are_put_back() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, tap, .. } = bridged();
    pod.sh("ip link add other type veth peer name far");
    pod.sh("ip link set other up");
    for (address, link) in [("192.0.2.2/24", POD), ("198.51.100.2/24", "other")] {
        pod.sh(&format!("ip address add {address} dev {link}"));
    }
    // Its source is the other link's.
    pod.sh(&format!("ip route add 203.0.113.0/24 via 192.0.2.1 dev {POD} src 198.51.100.2"));
    pod.sh(&format!("ip route add 10.9.0.0/16 via 192.0.2.9 dev {POD}"));
    tap.call("ADD").success();
    pod.sh("ip link del other");
    let answer = tap.call("DEL");
    assert!(answer.stderr.contains("the route to 203.0.113.0/24 through"), "{}", answer.stderr);
    answer.success();
    let routes = pod.sh("ip route");
    assert!(routes.contains(&format!("10.9.0.0/16 via 192.0.2.9 dev {POD}")), "{routes}");
    assert!(!Path::new(RECORDS).exists(), "it is named once: no later DEL could make it either");
}

#[test]
fn gc_removes_the_records_of_what_is_gone() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    let tap = tap.with("cniVersion", "1.1.0".into());
    tap.call("ADD").success();
    let gc = |network: &str, valid: Value| {
        tap.clone()
            .with("name", network.into())
            .with("cni.dev/valid-attachments", valid)
            .call("GC")
            .success();
        Path::new(RECORDS).join(format!("c1:{POD}.json")).exists()
    };
    assert!(gc("net", json!([{"containerID": "c1", "ifname": POD}])));
    assert!(gc("other", json!([])), "the record is another network's");
    drop(pod);
    assert!(!gc("net", json!([{"containerID": "c1", "ifname": "net1"}])));
}

#[test]
fn check_names_the_first_difference() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    assert!(tap.call("CHECK").error().1.contains("not turned into a tap"));
    tap.call("ADD").success();
    // What it is to be is what changes here: the tap's own settings cannot be changed while it is there.
    for (key, value, message) in [
        ("owner", Value::from(4243), "owner of tap16477688c0e is user 4242, expected user 4243"),
        ("owner", Value::Null, "owner of tap16477688c0e is user 4242, expected nobody"),
        ("group", Value::from(77), "group of tap16477688c0e is nobody, expected group 77"),
        ("queues", Value::from(1), "queues of tap16477688c0e is more than one, expected one"),
        ("mode", Value::from("bridge"), "mode of tap16477688c0e is tc, expected bridge"),
    ] {
        let (code, text) = tap.clone().with(key, value).call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{key}: {text}");
    }
    tap.call("DEL").success();
    let grouped = tap.clone().with("group", 77.into()).with("queues", 1.into());
    grouped.call("ADD").success();
    grouped.call("CHECK").success();
    assert!(tap.clone().with("queues", 1.into()).call("CHECK").error().1.contains("group of tap"));
    assert!(tap.clone().with("group", 77.into()).call("CHECK").error().1.contains("queues of tap"));
    grouped.call("DEL").success();
    let set = |file: &str, value: &str| format!("sysctl -q -w net.{file}={value}");
    for (change, message) in [
        (format!("tc qdisc del dev {POD} ingress"), "redirection of pod16477688c0e"),
        (format!("tc filter del dev {TAP} ingress"), "redirection of tap16477688c0e"),
        (format!("ip link set {TAP} down"), "state of tap"),
        (format!("ip link set {POD} down"), "state of pod"),
        (format!("ip link set {POD} mtu 1300"), "MTU of tap"),
        (set(&format!("ipv4.conf.{TAP}.arp_ignore"), "0"), "arp_ignore of tap"),
        (set(&format!("ipv6.conf.{TAP}.disable_ipv6"), "0"), "disable_ipv6 of tap"),
        (set(&format!("ipv4.conf.{POD}.arp_ignore"), "0"), "arp_ignore of pod"),
        (set(&format!("ipv6.conf.{POD}.disable_ipv6"), "0"), "disable_ipv6 of pod"),
        (format!("ip link set {TAP} mtu 1290"), "MTU of tap"),
        (format!("ip link set {POD} address 02:00:00:00:00:66"), "address of pod"),
        (format!("ip link del {TAP}"), "is absent"),
        (
            format!("ip address del 192.0.2.8/24 dev {POD}"),
            "address 192.0.2.8/24 of pod16477688c0e is absent",
        ),
    ] {
        if change.starts_with("ip address") {
            furnish(&pod, POD);
        }
        tap.call("ADD").success();
        tap.call("CHECK").success();
        pod.sh(&change);
        let (code, text) = tap.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        tap.call("DEL").success();
    }
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_touched() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    let refused = |call: &CniCall, code: u64, message: &str| {
        let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
        let error = call.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "expected {code} {message}, got {error:?}");
        pod.netns().run(|| before.assert_unchanged()).unwrap();
    };
    refused(&tap.clone().with("mode", "macvtap".into()), 7, "mode: is \"macvtap\"; allowed: bridge, tc");
    refused(&tap.clone().with("mode", Value::from(1)), 6, "mode cannot be read");
    pod.sh(&format!("tc qdisc add dev {POD} ingress"));
    refused(&tap, 103, "has an ingress queueing discipline");
    assert!(pod.sh("tc qdisc show").contains("ingress"), "another's queueing discipline is gone");
    pod.sh(&format!("tc qdisc del dev {POD} ingress"));
    pod.sh(&format!("ip link add {TAP} type bridge"));
    refused(&tap, 103, "that vm-tap did not make");
}
