//! The daemon as VMMs meet it: over its sockets, with a frontend of the vhost crate.

mod allocations;
mod cycles;
mod descriptors;
mod greedy;
mod hostile;
mod latency;
mod log;
mod offered;
mod soak;
mod stuck;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;

use super::fake_vm::{BASIC, MERGEABLE, Vm};
use super::{Daemon, DaemonError};
use crate::listener::SocketError;
use crate::memory::sigbus;
use crate::ring::fake::{HIGH, MIB, frame};

/// A daemon with one link between `a` and `b` in a directory of its own.
struct Joined {
    directory: tempfile::TempDir,
    daemon: Daemon,
}

impl Joined {
    fn new() -> Self {
        Self::over(Daemon::start(None).unwrap())
    }

    fn over(mut daemon: Daemon) -> Self {
        sigbus::install().unwrap();
        let directory = tempfile::tempdir().unwrap();
        daemon.add(&link(directory.path(), "a", "b")).unwrap();
        Self { directory, daemon }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn vms(&self) -> (Vm, Vm) {
        let vm = |name| Vm::connect(&self.socket(name), BASIC | MERGEABLE);
        (vm("a"), vm("b"))
    }

    /// Waits until so many frames of the first end were dropped because nobody was there to receive them.
    fn await_drops(&self, count: u64) {
        let counters = self.daemon.counters().remove(0);
        let until = Instant::now() + Duration::from_secs(10);
        while counters.directions[0].drops.peer_down.get() < count {
            assert!(Instant::now() < until, "no frame was dropped");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Faults of the link: which end, and what.
    fn faults(&self) -> Vec<(usize, &'static str)> {
        let faults = self.daemon.counters().into_iter().flat_map(|counters| counters.faults());
        faults.map(|(end, label, _)| (end, label)).collect()
    }
}

fn link(directory: &Path, first: &str, second: &str) -> crate::spec::LinkSpec {
    let end = |name: &str| format!("vhost-user:{}", directory.join(name).display());
    format!("{},{}", end(first), end(second)).parse().unwrap()
}

#[test]
fn frames_pass_both_ways_and_are_counted() {
    let mut joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    for seed in 0..200 {
        alice.send(seed);
        bob.expect(seed);
        bob.send(seed ^ 0x55);
        alice.expect(seed ^ 0x55);
    }
    let counters = joined.daemon.counters().remove(0);
    // A frame is counted after it is passed on.
    joined.daemon.stop();
    let packets = counters.directions.each_ref().map(|direction| direction.packets.get());
    assert_eq!((packets, counters.directions[0].bytes.get()), ([200, 200], 20_000));
}

#[test]
fn a_stopped_ring_says_where_it_was_and_goes_on_from_there() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    for seed in 0..3 {
        alice.send(seed);
        bob.expect(seed);
    }
    assert_eq!(alice.frontend.get_vring_base(1).unwrap(), 3);
    alice.send(3);
    alice.start(1, 3);
    bob.expect(3);
}

#[test]
fn a_stopped_ring_stays_stopped_when_memory_is_mapped_anew() {
    let joined = Joined::new();
    let (alice, _bob) = joined.vms();
    assert_eq!(joined.daemon.report()[0].running, [true, true]);
    alice.frontend.get_vring_base(0).unwrap();
    alice.share_memory();
    assert_eq!(joined.daemon.report()[0].running, [false, true]);
}

#[test]
fn memory_may_be_mapped_anew_while_rings_run() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    for seed in 0..20 {
        bob.share_memory();
        alice.send(seed);
        alice.share_memory();
        bob.expect(seed);
    }
}

#[test]
fn a_guest_that_went_away_may_come_back() {
    let joined = Joined::new();
    let (mut alice, bob) = joined.vms();
    drop(bob);
    // Frames to nobody are dropped; how many depends on when its going was noticed.
    alice.send(0);
    for seed in 1..5 {
        let mut bob = Vm::connect(&joined.socket("b"), BASIC);
        bob.send(seed);
        alice.expect(seed);
    }
}

#[test]
fn a_hostile_guest_ends_its_own_end_only() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.tx.set_available(1000);
    alice.kick();
    alice.await_hangup();
    assert_eq!(joined.faults(), [(0, "index-jump")]);
    // The other end has noticed nothing, and the first may begin anew.
    let mut alice = Vm::connect(&joined.socket("a"), BASIC);
    alice.send(1);
    bob.expect(1);
}

