//! The ground of the masquerade tests: a client, a pod, and a guest that is a network namespace on the pod's bridge,
//! where a real guest's tap would be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use e2e::{CniCall, Namespace, Sandbox, sh};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde_json::{Value, json};

pub(crate) const CLIENT_V4: &str = "192.0.2.1";
pub(crate) const CLIENT_V6: &str = "2001:db8::1";
pub(crate) const POD_V4: &str = "192.0.2.10";
pub(crate) const POD_V6: &str = "2001:db8::10";

/// How long a connection may take that will not come about.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the kernel may take to start a link.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// Three hosts: `client` ── eth0 `pod` k6t-eth0 ── eth0 `guest`.
pub(crate) struct Ground {
    pub(crate) client: Namespace,
    pub(crate) pod: Namespace,
    pub(crate) guest: Namespace,
    _sandbox: Sandbox,
}

/// The plugin's configuration with `more` in it.
pub(crate) fn config(more: Value) -> Value {
    let mut config = json!({"cniVersion": "1.1.0", "name": "pod-network", "type": "masquerade"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

impl Ground {
    /// A client and a pod that reach each other by IPv4 and IPv6, and a guest that is not connected yet.
    pub(crate) fn dual_stack() -> Self {
        let ground = Self::without_addresses();
        ground.client.sh(&format!("ip address add {CLIENT_V4}/24 dev eth0"));
        ground.pod.sh(&format!("ip address add {POD_V4}/24 dev eth0"));
        ground.client.sh(&format!("ip address add {CLIENT_V6}/64 dev eth0 nodad"));
        ground.pod.sh(&format!("ip address add {POD_V6}/64 dev eth0 nodad"));
        for address in [POD_V4, POD_V6] {
            until_reached(&ground.client, address);
        }
        ground
    }

    /// The same with no addresses on the wire between client and pod.
    pub(crate) fn without_addresses() -> Self {
        let sandbox = Sandbox::enter();
        let [client, pod, guest] = ["client", "pod", "guest"].map(Namespace::new);
        for host in [&client, &pod, &guest] {
            // An address that is still being checked for duplicates cannot be talked from.
            host.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        }
        let (c, p) = (client.name(), pod.name());
        sh(&format!("ip link add eth0 mtu 9000 netns {p} type veth peer name eth0 mtu 9000 netns {c}"));
        client.sh("ip link set eth0 up");
        pod.sh("ip link set eth0 up");
        Self { client, pod, guest, _sandbox: sandbox }
    }

    /// A call of the plugin for the pod's `eth0`, as a link of a chain.
    pub(crate) fn call(&self, more: Value) -> CniCall {
        CniCall::new("masquerade", config(more)).netns(&self.pod).ifname("eth0")
    }

    /// The plugin's ADD, and a guest with the first NIC's addresses.
    pub(crate) fn connect(&self, more: Value) -> CniCall {
        let call = self.call(more);
        let result = call.call("ADD").success();
        self.join_guest();
        call.with("prevResult", result)
    }

    /// Puts the guest where its tap is; it knows nothing yet.
    pub(crate) fn plug_guest(&self) {
        let (p, g) = (self.pod.name(), self.guest.name());
        sh(&format!("ip link add guest netns {p} type veth peer name eth0 netns {g}"));
        let mtu = link_mtu(&self.pod, "k6t-eth0");
        self.pod.sh(&format!("ip link set guest mtu {mtu} master k6t-eth0 up"));
        self.guest.sh(&format!("ip link set eth0 mtu {mtu} up"));
    }

    /// Plugs the guest in, with the addresses it would be told.
    pub(crate) fn join_guest(&self) {
        self.plug_guest();
        let addresses = self.pod.sh("ip -oneline address show dev k6t-eth0");
        if addresses.contains("10.0.2.1/24") {
            self.guest.sh("ip address add 10.0.2.2/24 dev eth0");
            self.guest.sh("ip route add default via 10.0.2.1");
        }
        if addresses.contains("fd10:0:2::1/120") {
            self.guest.sh("ip address add fd10:0:2::2/120 dev eth0 nodad");
            self.guest.sh("ip -6 route add default via fd10:0:2::1");
        }
        for gateway in ["10.0.2.1", "fd10:0:2::1"].into_iter().filter(|gateway| addresses.contains(gateway)) {
            until_reached(&self.guest, gateway);
        }
    }
}

/// The kernel starts a link some time after it got its carrier, and drops what is sent before.
pub(crate) fn until_reached(from: &Namespace, address: &str) {
    e2e::eventually("the link is started", STARTED_WITHIN, || pings(from, address, 56).then_some(()));
}

pub(crate) fn link_mtu(host: &Namespace, link: &str) -> String {
    let links: Value = serde_json::from_str(&host.sh(&format!("ip -json link show dev {link}"))).unwrap();
    links[0]["mtu"].to_string()
}

/// Opens a TCP connection from one host to a server on another, by `address`; the server tells whom it saw. None if
/// the connection does not come about, or reaches somebody else.
pub(crate) fn tcp(from: &Namespace, address: &str, port: u16, server: &Namespace) -> Option<IpAddr> {
    let address: IpAddr = address.parse().unwrap();
    let listener = server.netns().run(|| TcpListener::bind(any(address, port))).unwrap();
    let listener = listener.unwrap_or_else(|error| panic!("{} port {port}: {error}", server.name()));
    let connect = || TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE);
    let _stream = from.netns().run(connect).unwrap().ok()?;
    // The client's handshake is done; the server's side is at most moments away, unless it was somebody else's.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(3)).unwrap();
    listener.accept().ok().map(|(_, peer)| peer.ip())
}

/// Sends a datagram to a server and gets it back; the server tells whom it saw.
pub(crate) fn udp(from: &Namespace, address: &str, port: u16, server: &Namespace) -> Option<IpAddr> {
    let address: IpAddr = address.parse().unwrap();
    let open = |host: &Namespace, port: u16| {
        let socket = host.netns().run(|| UdpSocket::bind(any(address, port))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let (client, server) = (open(from, 0), open(server, port));
    client.send_to(b"ping", (address, port)).ok()?;
    let mut buffer = [0; 16];
    let (length, peer) = server.recv_from(&mut buffer).ok()?;
    server.send_to(&buffer[..length], peer).unwrap();
    let (length, answered_by) = client.recv_from(&mut buffer).ok()?;
    assert_eq!((&buffer[..length], answered_by.ip()), (&b"ping"[..], address));
    Some(peer.ip())
}

/// One echo request, of `size` bytes of payload that must not be fragmented on the way.
pub(crate) fn pings(from: &Namespace, address: &str, size: usize) -> bool {
    let size = size.to_string();
    let arguments = ["-c", "1", "-W", "1", "-M", "do", "-s", &size, address];
    e2e::output(from.command("ping").args(arguments)).status.success()
}

fn any(address: IpAddr, port: u16) -> SocketAddr {
    let any =
        if address.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, port)
}

/// An address as a test writes it.
pub(crate) fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}
