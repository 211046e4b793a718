//! `vm-tap` in `tc` mode joins a tap and the pod interface without a bridge, and can take itself away again.

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, eventually, sh};
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

fn with_addresses(pod: &Namespace) {
    pod.sh(&format!("ip address add 192.0.2.7/24 brd + dev {POD}"));
    pod.sh(&format!("ip address add 2001:db8::7/64 dev {POD} nodad"));
    // The kernel makes the route to it a little later.
    let is_routed = || pod.sh("ip -6 route show table local").contains("2001:db8::7 ").then_some(());
    eventually("a local route to 2001:db8::7", Duration::from_secs(10), is_routed);
}

fn frame(destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
    [&destination[..], &source, &EXPERIMENT, &[0; 46]].concat()
}

#[test]
fn frames_pass_both_ways_and_the_pod_keeps_what_it_was() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge, tap } = bridged();
    with_addresses(&pod);
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
            with_addresses(&pod);
        }
        let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
        tap.call("ADD").success();
        assert_eq!(tap.call("ADD").error().0, 103);
        tap.call("DEL").success();
        tap.call("DEL").success();
        pod.netns().run(|| before.assert_unchanged()).unwrap();
        assert!(!pod.sh("tc qdisc show").contains("ingress"));
    }
    pod.sh("ping -c 1 -W 5 192.0.2.7");
    bridge.call("CHECK").success();
}

#[test]
fn what_a_crash_left_is_put_back_by_del() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge, tap } = bridged();
    with_addresses(&pod);
    let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
    let mut crashes = 0;
    while tap.clone().var("GUESTWIRE_CRASH_AFTER", (crashes + 1).to_string()).call("ADD").code != Some(0) {
        crashes += 1;
        assert!(crashes < 50, "the crashes never end");
        tap.call("DEL").success();
        pod.netns().run(|| before.assert_unchanged()).unwrap();
        assert!(!pod.sh("tc qdisc show").contains("ingress"));
        bridge.call("CHECK").success();
    }
    assert_eq!(crashes, 7, "one crash for each change that ADD makes");
    tap.cut_off_del(|| pod.netns().run(|| before.assert_unchanged()).unwrap());
    tap.call("ADD").success();
    drop(pod);
    tap.call("DEL").success();
    bridge.call("DEL").success();
}

#[test]
fn check_names_the_first_difference() {
    let _sandbox = Sandbox::enter();
    let Wired { pod, bridge: _, tap } = bridged();
    assert!(tap.call("CHECK").error().1.contains("not turned into a tap"));
    for (change, message) in [
        (format!("tc qdisc del dev {POD} ingress"), "redirection of pod16477688c0e"),
        (format!("tc filter del dev {TAP} ingress"), "redirection of tap16477688c0e"),
        (format!("ip link set {TAP} down"), "state of tap"),
        (format!("ip link set {TAP} mtu 1300"), "MTU of tap"),
        (format!("ip link set {POD} address 02:00:00:00:00:66"), "address of pod"),
        (format!("ip link del {TAP}"), "is absent"),
    ] {
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
