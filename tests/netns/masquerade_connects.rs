//! `masquerade` lets the world reach a guest by its pod's address, and the guest the world under it.

use e2e::{Namespace, sh};
use serde_json::json;

use crate::masquerade_ground::{
    CLIENT_V4, CLIENT_V6, Ground, POD_V4, POD_V6, ip, link_mtu, pings, tcp, udp, until_reached,
};

#[test]
fn a_client_reaches_the_guest_and_the_guest_sees_the_client() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let Ground { client, guest, .. } = &ground;
    for (pod, seen) in [(POD_V4, CLIENT_V4), (POD_V6, CLIENT_V6)] {
        assert_eq!(tcp(client, pod, 80, guest), ip(seen), "TCP to {pod}");
        assert_eq!(udp(client, pod, 5353, guest), ip(seen), "UDP to {pod}");
        assert!(pings(client, pod, 56), "ping {pod}");
    }
}

#[test]
fn the_guest_reaches_the_world_with_its_pod_s_address() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 80}]}));
    let Ground { client, guest, .. } = &ground;
    for (address, seen) in [(CLIENT_V4, POD_V4), (CLIENT_V6, POD_V6)] {
        assert_eq!(tcp(guest, address, 443, client), ip(seen), "TCP to {address}");
        assert_eq!(udp(guest, address, 53, client), ip(seen), "UDP to {address}");
        assert!(pings(guest, address, 56), "ping {address}");
    }
}

#[test]
fn the_pod_s_loopback_is_the_guest_s() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let Ground { pod, guest, .. } = &ground;
    assert_eq!(tcp(pod, "127.0.0.1", 80, guest), ip("10.0.2.1"));
    assert_eq!(tcp(pod, "::1", 80, guest), ip("fd10:0:2::1"));
    assert_eq!(udp(pod, "127.0.0.1", 53, guest), ip("10.0.2.1"));
    assert_eq!(udp(pod, "::1", 53, guest), ip("fd10:0:2::1"));
}

#[test]
fn the_guest_reaches_itself_by_its_pod_s_address() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 80}]}));
    let Ground { pod, guest, .. } = &ground;
    assert_eq!(tcp(guest, POD_V4, 80, guest), ip("10.0.2.1"));
    assert_eq!(tcp(guest, POD_V6, 80, guest), ip("fd10:0:2::1"));
    assert_eq!(tcp(guest, POD_V4, 81, pod), ip("10.0.2.2"), "a port that is not listed is the pod's");
}

#[test]
fn listed_ports_are_the_guest_s_and_the_others_the_pod_s() {
    let ground = Ground::dual_stack();
    ground.connect(json!({
        "ports": [{"port": 80, "name": "web"}, {"port": 53, "protocol": "UDP"}],
        "portRanges": [{"start": 8000, "end": 8010}],
    }));
    let Ground { client, pod, guest, .. } = &ground;
    for (from, addresses) in [(client, [POD_V4, POD_V6]), (pod, ["127.0.0.1", "::1"])] {
        for address in addresses {
            for port in [80, 8000, 8010] {
                assert!(tcp(from, address, port, guest).is_some(), "{address} port {port}");
            }
            for port in [53, 79, 8011] {
                assert!(tcp(from, address, port, pod).is_some(), "{address} port {port}");
            }
            assert!(udp(from, address, 53, guest).is_some(), "{address} UDP port 53");
            assert!(udp(from, address, 80, pod).is_some(), "{address} UDP port 80");
        }
    }
}

#[test]
fn a_service_s_translation_in_front_of_the_pod_goes_well_with_ours() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 22}]}));
    let Ground { client, guest, .. } = &ground;
    // What kube-proxy does on the client's node for a ClusterIP with port 27017, targetPort 22.
    client.sh("nft add table ip service");
    client.sh("nft add chain ip service output { type nat hook output priority -100; }");
    client.sh(&format!(
        "nft add rule ip service output ip daddr 10.96.0.9 tcp dport 27017 dnat to {POD_V4}:22"
    ));
    client.sh("ip route add default via 192.0.2.254");
    let listener = guest.netns().run(|| std::net::TcpListener::bind("0.0.0.0:22")).unwrap().unwrap();
    let connect = || std::net::TcpStream::connect("10.96.0.9:27017");
    client.netns().run(connect).unwrap().expect("the service reaches the guest");
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(Some(peer.ip()), ip(CLIENT_V4));
}