#[test]
fn a_guest_that_offers_bad_buffers_ends_its_own_end_only() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    bob.rx.set_descriptor(0, HIGH + MIB, 2048, 2, 0);
    alice.send(1);
    bob.await_hangup();
    assert_eq!(joined.faults(), [(1, "no-memory")]);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC);
    bob.send(2);
    alice.expect(2);
}

#[test]
fn truncated_memory_ends_one_end_and_not_the_process() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    rustix::fs::ftruncate(&*alice.guest.file, MIB / 64).unwrap();
    alice.kick();
    bob.send(2);
    alice.await_hangup();
    assert_eq!(joined.faults(), [(0, "memory-gone")]);
    let mut alice = Vm::connect(&joined.socket("a"), BASIC);
    alice.send(3);
    bob.expect(3);
}

#[test]
fn another_link_never_notices() {
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    let (mut alice, _bob) = joined.vms();
    let [mut carol, mut dave] = ["c", "d"].map(|name| Vm::connect(&joined.socket(name), BASIC));
    for seed in 0..20 {
        alice.tx.set_available(seed * 1000 + 500);
        alice.kick();
        carol.send(1);
        dave.expect(1);
        alice.await_hangup();
        alice = Vm::connect(&joined.socket("a"), BASIC);
    }
}

#[test]
fn a_message_cut_short_ends_only_its_connection() {
    let joined = Joined::new();
    for length in [1, 11, 13] {
        let mut stream = UnixStream::connect(joined.socket("a")).unwrap();
        // SET_FEATURES, version 1, 8 bytes of payload.
        stream.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0][..length]).unwrap();
    }
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    assert_eq!(joined.daemon.counters()[0].faults(), [(0, "message", 3)]);
}

