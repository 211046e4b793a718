//! Which frames of a NIC are the guest's: by address, by VLAN, by queue, in the driver and in generic mode.
//!
//! The NIC is a tap whose far side is the test, so that a frame enters exactly as written, tag and queue included. What
//! goes to the guest is seen at the link's other end, what stays with the host at a bridge that the NIC is a port of.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, Sandbox, binary, eventually, output, sh};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use tap::Queue;
use tempfile::NamedTempFile;

const LIMIT: Duration = Duration::from_secs(20);
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// IEEE 802's EtherType for experiments: nothing else here sends it.
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = tap::VNET_HEADER_LENGTH as usize;

/// A frame to `to`, recognised by its label.
pub(crate) fn frame(label: u8, to: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
    let mut bytes = [to.as_slice(), &[2, 0, 0, 0, 0, 9]].concat();
    if let Some(id) = vlan {
        bytes.extend([0x81, 0x00]);
        bytes.extend(id.to_be_bytes());
    }
    bytes.extend(EXPERIMENT);
    bytes.push(label);
    bytes.resize(60, 0);
    bytes
}

/// The label, if it is one of our frames.
pub(crate) fn label(bytes: &[u8]) -> Option<u8> {
    let at = if bytes.get(12..14)? == [0x81, 0x00] { 16 } else { 12 };
    (bytes.get(at..at + 2)? == EXPERIMENT).then(|| bytes.get(at + 2).copied())?
}

/// The far side of a tap's queues.
pub(crate) struct Wire(pub(crate) Vec<Queue>);

impl Wire {
    /// Makes a tap, up, with this many queues.
    pub(crate) fn new(name: &str, queues: usize) -> Self {
        let several = queues > 1;
        let kind = if several { " multi_queue" } else { "" };
        sh(&format!("ip tuntap add dev {name} mode tap vnet_hdr{kind}"));
        let open = |_| Queue::open(&name.parse().unwrap(), several).unwrap();
        let wire = Self((0..queues).map(open).collect());
        sh(&format!("ip link set {name} up"));
        wire
    }

    /// Makes a tap at a new bridge, where it sees what the bridge floods.
    pub(crate) fn at_bridge(bridge: &str) -> Self {
        sh(&format!("ip link add {bridge} type bridge"));
        sh(&format!("ip link set {bridge} up"));
        let wire = Self::new(&format!("{bridge}-look"), 1);
        sh(&format!("ip link set {bridge}-look master {bridge}"));
        wire
    }

    pub(crate) fn send(&self, queue: usize, frame: &[u8]) {
        let mut file = self.0[queue].file();
        let bytes = [&[0; HEADER], frame].concat();
        assert_eq!(file.write(&bytes).unwrap(), bytes.len());
    }

    /// The next of our frames within 20 ms.
    pub(crate) fn next(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 9216];
        let mut fds = [PollFd::new(self.0[0].as_fd(), PollFlags::POLLIN)];
        while poll(&mut fds, PollTimeout::from(20_u8)).unwrap() > 0 {
            let length = self.0[0].file().read(&mut bytes).unwrap();
            if label(&bytes[HEADER..length]).is_some() {
                return Some(bytes[HEADER..length].to_vec());
            }
        }
        None
    }
}

/// A NIC in a bridge of the host, and a tap that stands for the guest in a bridge of its own.
struct Bench {
    nic: Wire,
    host: Wire,
    guest: Wire,
    _sandbox: Sandbox,
}

impl Bench {
    fn new(queues: usize) -> Self {
        let sandbox = Sandbox::enter();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let (nic, host, guest) =
            (Wire::new("nic", queues), Wire::at_bridge("host"), Wire::at_bridge("guest"));
        sh("ip link set nic master host");
        sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        sh("ip link set tap0 master guest");
        sh("ip link set tap0 up");
        Self { nic, host, guest, _sandbox: sandbox }
    }

    /// Sends frames by queue and says which labels reached the guest and which the host. Each reaches one of them.
    fn sort(&self, frames: &[(usize, Vec<u8>)]) -> (BTreeSet<u8>, BTreeSet<u8>) {
        for (queue, frame) in frames {
            self.nic.send(*queue, frame);
        }
        let (mut guest, mut host) = (BTreeSet::new(), BTreeSet::new());
        eventually("each frame is somewhere", LIMIT, || {
            for (wire, labels) in [(&self.guest, &mut guest), (&self.host, &mut host)] {
                while let Some(frame) = wire.next() {
                    assert!(frames.iter().any(|(_, sent)| *sent == frame), "{frame:?} was altered");
                    assert!(labels.insert(label(&frame).unwrap()), "{frame:?} came twice");
                }
            }
            (guest.len() + host.len() >= frames.len()).then_some(())
        });
        (guest, host)
    }
}

