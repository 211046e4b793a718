//! `vm-tap` turns a pod interface into a tap, keeps the bridge port behind it right, and can put everything back.

use std::os::fd::AsRawFd as _;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, sh};
use serde_json::json;

/// `pod` and eleven digits of the SHA-256 of "blue", as KubeVirt names the pod interface of network "blue".
const POD: &str = "pod16477688c0e";
const HASH: &str = "16477688c0e";

struct Wired {
    pod: Namespace,
    bridge: CniCall,
    tap: CniCall,
}

/// A pod on `br1` in VLAN 100, its interface `POD`, ready for `vm-tap`.
fn bridged() -> Wired {
    let pod = Namespace::new("pod");
    let conf = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "vlan": 100,
        "preserveDefaultVlan": false, "macspoofchk": true, "mtu": 1400,
    });
    let bridge = CniCall::new("cnv-bridge", conf).netns(&pod).ifname(POD);
    let result = bridge.call("ADD").success();
    let conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "vm-tap", "owner": 4242, "queues": 2});
    let tap = CniCall::new("vm-tap", conf).netns(&pod).ifname(POD).with("prevResult", result.clone());
    Wired { pod, bridge: bridge.with("prevResult", result), tap }
}

fn field(line: &str, name: &str) -> String {
    let mut words = line.split_whitespace().skip_while(|word| *word != name);
    words.nth(1).unwrap_or_default().to_owned()
}

#[test]
fn the_guest_gets_the_pod_s_address_behind_a_tap_of_its_own_user() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge, tap } = bridged();
    let mac = field(&pod.sh(&format!("ip -o link show {POD}")), "link/ether");
    let result = tap.call("ADD").success();
    let names: Vec<_> =
        result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names[2..], [json!(POD), json!(format!("k6t-{HASH}")), json!(format!("tap{HASH}"))]);
    let shown = |name: &str| pod.sh(&format!("ip -o -d link show {name}"));
    let (nic, link, dummy) = (shown(&format!("{HASH}-nic")), shown(&format!("tap{HASH}")), shown(POD));
    assert!(
        link.contains("tun type tap") && link.contains("user 4242") && link.contains("multi_queue"),
        "{link}"
    );
    assert!(dummy.contains("dummy"), "{dummy}");
    assert_eq!(field(&dummy, "link/ether"), mac);
    assert_ne!(field(&nic, "link/ether"), mac, "two links answer to the guest's address");
    assert!(nic.contains("learning off"), "{nic}");
    for link in [&nic, &link, &dummy] {
        assert_eq!(field(link, "mtu"), "1400");
    }
    tap.call("CHECK").success();
    bridge.call("CHECK").success();
}

#[test]
fn a_guest_s_frames_reach_the_bridge_and_forged_ones_do_not() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    let result = tap.call("ADD").success();
    let mac = result["interfaces"][2]["mac"].as_str().unwrap();
    // Stands in for the guest: an open queue that sends one broadcast frame of each address.
    let queue =
        pod.netns().run(|| tap::Queue::open(&format!("tap{HASH}").parse().unwrap(), true)).unwrap().unwrap();
    let listener = listener_in_vlan_100();
    for sender in ["02:00:00:00:00:66", mac] {
        let sender: net_types::Mac = sender.parse().unwrap();
        let mut frame = vec![0; usize::from(tap::VNET_HEADER_LENGTH)];
        frame.extend([0xff; 6]);
        frame.extend(sender.octets());
        frame.extend([0x88, 0xb5]);
        frame.resize(12 + 60, 0);
        nix::unistd::write(&queue, &frame).unwrap();
    }
    let heard = listener.first_source();
    assert_eq!(heard, mac, "the first frame that came through must be the honest one");
    let rules = sh("nft list ruleset netdev");
    assert!(rules.contains("counter packets 1 "), "{rules}");
}

#[test]
fn del_puts_the_pod_interface_back_with_its_addresses() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge, tap } = bridged();
    for address in ["192.0.2.7/24", "2001:db8::7/64"] {
        pod.sh(&format!(
            "ip address add {address} {} dev {POD} nodad",
            if address.contains('.') { "brd +" } else { "" }
        ));
    }
    let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
    tap.call("ADD").success();
    let dummy = pod.sh(&format!("ip -o address show dev {POD}"));
    assert!(dummy.contains("192.0.2.7/24") && dummy.contains("2001:db8::7/64"), "{dummy}");
    let nic = pod.sh(&format!("ip -o address show dev {HASH}-nic"));
    assert!(!nic.contains("192.0.2.7") && !nic.contains("2001:db8::7"), "{nic}");
    tap.call("DEL").success();
    tap.call("DEL").success();
    pod.netns().run(|| before.assert_unchanged()).unwrap();
    bridge.call("CHECK").success();
    bridge.call("DEL").success();
}

