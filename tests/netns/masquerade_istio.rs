//! `masquerade` beside an Istio sidecar. The proxy is played by listeners of the test, and the redirection that Istio's
//! init container installs by these rules, as `istio-iptables` writes them for the default REDIRECT mode:
//!
//! * inbound: TCP to the pod goes to port 15006, but for 22, 15008, 15020, 15021 and 15090;
//! * the proxy's own connections (user 1337) from 127.0.0.6 to the pod's address are left alone.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::json;

use crate::masquerade_ground::{CLIENT_V4, Ground, POD_V4, ip, tcp};

const PROXY: u16 = 15006;

/// A pod whose inbound TCP belongs to the proxy.
fn meshed(ground: &Ground) {
    let rules = [
        "add table ip istio",
        "add chain ip istio prerouting { type nat hook prerouting priority -100; }",
        "add rule ip istio prerouting iifname eth0 tcp dport { 22, 15008, 15020, 15021, 15090 } return",
        "add rule ip istio prerouting iifname eth0 ip protocol tcp redirect to :15006",
    ];
    for rule in rules {
        ground.pod.sh(&format!("nft {rule}"));
    }
}

#[test]
fn what_comes_in_goes_by_way_of_the_proxy_but_ssh() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"istio": true}));
    meshed(&ground);
    let Ground { client, pod, guest, .. } = &ground;
    let proxy = pod.netns().run(|| TcpListener::bind(("0.0.0.0", PROXY))).unwrap().unwrap();
    let call =
        || TcpStream::connect_timeout(&SocketAddr::new(ip(POD_V4).unwrap(), 80), Duration::from_secs(5));
    client.netns().run(call).unwrap().expect("the proxy takes it");
    assert_eq!(ip(CLIENT_V4), Some(proxy.accept().unwrap().1.ip()));
    assert_eq!(tcp(client, POD_V4, 22, guest), ip(CLIENT_V4), "ssh goes straight to the guest");
}

#[test]
fn what_the_proxy_hands_on_reaches_the_guest() {
    for more in [json!({"istio": true}), json!({"istio": true, "ports": [{"port": 80}]})] {
        let ground = Ground::dual_stack();
        ground.connect(more);
        meshed(&ground);
        let Ground { pod, guest, .. } = &ground;
        let server = guest.netns().run(|| TcpListener::bind("0.0.0.0:80")).unwrap().unwrap();
        // Envoy's inbound passthrough: from 127.0.0.6 to the address the client asked for.
        let from_envoy = || {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let envoy = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 6), 0);
            bind(socket.as_raw_fd(), &SockaddrIn::from(envoy))?;
            let to = SocketAddrV4::new(POD_V4.parse().unwrap(), 80);
            connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
            Ok::<_, nix::Error>(socket)
        };
        let _stream = pod.netns().run(from_envoy).unwrap().expect("the guest answers");
        assert_eq!(Some(server.accept().unwrap().1.ip()), ip("10.0.2.1"));
        drop(server);
        assert_eq!(tcp(pod, "127.0.0.1", 80, guest), ip("10.0.2.1"), "older proxies use loopback");
    }
}

#[test]
fn the_proxy_s_own_ports_stay_its_own() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"istio": true}));
    let Ground { pod, guest, .. } = &ground;
    for port in [15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090] {
        assert_eq!(tcp(pod, "127.0.0.1", port, pod), ip("127.0.0.1"), "port {port}");
        assert_eq!(tcp(pod, POD_V4, port, pod), ip(POD_V4), "port {port}");
    }
    assert_eq!(tcp(pod, "127.0.0.1", 80, guest), ip("10.0.2.1"));
}