/// Starts the backend with one link and waits until it says that it runs; returns what it logged till then.
pub(crate) fn start(nic: &str) -> (Daemon, String) {
    await_link(spawn(nic))
}

fn spawn(nic: &str) -> (Daemon, NamedTempFile) {
    let log = NamedTempFile::new().unwrap();
    let mut command = Command::new(binary("vhost-net-backend"));
    command.args(["--link", &format!("{nic},tap:tap0")]).stderr(Stdio::from(log.reopen().unwrap()));
    (Daemon::start(&mut command), log)
}

fn await_link((mut daemon, log): (Daemon, NamedTempFile)) -> (Daemon, String) {
    let text = eventually("the link was added", LIMIT, || {
        let ended = daemon.child().try_wait().unwrap();
        let text = std::fs::read_to_string(log.path()).unwrap();
        assert!(ended.is_none(), "{text}");
        text.contains("added").then_some(text)
    });
    (daemon, text)
}

fn labels(range: impl IntoIterator<Item = u8>) -> BTreeSet<u8> {
    range.into_iter().collect()
}

#[test]
fn only_frames_to_the_guests_address_leave_the_host() {
    let bench = Bench::new(1);
    let frames = [(0, frame(1, GUEST, None)), (0, frame(2, OTHER, None)), (0, frame(3, GROUP, None))];
    let (backend, _) = start("af_xdp:nic?mac=02:00:00:00:00:07");
    assert_eq!(bench.sort(&frames), (labels([1]), labels([2, 3])));
    drop(backend);
    let (backend, _) = start("af_xdp:nic?mac=02:00:00:00:00:07&groups");
    assert_eq!(bench.sort(&frames), (labels([1, 3]), labels([2])));
    drop(backend);
    let (_backend, _) = start("af_xdp:nic");
    assert_eq!(bench.sort(&frames), (labels([1, 2, 3]), labels([])));
}

#[test]
fn only_frames_of_the_guests_vlan_leave_the_host() {
    let bench = Bench::new(1);
    // Priority bits do not make another VLAN; a tag of 0 is none.
    let frames = [
        (0, frame(1, GUEST, Some(5))),
        (0, frame(2, GUEST, Some(0x6005))),
        (0, frame(3, GUEST, Some(6))),
        (0, frame(4, GUEST, Some(0))),
        (0, frame(5, GUEST, None)),
        (0, frame(6, OTHER, Some(5))),
    ];
    let (backend, _) = start("af_xdp:nic?vlan=5");
    assert_eq!(bench.sort(&frames), (labels([1, 2, 6]), labels([3, 4, 5])));
    drop(backend);
    let (_backend, _) = start("af_xdp:nic?mac=02:00:00:00:00:07&vlan=5");
    assert_eq!(bench.sort(&frames), (labels([1, 2]), labels([3, 4, 5, 6])));
}

#[test]
fn only_queues_of_the_link_leave_the_host() {
    let bench = Bench::new(3);
    let frames: Vec<_> = (0..9).map(|at| (usize::from(at) / 3, frame(at, GUEST, None))).collect();
    let (backend, _) = start("af_xdp:nic:1");
    assert_eq!(bench.sort(&frames), (labels(3..6), labels([0, 1, 2, 6, 7, 8])));
    drop(backend);
    let (backend, log) = start("af_xdp:nic:1-2");
    assert_eq!(bench.sort(&frames), (labels(3..9), labels(0..3)));
    assert!(log.contains("queue=1") && log.contains("queue=2"), "{log}");
    drop(backend);
    let (_backend, _) = start("af_xdp:nic:0-2");
    assert_eq!(bench.sort(&frames), (labels(0..9), labels([])));
}

/// A page of memory to lend to the kernel.
#[repr(align(4096))]
struct Page([u8; 4096]);

