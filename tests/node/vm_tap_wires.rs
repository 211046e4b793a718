//! `vm-tap` turns a pod interface into a tap, keeps the bridge port behind it right, and can put everything back.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, furnish, set_silence, sh, silence};
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

/// All there is in the pod, and what vm-tap has written down.
fn look(pod: &Namespace) -> Snapshot {
    pod.netns().run(|| Snapshot::take(&[Path::new("/run/guestwire/vm-tap")])).unwrap()
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
    let refused = sh("nft list counters table bridge cnv-bridge");
    assert!(refused.contains("packets 1 "), "{refused}");
}

#[test]
fn del_puts_the_pod_interface_back_with_its_addresses() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge, tap } = bridged();
    furnish(&pod, POD);
    let before = look(&pod);
    tap.call("ADD").success();
    let dummy = pod.sh(&format!("ip -o address show dev {POD}"));
    for address in ["192.0.2.7/24", "192.0.2.8/24", "198.51.100.9/32", "2001:db8::7/64", "2001:db8:1::7/64"] {
        assert!(dummy.contains(address), "{address} is not in {dummy}");
    }
    let nic = pod.sh(&format!("ip -o address show dev {HASH}-nic"));
    assert_eq!(nic, "", "the pod has addresses on the guest's wire");
    tap.call("CHECK").success();
    tap.call("DEL").success();
    tap.call("DEL").success();
    pod.netns().run(|| before.assert_unchanged()).unwrap();
    bridge.call("CHECK").success();
    bridge.call("DEL").success();
}

#[test]
fn settings_and_state_are_put_back_whatever_they_were() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    for (no_ipv6, no_arp, state) in [("1", "2", "up"), ("0", "8", "down")] {
        set_silence(&pod, POD, [no_ipv6, no_arp]);
        pod.sh(&format!("ip link set {POD} {state}"));
        let before = look(&pod);
        let put_back = || {
            assert_eq!(silence(&pod, POD), [no_ipv6, no_arp]);
            pod.netns().run(|| before.assert_unchanged()).unwrap();
        };
        tap.call("ADD").success();
        assert_eq!(silence(&pod, &format!("{HASH}-nic")), ["1", "1"]);
        tap.cut_off_del(put_back);
    }
}

#[test]
fn the_result_tells_what_the_guest_takes_over() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    furnish(&pod, POD);
    let result = tap.call("ADD").success();
    let ips = result["ips"].as_array().unwrap();
    assert!(ips.contains(&json!({"interface": 2, "address": "192.0.2.7/24"})), "{result}");
    let routes = result["routes"].as_array().unwrap();
    for route in [json!({"dst": "0.0.0.0/0", "gw": "192.0.2.1"}), json!({"dst": "::/0", "gw": "2001:db8::1"})]
    {
        assert!(routes.contains(&route), "{result}");
    }
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
    furnish(&pod, POD);
    let before = look(&pod);
    let crashes = tap.cut_off_add(|| {
        pod.netns().run(|| before.assert_unchanged()).unwrap();
        bridge.call("CHECK").success();
    });
    assert!(crashes >= 15, "one crash for each change that ADD makes, but there were {crashes}");
    tap.cut_off_del(|| pod.netns().run(|| before.assert_unchanged()).unwrap());
}

#[test]
fn check_names_the_first_difference() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let Wired { pod, bridge: _, tap } = bridged();
    assert!(tap.call("CHECK").error().1.contains("not turned into a tap"));
    furnish(&pod, POD);
    let before = look(&pod);
    tap.call("ADD").success();
    tap.call("CHECK").success();
    tap.call("DEL").success();
    let (nic, device, bridge) = (format!("{HASH}-nic"), format!("tap{HASH}"), format!("k6t-{HASH}"));
    let set = |file: &str, value: &str| format!("sysctl -q -w net.{file}={value}");
    for (change, message) in [
        (format!("ip link set {device} nomaster"), "master of tap"),
        (format!("ip link set {device} down"), "state of tap"),
        (format!("ip link set {device} mtu 1300"), "MTU of tap"),
        (set(&format!("ipv4.conf.{device}.arp_ignore"), "0"), "arp_ignore of tap"),
        (set(&format!("ipv6.conf.{device}.disable_ipv6"), "0"), "disable_ipv6 of tap"),
        (format!("ip link set {nic} nomaster"), "master of 16477688c0e-nic"),
        (format!("ip link set {nic} type bridge_slave learning on"), "learning on 16477688c0e-nic"),
        (format!("ip link set {nic} down"), "state of 16477688c0e-nic"),
        (format!("ip link set {nic} mtu 1300"), "MTU of 16477688c0e-nic"),
        (format!("ip link set {nic} address 02:00:00:00:00:66"), "address of 16477688c0e-nic"),
        (
            format!("ip address add 192.0.2.99/24 dev {nic}"),
            "address 192.0.2.99/24 of 16477688c0e-nic is present",
        ),
        (set(&format!("ipv4.conf.{nic}.arp_ignore"), "0"), "arp_ignore of 16477688c0e-nic"),
        (set(&format!("ipv6.conf.{nic}.disable_ipv6"), "0"), "disable_ipv6 of 16477688c0e-nic"),
        (format!("ip link set {bridge} down"), "state of k6t"),
        (format!("ip link set {bridge} mtu 1290"), "MTU of k6t"),
        (format!("ip link set {bridge} address 02:00:00:00:00:66"), "address of 16477688c0e-nic"),
        (format!("ip link set {bridge} type bridge mcast_snooping 1"), "multicast snooping of k6t"),
        (set(&format!("ipv4.conf.{bridge}.arp_ignore"), "0"), "arp_ignore of k6t"),
        (set(&format!("ipv6.conf.{bridge}.disable_ipv6"), "0"), "disable_ipv6 of k6t"),
        (
            format!("ip address del 192.0.2.8/24 dev {POD}"),
            "address 192.0.2.8/24 of pod16477688c0e is absent",
        ),
        (format!("ip link set {POD} address 02:00:00:00:00:66"), "address of pod"),
        (format!("ip link del {device}"), "is absent"),
        (format!("ip link del {bridge}"), "is absent"),
        (format!("ip link del {POD}"), "pod16477688c0e is absent"),
    ] {
        tap.call("ADD").success();
        pod.sh(&change);
        let (code, text) = tap.call("CHECK").error();
        assert!(code == 105 && text.contains(message), "{change}: {text}");
        // What others gave the interface meanwhile is theirs to take.
        if change.starts_with("ip address add") {
            pod.sh(&change.replace(" add ", " del "));
        }
        tap.call("DEL").success();
    }
    // ADD leaves the interface's MTU alone, and so does DEL.
    pod.sh(&format!("ip link set {POD} mtu 1400"));
    pod.netns().run(|| before.assert_unchanged()).unwrap();
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