#[test]
fn one_family_alone_works_and_the_other_stays_off() {
    for (own, peer, is_v6) in [("192.0.2.10/24", CLIENT_V4, false), ("2001:db8::10/64", CLIENT_V6, true)] {
        let ground = Ground::without_addresses();
        let length = own.split('/').nth(1).unwrap();
        ground.client.sh(&format!("ip address add {peer}/{length} dev eth0"));
        ground.pod.sh(&format!("ip address add {own} dev eth0"));
        let call = ground.connect(json!({}));
        let (address, _) = own.split_once('/').unwrap();
        assert_eq!(tcp(&ground.client, address, 80, &ground.guest), ip(peer));
        assert_eq!(tcp(&ground.guest, peer, 80, &ground.client), ip(address));
        let bridge = ground.pod.sh("ip -oneline address show dev k6t-eth0");
        assert_eq!((bridge.contains("inet "), bridge.contains("inet6 ")), (!is_v6, is_v6), "{bridge}");
        call.call("CHECK").success();
    }
}

#[test]
fn a_changed_pod_address_needs_no_new_add() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let Ground { client, pod, guest, .. } = &ground;
    for (old, new) in [("192.0.2.10/24", "192.0.2.11/24"), ("2001:db8::10/64", "2001:db8::11/64")] {
        pod.sh(&format!("ip address del {old} dev eth0"));
        pod.sh(&format!("ip address add {new} dev eth0 nodad"));
    }
    assert_eq!(tcp(client, "192.0.2.11", 80, guest), ip(CLIENT_V4));
    assert_eq!(tcp(guest, CLIENT_V6, 80, client), ip("2001:db8::11"));
}

#[test]
fn jumbo_frames_pass_end_to_end() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    for link in ["k6t-eth0", "tap0"] {
        assert_eq!(link_mtu(&ground.pod, link), "9000");
    }
    assert!(pings(&ground.client, POD_V4, 9000 - 28));
    assert!(pings(&ground.guest, CLIENT_V6, 9000 - 48));
}

#[test]
fn the_guest_is_told_when_a_packet_is_too_big_for_the_path() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let Ground { client, guest, .. } = &ground;
    // A host behind the client, on a link with a smaller MTU.
    let far = Namespace::new("far");
    sh(&format!(
        "ip link add far mtu 1400 netns {} type veth peer name eth0 mtu 1400 netns {}",
        client.name(),
        far.name()
    ));
    client.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    far.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
    for (gateway, host, route) in [
        ("198.51.100.1/24", "198.51.100.2/24", "192.0.2.0/24"),
        ("2001:db8:f::1/64", "2001:db8:f::2/64", "2001:db8::/64"),
    ] {
        client.sh(&format!("ip address add {gateway} dev far"));
        client.sh("ip link set far up");
        far.sh(&format!("ip address add {host} dev eth0"));
        far.sh("ip link set eth0 up");
        let (gateway, _) = gateway.split_once('/').unwrap();
        far.sh(&format!("ip route add {route} via {gateway}"));
    }
    ground.pod.sh(&format!("ip route add default via {CLIENT_V4}"));
    ground.pod.sh(&format!("ip -6 route add default via {CLIENT_V6}"));
    for address in ["198.51.100.2", "2001:db8:f::2"] {
        until_reached(guest, address);
        assert!(pings(guest, address, 1000), "{address} is there");
        assert!(!pings(guest, address, 2000), "{address} is behind a small MTU");
        let learned = guest.sh(&format!("ip route get {address}"));
        assert!(learned.contains("mtu 1400"), "{learned}");
    }
}

