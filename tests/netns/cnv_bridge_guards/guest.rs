//! A guest behind a pod's interface that sends whatever bytes it likes, and somebody on the bridge who listens.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use e2e::{Namespace, sh};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::frames::Frame;

/// EtherType for experiments (IEEE 802): the frame that ends a wait.
const MARK: u16 = 0x88b5;

pub(super) struct Guest {
    queue: tap::Queue,
    listener: OwnedFd,
    _elsewhere: Namespace,
}

impl Guest {
    /// Joins a tap to the pod's interface `net1` by a bridge that says nothing itself, and listens on `br1`.
    pub(super) fn behind(pod: &Namespace) -> Self {
        // Frames that one CPU sends and receives cannot overtake each other.
        let mut cpu = CpuSet::new();
        cpu.set(0).unwrap();
        sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpu).unwrap();
        let elsewhere = Namespace::new("listener");
        sh(&format!("ip link add listener type veth peer name eth0 netns {}", elsewhere.name()));
        silence(&["br1", "listener"]);
        elsewhere.netns().run(|| silence(&["eth0"])).unwrap();
        sh("ip link set listener up master br1");
        elsewhere.sh("ip link set eth0 up");

        pod.sh("ip link add inner address 02:00:00:00:00:99 type bridge mcast_snooping 0");
        pod.sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        pod.netns().run(|| silence(&["inner", "tap0", "net1"])).unwrap();
        for link in ["net1", "tap0"] {
            pod.sh(&format!("ip link set {link} up master inner"));
        }
        // It passes on what the guest sends to a bridge's own addresses.
        pod.sh("ip link set tap0 type bridge_slave group_fwd_mask 0xfffd");
        pod.sh("ip link set inner up");
        let queue = pod.netns().run(|| tap::Queue::open(&"tap0".parse().unwrap(), false)).unwrap().unwrap();
        let listener = elsewhere.netns().run(packet_socket).unwrap();
        let guest = Self { queue, listener, _elsewhere: elsewhere };
        guest.wait_for_the_way();
        guest
    }

    /// Sends all; exactly the honest ones must arrive.
    #[track_caller]
    pub(super) fn expect(&self, honest: &[(&str, Frame)], forged: &[(&str, Frame)]) {
        for (name, frame) in honest {
            assert!(self.passes(frame), "an honest frame was lost: {name}");
        }
        for (name, frame) in forged {
            assert!(!self.passes(frame), "a forged frame passed: {name}");
        }
    }

    /// True if the listener hears it.
    pub(super) fn passes(&self, frame: &Frame) -> bool {
        self.send(frame);
        self.send(&mark());
        let mut passed = false;
        loop {
            let heard = self.hear().expect("the mark within 20 s");
            if heard == mark() {
                return passed;
            }
            passed |= without_tags(&heard) == without_tags(frame);
        }
    }

    fn send(&self, Frame(bytes): &Frame) {
        let header = vec![0; usize::from(tap::VNET_HEADER_LENGTH)];
        nix::unistd::write(&self.queue, &[&header[..], bytes].concat()).unwrap();
    }

    fn hear(&self) -> Option<Frame> {
        let mut frame = vec![0; 2048];
        let length = recv(self.listener.as_raw_fd(), &mut frame, MsgFlags::empty()).ok()?;
        frame.truncate(length);
        Some(Frame(frame))
    }

    /// A port that has just come up starts forwarding when the kernel's work queue gets to it.
    fn wait_for_the_way(&self) {
        setsockopt(&self.listener, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
        e2e::eventually("frames get through", Duration::from_secs(20), || {
            self.send(&mark());
            self.hear().filter(|heard| *heard == mark())
        });
        while self.hear().is_some() {}
        setsockopt(&self.listener, sockopt::ReceiveTimeout, &TimeVal::new(20, 0)).unwrap();
    }
}

fn mark() -> Frame {
    Frame::new([2, 0, 0, 0, 0, 5], MARK, &[])
}

/// The kernel takes the outer tag from a frame before it shows it to a packet socket.
fn without_tags(Frame(bytes): &Frame) -> Vec<u8> {
    let mut bytes = bytes.clone();
    while let Some([0x81, 0x00] | [0x88, 0xa8]) = bytes.get(12..14) {
        bytes.drain(12..16);
    }
    bytes
}

/// No IPv6, so no frames of its own accord.
fn silence(links: &[&str]) {
    for link in links {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
    }
}

fn packet_socket() -> OwnedFd {
    let all = Some(SockProtocol::EthAll);
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap()
}