#[test]
fn a_ring_enabled_before_anything_was_negotiated_is_acknowledged_and_enabled() {
    let joined = Joined::new();
    let mut stream = UnixStream::connect(joined.socket("a")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // SET_VRING_ENABLE of ring 1, as QEMU sends it first of all: version 1, NEED_REPLY.
    stream.write_all(&[18, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [18, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC);
    // What follows does not say it again.
    let mut alice = Vm::begin(stream, BASIC);
    alice.configure(1, 0);
    alice.send(1);
    bob.expect(1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let joined = Joined::new();
    let mut vm = Vm::connect(&joined.socket("a"), BASIC);
    assert!(vm.frontend.set_features(BASIC | 1 << 34).is_err());
    vm.await_hangup();
    assert_eq!(joined.faults(), [(0, "message")]);
}

#[test]
fn a_ring_outside_of_memory_is_refused() {
    let joined = Joined::new();
    let mut vm = Vm::connect(&joined.socket("a"), BASIC);
    vm.frontend.set_vring_enable(1, false).unwrap();
    vm.tx.at = 64 * MIB;
    vm.set_addresses(1).unwrap();
    assert!(vm.frontend.set_vring_enable(1, true).is_err());
    vm.await_hangup();
    assert_eq!(joined.faults(), [(0, "message")]);
}

#[test]
fn a_partial_checksum_is_finished_for_a_guest_that_cannot() {
    const CSUM: u64 = 1;
    let joined = Joined::new();
    let mut alice = Vm::connect(&joined.socket("a"), BASIC | CSUM);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC);
    let mut bytes = frame(100, 1);
    bytes[0] = 1;
    bytes[6..10].copy_from_slice(&[34, 0, 16, 0]);
    alice.send_raw(&bytes);
    let received = bob.receive().remove(0);
    assert_eq!(received[..10], [0; 10]);
    // What the field held stands for the pseudo header; with it, the finished sum comes out as all ones.
    let sum = received[12 + 34..]
        .chunks(2)
        .fold(0, |sum, word| sum + u64::from(word[0]) * 256 + u64::from(word[1]));
    let pseudo = u64::from(bytes[12 + 50]) * 256 + u64::from(bytes[12 + 51]);
    assert_eq!((sum + pseudo) % 0xffff, 0);
}

/// A TCP segment over IPv4 with `payload` bytes, that its sender left to be cut up into segments of 1000.
fn large_segment(payload: usize) -> Vec<u8> {
    const HEADER: [u8; 12] = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];
    let length = u16::try_from(40 + payload).unwrap().to_be_bytes();
    let mut bytes = HEADER.to_vec();
    bytes.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    bytes.extend([0x45, 0, length[0], length[1], 0, 7, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    bytes.extend([0, 80, 0, 81, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..payload).map(|at| at.to_le_bytes()[0]));
    bytes
}

/// The sum of a finished TCP segment and its pseudo header: all ones if its checksum is right.
fn tcp_sum(segment: &[u8]) -> u32 {
    let length = u32::try_from(segment.len() - 34).unwrap();
    let words = segment[26..]
        .chunks(2)
        .map(|word| u32::from(word[0]) * 256 + u32::from(word.get(1).copied().unwrap_or_default()));
    let sum = words.sum::<u32>() + 6 + length;
    (sum & 0xffff) + (sum >> 16)
}

#[test]
fn a_large_segment_is_cut_up_for_a_guest_that_cannot_and_kept_for_one_that_can() {
    const CSUM_AND_TSO: u64 = 1 | 1 << 11;
    const TAKES_BOTH: u64 = 1 << 1 | 1 << 7;
    let joined = Joined::new();
    let mut alice = Vm::connect(&joined.socket("a"), BASIC | CSUM_AND_TSO);
    let sent = large_segment(2500);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC);
    alice.send_raw(&sent);
    let mut segments = Vec::new();
    while segments.len() < 3 {
        segments.extend(bob.receive());
    }
    let mut payload = Vec::new();
    for (segment, sequence) in segments.iter().zip([9_u32, 1009, 2009]) {
        assert_eq!(segment[..10], [0; 10]);
        let frame = &segment[12..];
        assert_eq!((&frame[38..42], tcp_sum(frame)), (sequence.to_be_bytes().as_slice(), 0xffff));
        payload.extend_from_slice(&frame[54..]);
    }
    assert_eq!(payload, sent[12 + 54..]);
    drop(bob);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC | MERGEABLE | TAKES_BOTH);
    bob.send(1);
    alice.expect(1);
    alice.send_raw(&sent);
    let first = bob.receive().remove(0);
    assert_eq!((first[..10].to_vec(), first[12..].to_vec()), (sent[..10].to_vec(), sent[12..2048].to_vec()));
}

#[test]
fn a_client_connects_as_soon_as_there_is_a_server() {
    sigbus::install().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| UnixListener::bind(directory.path().join(name)).unwrap());
    let mut daemon = Daemon::start(None).unwrap();
    let end = |name| format!("vhost-user:{}?client", directory.path().join(name).display());
    daemon.add(&format!("{},{}", end("a"), end("b")).parse().unwrap()).unwrap();
    let [mut alice, mut bob] = [first, second].map(|listener| Vm::over(listener.accept().unwrap().0, BASIC));
    alice.send(1);
    bob.expect(1);
    daemon.stop();
}

#[test]
fn an_end_that_another_link_has_is_refused_with_its_name() {
    let mut joined = Joined::new();
    let old = joined.daemon.report()[0].name.clone();
    for (first, second, taken) in [("a", "x", "a"), ("x", "b", "b"), ("b", "x", "b")] {
        let refused = joined.daemon.add(&link(joined.directory.path(), first, second)).unwrap_err();
        let socket = joined.socket(taken);
        assert_eq!(refused.to_string(), format!("vhost-user:{} is an end of link {old}", socket.display()));
    }
    assert!(!joined.socket("x").exists());
    joined.daemon.remove(&old).unwrap();
    joined.daemon.add(&link(joined.directory.path(), "b", "a")).unwrap();
}

#[test]
fn a_socket_is_taken_over_from_the_dead_and_not_from_the_living() {
    let joined = Joined::new();
    let mut second = Daemon::start(None).unwrap();
    let taken = second.add(&link(joined.directory.path(), "a", "x")).unwrap_err();
    assert!(matches!(taken, DaemonError::Vhost(SocketError::InUse(_))));
    let file = joined.socket("file");
    std::fs::write(&file, "kept").unwrap();
    let refused = second.add(&link(joined.directory.path(), "y", "file")).unwrap_err();
    assert!(matches!(refused, DaemonError::Vhost(SocketError::NoSocket(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    assert!(!joined.socket("y").exists(), "a link that failed leaves nothing");
    drop(UnixListener::bind(joined.socket("dead")).unwrap());
    second.add(&link(joined.directory.path(), "dead", "z")).unwrap();
    second.stop();
    assert!(!joined.socket("dead").exists(), "a stopped daemon leaves no socket");
}