#[test]
fn the_bridge_port_goes_completely_behind_a_tap_that_was_never_deleted() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let before = Snapshot::take(&[]);
    let Wired { pod, bridge, tap } = bridged();
    tap.call("ADD").success();
    bridge.call("DEL").success();
    drop(pod);
    tap.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn kubevirt_s_way_of_calling_finds_the_interface_by_its_network() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge, tap } = bridged();
    let mut conf = json!({"cniVersion": "1.0.0", "name": "binding", "type": "vm-tap", "owner": 4242});
    conf["args"] = json!({"cni": {"logicNetworkName": "blue"}});
    let binding = CniCall::new("vm-tap", conf).netns(&pod).ifname("logicnet1");
    binding.call("ADD").success();
    pod.sh(&format!("ip link show tap{HASH}"));
    binding.call("CHECK").success();
    bridge.call("CHECK").success();
    let (code, message) = tap.call("ADD").error();
    assert!(code == 103 && message.contains("has a tap already"), "{message}");
    binding.call("DEL").success();
    pod.sh(&format!("ip link show {POD} up"));
}

#[test]
fn what_a_crash_left_is_put_back_by_del() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge, tap } = bridged();
    for address in ["192.0.2.7/24", "2001:db8::7/64"] {
        pod.sh(&format!(
            "ip address add {address} {} dev {POD} nodad",
            if address.contains('.') { "brd +" } else { "" }
        ));
    }
    let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
    let mut crashes = 0;
    while tap.clone().var("GUESTWIRE_CRASH_AFTER", (crashes + 1).to_string()).call("ADD").code != Some(0) {
        crashes += 1;
        assert!(crashes < 50, "the crashes never end");
        tap.call("DEL").success();
        pod.netns().run(|| before.assert_unchanged()).unwrap();
        bridge.call("CHECK").success();
    }
    assert!(crashes >= 15, "one crash for each change that ADD makes, but there were {crashes}");
    tap.cut_off_del(|| pod.netns().run(|| before.assert_unchanged()).unwrap());
}

#[test]
fn check_names_the_first_difference() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    assert!(tap.call("CHECK").error().1.contains("not turned into a tap"));
    tap.call("ADD").success();
    let (nic, device, bridge) = (format!("{HASH}-nic"), format!("tap{HASH}"), format!("k6t-{HASH}"));
    for (change, restore, message) in [
        (
            format!("ip link set {device} nomaster"),
            format!("ip link set {device} master {bridge}"),
            "master of tap",
        ),
        (format!("ip link set {device} down"), format!("ip link set {device} up"), "state of tap"),
        (format!("ip link set {device} mtu 1300"), format!("ip link set {device} mtu 1400"), "MTU of tap"),
        (
            format!("ip link set {nic} type bridge_slave learning on"),
            format!("ip link set {nic} type bridge_slave learning off"),
            "learning on",
        ),
        (format!("ip link set {POD} address 02:00:00:00:00:66"), "true".to_owned(), "address of pod"),
        (format!("ip link del {device}"), "true".to_owned(), "is absent"),
    ] {
        pod.sh(&change);
        let (code, text) = tap.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        pod.sh(&restore);
        if restore != "true" {
            tap.call("CHECK").success();
        }
    }
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_touched() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    pod.sh(&format!("ip link add {HASH}-pod type dummy"));
    let before = pod.netns().run(|| Snapshot::take(&[])).unwrap();
    let table = [
        (tap.clone().with("queues", 0.into()), 7, "queues: is 0; allowed: 1 to 256"),
        (tap.clone().with("queues", 257.into()), 7, "queues: is 257"),
        (tap.clone().with("owner", (-1).into()), 7, "owner: is -1"),
        (tap.clone().with("owner", "root".into()), 6, "owner cannot be read"),
        (tap.clone().ifname("absent"), 110, "has no interface absent"),
        (tap.clone().without("CNI_NETNS"), 4, "ADD needs CNI_NETNS"),
        (tap.clone(), 103, "that vm-tap did not make"),
    ];
    for (call, code, message) in table {
        let error = call.call("ADD").error();
        assert!(error.0 == code && error.1.contains(message), "expected {code} {message}, got {error:?}");
        pod.netns().run(|| before.assert_unchanged()).unwrap();
    }
}

/// Hears what is broadcast in VLAN 100.
struct Listener {
    _host: Namespace,
    socket: std::os::fd::OwnedFd,
}

fn listener_in_vlan_100() -> Listener {
    let host = Namespace::new("host");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", host.name()));
    sh("ip link set uplink up master br1");
    sh("bridge vlan add dev uplink vid 100 pvid untagged");
    host.sh("ip link set eth0 up");
    let socket = host.netns().run(open_packet_socket).unwrap();
    // A port that has just come up starts forwarding when the kernel's work queue gets to it.
    e2e::eventually("the port forwards", std::time::Duration::from_secs(10), || {
        sh("bridge -d link show dev uplink").contains("state forwarding").then_some(())
    });
    Listener { _host: host, socket }
}

fn open_packet_socket() -> std::os::fd::OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
    let all = Some(SockProtocol::EthAll);
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(20, 0)).unwrap();
    socket
}

impl Listener {
    /// Source of the first frame of the test's own EtherType (0x88b5, for experiments: IEEE 802).
    fn first_source(&self) -> String {
        let mut frame = [0; 2048];
        loop {
            let length = nix::sys::socket::recv(
                self.socket.as_raw_fd(),
                &mut frame,
                nix::sys::socket::MsgFlags::empty(),
            )
            .expect("a frame within 20 s");
            if length >= 14 && frame[12..14] == [0x88, 0xb5] {
                return net_types::Mac::try_from(&frame[6..12]).unwrap().to_string();
            }
        }
    }
}
