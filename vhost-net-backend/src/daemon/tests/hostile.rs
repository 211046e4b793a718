//! Whatever a guest or its VMM does wrong ends its own end, for a reason that is counted; its neighbours never notice.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::VhostBackend as _;

use super::super::fake_vm::{BASIC, MERGEABLE, Vm};
use super::{Joined, link};
use crate::fuzzing;
use crate::ring::fake::{HIGH, HOLE, INDIRECT, MIB, NEXT, WRITE, descriptor, frame};

/// Indirect descriptors.
const INDIRECT_FEATURE: u64 = 1 << 28;
/// `VIRTIO_NET_F_CSUM`: partial checksums of the guest.
const CHECKSUM_FEATURE: u64 = 1;

/// What a guest does to the ring it sends by.
type Attack = fn(&mut Vm);

const ATTACKS: [(&str, Attack); 13] = [
    ("index-jump", |vm| vm.tx.set_available(1000)),
    ("no-such-descriptor", |vm| vm.tx.offer(64)),
    ("descriptor-loop", |vm| {
        vm.tx.set_descriptor(0, HIGH, 20, NEXT, 0);
        vm.tx.offer(0);
    }),
    ("chain-length", |vm| {
        // The same megabyte, 8192 times.
        let entry = |at: u16| descriptor(HIGH, 1 << 20, if at < 8191 { NEXT } else { 0 }, at + 1);
        vm.guest.write(HIGH + MIB / 2, &(0..8192).flat_map(entry).collect::<Vec<u8>>());
        vm.tx.add(&[(HIGH + MIB / 2, 16 * 8192)], INDIRECT);
    }),
    ("no-memory", |vm| _ = vm.tx.add(&[(HOLE, 64)], 0)),
    ("no-memory", |vm| _ = vm.tx.add(&[(HOLE - 10, 64)], 0)),
    ("no-memory", |vm| _ = vm.tx.add(&[(0, u32::MAX)], 0)),
    ("no-memory", |vm| _ = vm.tx.add(&[(u64::MAX - 7, 64)], 0)),
    ("buffer-direction", |vm| _ = vm.tx.add(&[(HIGH, 76)], WRITE)),
    ("indirect", |vm| _ = vm.tx.add(&[(HIGH, 15)], INDIRECT)),
    // A checksum behind the frame's end; segments without one; segments, which were not negotiated.
    ("header", |vm| vm.send_raw(&headed([1, 0, 0, 0, 0, 0, 63, 0, 0, 0]))),
    ("header", |vm| vm.send_raw(&headed([0, 1, 0, 0, 100, 0, 0, 0, 0, 0]))),
    ("header", |vm| vm.send_raw(&headed([1, 1, 0, 0, 100, 0, 34, 0, 16, 0]))),
];

/// A frame of 64 bytes behind this header.
fn headed(header: [u8; 10]) -> Vec<u8> {
    [header.as_slice(), &frame(64, 1)[10..]].concat()
}

#[test]
fn a_header_of_a_guest_that_negotiated_nothing_in_it_is_not_read() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send_raw(&headed([1, 1, 0, 0, 100, 0, 63, 0, 0, 0]));
    let mut plain = headed([0; 10]);
    // How many buffers it fills.
    plain[10] = 1;
    assert_eq!(bob.receive(), [plain]);
    assert_eq!(joined.faults(), []);
}

#[test]
fn each_attack_on_a_ring_ends_its_end_alone_and_is_counted_by_its_name() {
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    let [mut bob, mut carol, mut dave] =
        ["b", "c", "d"].map(|name| Vm::connect(&joined.socket(name), BASIC | MERGEABLE));
    let mut expected = std::collections::BTreeMap::new();
    for (name, attack) in ATTACKS {
        let features = BASIC | MERGEABLE | INDIRECT_FEATURE | CHECKSUM_FEATURE;
        let mut alice = Vm::connect(&joined.socket("a"), features);
        alice.send(1);
        bob.expect(1);
        attack(&mut alice);
        alice.kick();
        alice.await_hangup();
        *expected.entry((0, name)).or_insert(0_u64) += 1;
        let [counters, others] = joined.daemon.counters().try_into().unwrap();
        let counted = counters.faults().into_iter().map(|(end, label, count)| ((end, label), count));
        assert_eq!(counted.collect::<std::collections::BTreeMap<_, _>>(), expected);
        assert_eq!(others.faults(), []);
        carol.send(2);
        dave.expect(2);
    }
}

#[test]
fn a_receiver_whose_memory_is_truncated_ends_alone() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    rustix::fs::ftruncate(&*bob.guest.file, MIB / 64).unwrap();
    alice.send(2);
    bob.await_hangup();
    assert_eq!(joined.faults(), [(1, "memory-gone")]);
    joined.await_drops(1);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC);
    alice.send(3);
    bob.expect(3);
}

