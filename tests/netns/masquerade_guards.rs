//! What `masquerade` keeps apart: reserved ports, the pod's loopback, addresses that are not the guest's.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::json;

use crate::masquerade_ground::{CLIENT_V4, CLIENT_V6, Ground, POD_V4, POD_V6, ip, pings, tcp, udp};

#[test]
fn migration_ports_never_reach_the_guest() {
    for more in [json!({}), json!({"ports": [{"port": 80}]}), json!({"istio": true})] {
        let ground = Ground::dual_stack();
        ground.connect(more.clone());
        let Ground { client, pod, guest, .. } = &ground;
        for port in [49152, 49153] {
            for address in [POD_V4, POD_V6] {
                assert_eq!(tcp(client, address, port, guest), None, "{more}: {address} port {port}");
                assert!(tcp(client, address, port, pod).is_some(), "{more}: it is the pod's");
            }
            for address in ["127.0.0.1", "::1"] {
                assert_eq!(tcp(pod, address, port, guest), None, "{more}: {address} port {port}");
                assert!(tcp(pod, address, port, pod).is_some(), "{more}: it is the pod's");
            }
            assert_eq!(tcp(guest, POD_V4, port, guest), None, "{more}: not even from the guest");
        }
    }
}

#[test]
fn only_tcp_is_reserved_and_only_what_the_network_says() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"reservedPorts": [5000]}));
    let Ground { client, guest, .. } = &ground;
    assert_eq!(tcp(client, POD_V4, 5000, guest), None);
    assert_eq!(udp(client, POD_V4, 5000, guest), ip(CLIENT_V4));
    assert_eq!(tcp(client, POD_V4, 49152, guest), ip(CLIENT_V4));
}

#[test]
fn a_neighbour_that_routes_to_the_guest_s_subnet_gets_nowhere() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 80}]}));
    let Ground { client, guest, .. } = &ground;
    client.sh(&format!("ip route add 10.0.2.0/24 via {POD_V4}"));
    client.sh(&format!("ip route add fd10:0:2::/120 via {POD_V6}"));
    for address in ["10.0.2.2", "fd10:0:2::2"] {
        assert_eq!(tcp(client, address, 80, guest), None, "{address}");
        assert!(!pings(client, address, 56), "{address}");
    }
    assert_eq!(tcp(client, POD_V4, 80, guest), ip(CLIENT_V4));
}

#[test]
fn forged_sources_do_not_leave_the_pod() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let Ground { client, guest, .. } = &ground;
    guest.sh("ip address add 198.51.100.9/32 dev eth0");
    guest.sh("ip -6 address add 2001:db8:bad::9/128 dev eth0 nodad");
    for (forged, server) in [("198.51.100.9", CLIENT_V4), ("2001:db8:bad::9", CLIENT_V6)] {
        let receiver = client.netns().run(|| UdpSocket::bind((server, 5000))).unwrap().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let send = |source: &str| {
            let socket = guest.netns().run(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
            socket.send_to(b"x", (server, 5000)).unwrap();
        };
        send(forged);
        assert!(receiver.recv_from(&mut [0; 1]).is_err(), "{forged} left the pod");
        send(if server.contains(':') { "fd10:0:2::2" } else { "10.0.2.2" });
        receiver.recv_from(&mut [0; 1]).unwrap();
    }
    let rules = ground.pod.sh("nft list chain inet guestwire-masquerade-eth0 forward");
    let counted =
        rules.lines().filter(|line| line.contains("forged") && !line.contains("packets 0 ")).count();
    assert_eq!(counted, 2, "{rules}");
}

#[test]
fn the_guest_has_no_part_in_the_pod_s_loopback() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": 80}]}));
    let Ground { pod, guest, .. } = &ground;
    // A service of the pod's that listens on loopback only, for good reason.
    let private = pod.netns().run(|| UdpSocket::bind("127.0.0.1:5000")).unwrap().unwrap();
    private.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    guest.sh("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    guest.sh("ip route del local 127.0.0.0/8 dev lo table local");
    guest.sh("ip route del local 127.0.0.1 dev lo table local");
    guest.sh("ip route add 127.0.0.1/32 via 10.0.2.1 dev eth0");
    let forger = guest.netns().run(|| UdpSocket::bind("10.0.2.2:0")).unwrap().unwrap();
    forger.send_to(b"x", "127.0.0.1:5000").unwrap();
    assert!(private.recv_from(&mut [0; 1]).is_err(), "the guest reached a private service");
    let rules = pod.sh("nft list chain inet guestwire-masquerade-eth0 unforgeable");
    assert!(!rules.contains("packets 0 "), "the packet was not even sent: {rules}");
}