/// An AF_XDP socket on queue 0 of `nic`, without a program: what another process might hold.
fn hold_queue(memory: &'static mut Page) -> OwnedFd {
    // Not for children: the queue is held as long as any process has the socket.
    let socket = net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    let region = XdpUmemReg {
        addr: memory.0.as_mut_ptr().expose_provenance() as u64,
        len: 4096,
        chunk_size: 4096,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(&socket, region).unwrap();
    sockopt::set_xdp_umem_fill_ring_size(&socket, 8).unwrap();
    sockopt::set_xdp_umem_completion_ring_size(&socket, 8).unwrap();
    sockopt::set_xdp_rx_ring_size(&socket, 8).unwrap();
    let index = std::fs::read_to_string("/sys/class/net/nic/ifindex").unwrap().trim().parse().unwrap();
    net::bind(&socket, &SocketAddrXdp::new(SocketAddrXdpFlags::XDP_COPY, index, 0)).unwrap();
    socket
}

#[test]
fn a_queue_that_another_process_holds_is_named_and_left_alone() {
    let bench = Bench::new(2);
    let held = hold_queue(Box::leak(Box::new(Page([0; 4096]))));
    let mut command = Command::new(binary("vhost-net-backend"));
    let refused = output(command.args(["--link", "af_xdp:nic:0-1,tap:tap0"]));
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("queue 0 of nic is held by another AF_XDP socket"), "{text}");
    assert!(!sh("ip link show nic").contains("xdp"), "a refused link leaves no program");
    // The other queue is free for all that.
    let (backend, _) = start("af_xdp:nic:1");
    drop((backend, held));
    let (_backend, _) = start("af_xdp:nic:0-1");
    let frames = [(0, frame(1, GUEST, None)), (1, frame(2, GUEST, None))];
    assert_eq!(bench.sort(&frames), (labels([1, 2]), labels([])));
}

/// As after a kill: the kernel gives a dead process's queue back in its own time.
#[test]
fn a_queue_that_is_about_to_be_given_back_is_waited_for() {
    let _bench = Bench::new(1);
    let held = hold_queue(Box::leak(Box::new(Page([0; 4096]))));
    let backend = spawn("af_xdp:nic");
    eventually("the backend is about to bind", LIMIT, || {
        sh("ip link show nic").contains("xdp").then_some(())
    });
    drop(held);
    await_link(backend);
}

#[test]
fn a_nic_whose_driver_has_no_xdp_is_used_in_generic_mode() {
    let bench = Bench::new(1);
    let (native, log) = start("af_xdp:nic");
    assert!(log.contains("mode=Native") && log.contains("zero_copy=false"), "{log}");
    drop(native);
    // A bridge has no XDP of its own; frames for its address, or a group's, go up through it.
    sh("ip link set host address 02:00:00:00:00:07");
    let (_backend, log) = start("af_xdp:host");
    assert!(log.contains("mode=Generic"), "{log}");
    bench.nic.send(0, &frame(1, GUEST, None));
    let arrived = eventually("the frame is at the guest", LIMIT, || bench.guest.next());
    assert_eq!(arrived, frame(1, GUEST, None));
    // And back: out of the bridge by the NIC.
    bench.guest.send(0, &frame(2, OTHER, None));
    let arrived = eventually("the frame is on the wire", LIMIT, || bench.nic.next());
    assert_eq!(arrived, frame(2, OTHER, None));
}

#[test]
fn frames_are_received_and_sent_as_long_as_the_guide_says() {
    let bench = Bench::new(1);
    for interface in ["nic", "host", "guest", "guest-look", "tap0"] {
        sh(&format!("ip link set {interface} mtu 9000"));
    }
    let (_backend, _) = start("af_xdp:nic");
    let long = |label: u8, length: usize| {
        let mut bytes = frame(label, GUEST, None);
        bytes.resize(length, 0x5a);
        bytes
    };
    // What is too long is lost, and those behind it are not.
    for (label, lengths) in [(1, [3841, 3840]), (3, [9000, 60])] {
        let [lost, whole] = [long(label, lengths[0]), long(label + 1, lengths[1])];
        bench.nic.send(0, &lost);
        bench.nic.send(0, &whole);
        let arrived = eventually("the frame is at the guest", LIMIT, || bench.guest.next());
        assert!(
            arrived == whole,
            "{} bytes, labelled {:?}",
            arrived.len(),
            super::vhost_steering::label(&arrived)
        );
    }
    for (label, lengths) in [(5, [4097, 4096]), (7, [9000, 60])] {
        let [lost, whole] = [long(label, lengths[0]), long(label + 1, lengths[1])];
        bench.guest.send(0, &lost);
        bench.guest.send(0, &whole);
        let arrived = eventually("the frame is on the wire", LIMIT, || bench.nic.next());
        assert!(
            arrived == whole,
            "{} bytes, labelled {:?}",
            arrived.len(),
            super::vhost_steering::label(&arrived)
        );
    }
}