#[test]
fn memory_taken_from_under_running_rings_ends_that_end() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    // The rings are in the first region.
    assert!(alice.share_regions(1..).is_err());
    alice.await_hangup();
    assert_eq!(joined.faults(), [(0, "message")]);
    let mut alice = Vm::connect(&joined.socket("a"), BASIC);
    alice.send(2);
    bob.expect(2);
}

/// A message as `fuzzing::send` takes it: `files` are 0 for an eventfd, 1 for a pipe, 2 for a memory file.
fn message(request: u8, files: &[u8], payload: &[u8]) -> Vec<u8> {
    let kind = files.first().map_or(0, |kind| kind << 2 | 1);
    [&[request, 0, kind, u8::try_from(payload.len()).unwrap()], payload].concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn each_message_that_cannot_be_carried_out_ends_its_connection_and_is_counted() {
    const SET_FEATURES: u8 = 2;
    const SET_MEM_TABLE: u8 = 5;
    const SET_VRING_NUM: u8 = 8;
    const SET_VRING_BASE: u8 = 10;
    const SET_VRING_KICK: u8 = 12;
    const SET_VRING_CALL: u8 = 13;
    const POSTCOPY_ADVISE: u8 = 28;
    const EVENTFD: &[u8] = &[0];
    const PIPE: &[u8] = &[1];
    const MEMORY: &[u8] = &[2];
    let table = |size: u64| words(&[1, 0, size, 0, 0]);
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    drop(alice);
    let wrong = [
        message(SET_FEATURES, &[], &words(&[u64::MAX])),
        message(SET_FEATURES, &[], &words(&[1])[..7]),
        message(SET_MEM_TABLE, EVENTFD, &table(0x10000)),
        message(SET_MEM_TABLE, PIPE, &table(0x10000)),
        message(SET_MEM_TABLE, &[], &table(0x10000)),
        message(SET_MEM_TABLE, MEMORY, &table(0x10001)),
        message(SET_MEM_TABLE, MEMORY, &table(u64::MAX)),
        message(SET_MEM_TABLE, MEMORY, &table(0)),
        message(SET_VRING_NUM, &[], &words(&[3 << 32])),
        message(SET_VRING_NUM, &[], &words(&[99 | 16 << 32])),
        message(SET_VRING_BASE, &[], &words(&[1 << 48])),
        message(SET_VRING_KICK, PIPE, &words(&[0])),
        message(SET_VRING_KICK, MEMORY, &words(&[0])),
        message(SET_VRING_KICK, EVENTFD, &words(&[99])),
        // No descriptor, and none is meant: poll the ring for ever.
        message(SET_VRING_KICK, &[], &words(&[1 << 8])),
        message(SET_VRING_CALL, PIPE, &words(&[0])),
        message(POSTCOPY_ADVISE, &[], &[]),
        message(0, &[], &[]),
        message(47, &[], &[]),
    ];
    for (at, bytes) in wrong.iter().enumerate() {
        let stream = UnixStream::connect(joined.socket("a")).unwrap();
        fuzzing::send(&stream, bytes);
        await_hangup(&stream, bytes);
        let counters = joined.daemon.counters().remove(0);
        assert_eq!(counters.faults(), [(0, "message", at as u64 + 1)], "{bytes:?}");
    }
    alice = Vm::connect(&joined.socket("a"), BASIC);
    alice.send(1);
    bob.expect(1);
}

/// Reads until the backend hangs up; what it answered does not matter.
fn await_hangup(mut stream: &UnixStream, sent: &[u8]) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return,
            Ok(_) => {}
            // It hung up with bytes of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{sent:?}: {error}"),
        }
    }
}

/// Sends SET_VRING_CALL for a ring, with this descriptor.
pub(super) fn lend_call(stream: &UnixStream, ring: u8, event: &OwnedFd) {
    let bytes = [&[13, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, ring], [0; 7].as_slice()].concat();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files = [event.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn a_vmm_that_makes_its_worker_wait_is_cut_off_and_served_no_more_for_a_while() {
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    let (mut alice, mut bob) = joined.vms();
    let [mut carol, mut dave] = ["c", "d"].map(|name| Vm::connect(&joined.socket(name), BASIC));
    let call = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    lend_call(&bob.stream, 0, &call);
    // Answered behind it.
    bob.frontend.get_features().unwrap();
    let flags = rustix::fs::fcntl_getfl(&call).unwrap();
    assert!(flags.contains(OFlags::NONBLOCK));
    rustix::fs::fcntl_setfl(&call, flags - OFlags::NONBLOCK).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    alice.send(1);
    bob.await_hangup();
    assert_eq!(joined.faults(), [(1, "call-blocked")]);
    // The worker goes on with all other ends.
    carol.send(2);
    dave.expect(2);
    alice.send(3);
    joined.await_drops(1);
    // It can connect, but is not heard.
    let mut stream = UnixStream::connect(joined.socket("b")).unwrap();
    stream.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let heard = stream.read(&mut [0; 20]);
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::WouldBlock);
    // To end the link is not to wait for it.
    joined.daemon.stop();
    assert!(!joined.socket("b").exists());
}