#[test]
fn errors_come_back_to_whom_they_concern() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    // Nobody listens there: the guest's "port unreachable" must reach the client under the pod's address.
    for address in [POD_V4, POD_V6] {
        let socket = ground.client.netns().run(|| std::net::UdpSocket::bind("[::]:0")).unwrap().unwrap();
        let address = if address.contains(':') { address.to_owned() } else { format!("::ffff:{address}") };
        socket.connect((address.as_str(), 9)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket.send(b"x").unwrap();
        let error = socket.recv(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn two_nics_of_a_pod_each_have_their_guest_network() {
    let ground = Ground::dual_stack();
    let Ground { client, pod, guest, .. } = &ground;
    let (c, p) = (client.name(), pod.name());
    sh(&format!("ip link add net1 netns {p} type veth peer name net1 netns {c}"));
    for (host, address) in [(client, "203.0.113.1/24"), (pod, "203.0.113.10/24")] {
        host.sh(&format!("ip address add {address} dev net1"));
        host.sh("ip link set net1 up");
    }
    let first = ground.connect(json!({}));
    let second = ground.call(json!({"vmNetworkCIDR": "10.0.3.0/24"})).ifname("net1");
    let result = second.call("ADD").success();
    assert_eq!(result["interfaces"][0]["name"], "k6t-net1");
    assert_eq!(result["interfaces"][1]["name"], "tap1");
    let (p, g) = (pod.name(), guest.name());
    sh(&format!("ip link add guest1 netns {p} type veth peer name eth1 netns {g}"));
    pod.sh("ip link set guest1 master k6t-net1 up");
    guest.sh("ip address add 10.0.3.2/24 dev eth1");
    guest.sh("ip link set eth1 up");
    guest.sh("ip route add 203.0.113.0/24 via 10.0.3.1");
    assert_eq!(tcp(client, POD_V4, 80, guest), ip(CLIENT_V4));
    assert_eq!(tcp(client, "203.0.113.10", 80, guest), ip("203.0.113.1"));
    assert_eq!(tcp(guest, "203.0.113.1", 80, client), ip("203.0.113.10"));
    assert_eq!(tcp(pod, "127.0.0.1", 80, guest), ip("10.0.2.1"), "loopback belongs to the pod network's NIC");
    second.call("DEL").success();
    first.call("CHECK").success();
    assert_eq!(tcp(client, POD_V4, 80, guest), ip(CLIENT_V4));
}

#[test]
fn kubevirt_s_way_of_calling_finds_the_pod_interface_by_name() {
    let ground = Ground::dual_stack();
    // SHA-256 of "red" begins with b1f51a511f1 (sha256sum).
    for (network, nic, bridge, tap) in [
        ("default", "eth0", "k6t-eth0", "tap0"),
        ("red", "podb1f51a511f1", "k6t-b1f51a511f1", "tapb1f51a511f1"),
    ] {
        if nic != "eth0" {
            ground.pod.sh(&format!("ip link add {nic} type veth peer name other"));
            ground.pod.sh(&format!("ip address add 203.0.113.10/24 dev {nic}"));
        }
        let call = ground.call(json!({
            "vmNetworkCIDR": if nic == "eth0" { "10.0.2.0/24" } else { "10.0.3.0/24" },
            "args": {"cni": {"logicNetworkName": network}},
        }));
        let call = call.ifname("net7").container(network);
        let result = call.call("ADD").success();
        let names: Vec<_> = (0..2).map(|index| &result["interfaces"][index]["name"]).collect();
        assert_eq!(names, [bridge, tap]);
        assert!(!ground.pod.sh("ip link").contains("net7"), "a link of that name would confuse KubeVirt");
        call.with("prevResult", result).call("CHECK").success();
    }
    let rules = ground.pod.sh("nft list tables");
    assert!(rules.contains("masquerade-eth0") && rules.contains("masquerade-podb1f51a511f1"), "{rules}");
}

#[test]
fn the_tap_belongs_to_the_user_who_runs_the_guest() {
    let ground = Ground::dual_stack();
    ground.call(json!({"owner": 60107, "group": 60108, "queues": 4})).call("ADD").success();
    let tap = ground.pod.sh("ip -details link show tap0");
    assert!(tap.contains("user 60107 group 60108") && tap.contains("multi_queue numqueues 0"), "{tap}");
}
