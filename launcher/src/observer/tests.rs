//! The observer against a real kernel: a veth pair whose far end, in a namespace of its own, is the guest.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use tokio::time::timeout;

use super::*;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 0x42]);
/// Far beyond what anything here takes; ends a test that would hang.
const LIMIT: Duration = Duration::from_secs(60);

/// Two namespaces, joined: `tap0` in one, `eth0` with the guest's MAC in the other.
struct Link {
    host: NetNs,
    guest: NetNs,
    directory: PathBuf,
}

impl Link {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("observer-{}-{test}", std::process::id()));
        let link = Self {
            host: NetNs::create(directory.join("host")).unwrap(),
            guest: NetNs::create(directory.join("guest")).unwrap(),
            directory,
        };
        let guest = link.directory.join("guest");
        link.host
            .run(|| {
                ip(&format!(
                    "link add tap0 type veth peer name eth0 address {GUEST} netns {}",
                    guest.display()
                ));
            })
            .unwrap();
        link.host.run(|| ip("link set tap0 up")).unwrap();
        link
    }

    fn in_guest(&self, arguments: &str) {
        self.guest.run(|| ip(arguments)).unwrap();
    }

    fn observer(&self, expected: &[&str]) -> Observer {
        let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        Observer::new(&self.host, &"tap0".parse().unwrap(), GUEST, &expected).unwrap()
    }

    /// Makes the guest look for a neighbour, as it does before it talks to one.
    fn talk(&self, to: &str) {
        let socket = self.guest.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        socket.send_to(b"x", (to, 9)).unwrap();
    }

    fn socket(&self, netns: &NetNs, link: &str) -> PacketSocket {
        assert!(netns.path().starts_with(&self.directory));
        netns.run(|| PacketSocket::open(&link.parse().unwrap())).unwrap().unwrap()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        NetNs::remove(&self.directory.join("host")).unwrap();
        NetNs::remove(&self.directory.join("guest")).unwrap();
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

fn play(scene: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scene);
}

struct Seen(watch::Receiver<Vec<IpAddr>>);

impl Seen {
    async fn becomes(&mut self, expected: &[&str]) {
        let reached = timeout(LIMIT, self.0.wait_for(|addresses| texts(addresses) == expected)).await.is_ok();
        assert!(reached, "expected {expected:?}, seen {:?}", texts(&self.0.borrow()));
    }
}

#[test]
fn addresses_follow_what_the_guest_does() {
    let link = Link::new("follow");
    play(async {
        let observer = link.observer(&[]);
        let mut seen = Seen(observer.addresses());
        let watching = tokio::spawn(observer.run());
        link.in_guest("link set eth0 addrgenmode eui64 up");
        seen.becomes(&["fe80::ff:fe00:42"]).await;
        link.in_guest("addr add 10.10.10.14/24 dev eth0");
        link.talk("10.10.10.1");
        seen.becomes(&["10.10.10.14", "fe80::ff:fe00:42"]).await;
        link.in_guest("addr add fd00::14/64 dev eth0");
        seen.becomes(&["10.10.10.14", "fd00::14", "fe80::ff:fe00:42"]).await;
        link.in_guest("addr del 10.10.10.14/24 dev eth0");
        link.in_guest("addr add 10.10.10.15/24 dev eth0");
        link.talk("10.10.10.1");
        seen.becomes(&["10.10.10.15", "fd00::14", "fe80::ff:fe00:42"]).await;
        link.in_guest("addr del fd00::14/64 dev eth0");
        link.in_guest("addr add fd00::15/64 dev eth0");
        seen.becomes(&["10.10.10.15", "fd00::15", "fe80::ff:fe00:42"]).await;
        assert!(!watching.is_finished());
    });
}

#[test]
fn a_silent_guest_is_asked_for_the_address_it_was_given() {
    let link = Link::new("silent");
    link.in_guest("link set eth0 addrgenmode none up");
    link.in_guest("addr add 10.10.10.14/24 dev eth0");
    play(async {
        let observer = link.observer(&["10.10.10.14", "10.10.10.99"]);
        let mut seen = Seen(observer.addresses());
        tokio::spawn(observer.run());
        seen.becomes(&["10.10.10.14"]).await;
    });
}

#[test]
fn the_filter_lets_through_what_is_read_and_nothing_else() {
    let link = Link::new("filter");
    link.in_guest("link set eth0 addrgenmode none up");
    let filtered = link.socket(&link.host, "tap0");
    let guest = link.socket(&link.guest, "eth0");
    let host = link.socket(&link.host, "tap0");
    let arp = sightings::question("10.0.0.1".parse().unwrap(), GUEST);
    let solicitation = sightings::question("fd00::1".parse().unwrap(), GUEST);
    let advertisement = with(&solicitation, 54, 136);
    let dhcpv4 = udp4(68);
    let dhcpv6 = udp6(546);
    for noise in [&with(&solicitation, 54, 134), &with(&arp, 13, 0), &dhcpv4, &dhcpv6, &tagged(&arp)] {
        guest.send(noise).unwrap();
    }
    for noise in [&arp, &solicitation, &udp4(67), &udp6(547), &with(&dhcpv4, 21, 1), &with(&dhcpv4, 23, 6)] {
        host.send(noise).unwrap();
    }
    for frame in [&arp, &solicitation, &advertisement] {
        guest.send(frame).unwrap();
        assert_eq!(next(&filtered), (frame.clone(), Direction::FromGuest));
    }
    for frame in [&dhcpv4, &dhcpv6] {
        host.send(frame).unwrap();
        assert_eq!(next(&filtered), (frame.clone(), Direction::ToGuest));
    }
}

/// Frames on a veth arrive before `send` returns.
fn next(socket: &PacketSocket) -> (Vec<u8>, Direction) {
    let mut buffer = [0; FRAME_BYTES];
    let (frame, direction) = socket.receive(&mut buffer).unwrap();
    (frame.to_vec(), direction)
}

fn with(frame: &[u8], at: usize, byte: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at] = byte;
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [0x81, 0, 0, 5]);
    frame
}

fn udp4(port: u16) -> Vec<u8> {
    let mut frame = vec![2; 60];
    frame[12..16].copy_from_slice(&[8, 0, 0x46, 0]);
    (frame[20], frame[21], frame[23]) = (0, 0, 17);
    frame[14 + 24 + 2..14 + 24 + 4].copy_from_slice(&port.to_be_bytes());
    frame
}

fn udp6(port: u16) -> Vec<u8> {
    let mut frame = vec![2; 70];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[20] = 17;
    frame[56..58].copy_from_slice(&port.to_be_bytes());
    frame
}
