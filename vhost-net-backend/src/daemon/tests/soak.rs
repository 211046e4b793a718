//! Sequence numbers end to end: nothing is lost beyond counted drops, nothing reordered, nothing altered.
//!
//! A short run in every test; `make soak` sends 10^9, or COUNT. Frames of all sizes go from one guest to another, which
//! checks each, while a third kind of guest comes and goes on another link of the same worker. Sender and receiver work in
//! batches, without allocations, and are signalled only where the backend sleeps: what is to be worn out is the backend.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::super::fake_vm::{BASIC, BUFFERS, MERGEABLE, Vm};
use super::{Joined, link};
use crate::ring::fake::{HIGH, MIB};

const SHORT: u64 = 20_000;
/// How long nothing may arrive before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const HEADER: usize = 12;
/// In front of the payload: the virtio-net header, an Ethernet header, a number.
const FRONT: usize = HEADER + 22;
const LONGEST: usize = 1514;
/// Frames on their way at most, and from where in guest memory.
const SENDING: usize = 56;
const FRAMES: u64 = HIGH + MIB / 2;
const ROOM: u64 = 2048;
/// Frames between two attacks on the neighbour.
const ATTACK_EVERY: u64 = 5000;
/// Of a ring's flags, either side's: do not signal me.
const QUIET: u16 = 1;

/// Bytes of which a payload is a part, chosen by its number.
fn pattern() -> Vec<u8> {
    let mut state = 1_u64;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(256 + LONGEST).collect()
}

/// The frame of a number, its header included: its length and every byte follow from that.
fn write_frame<'b>(number: u64, pattern: &[u8], bytes: &'b mut [u8; HEADER + LONGEST]) -> &'b [u8] {
    let length = 60 + usize::try_from(number.wrapping_mul(2_654_435_761) % 1455).unwrap();
    bytes[HEADER + 12..HEADER + 14].copy_from_slice(&[0x88, 0xb5]);
    bytes[HEADER + 14..FRONT].copy_from_slice(&number.to_le_bytes());
    let from = usize::from(number.to_le_bytes()[0]);
    let end = HEADER + length;
    bytes[FRONT..end].copy_from_slice(&pattern[from..from + end - FRONT]);
    &bytes[..end]
}

/// Sends all frames, and tells of every so many.
fn send_all(vm: &mut Vm, last: u64, tell: &SyncSender<()>) {
    let (pattern, mut bytes) = (pattern(), [0; HEADER + LONGEST]);
    let (mut next, mut on_the_way) = (0, 0);
    vm.tx.set_available_flags(QUIET);
    while next < last {
        on_the_way -= vm.tx.used().len();
        let begin = next;
        while on_the_way < SENDING && next < last {
            let frame = write_frame(next, &pattern, &mut bytes);
            let place = FRAMES + next % 64 * ROOM;
            vm.guest.write(place, frame);
            vm.tx.add(&[(place, u32::try_from(frame.len()).unwrap())], 0);
            (next, on_the_way) = (next + 1, on_the_way + 1);
        }
        if next == begin {
            std::thread::yield_now();
            continue;
        }
        // The index must be there before we read whether the backend sleeps.
        fence(Ordering::SeqCst);
        if vm.tx.used_flags() & QUIET == 0 {
            vm.kick();
        }
        if begin / ATTACK_EVERY != next / ATTACK_EVERY {
            // Whoever is told may still be busy.
            let _full = tell.try_send(());
        }
    }
}

/// What arrives is in order and whole; returns how much did.
fn check_all(vm: &mut Vm, sent_all: &AtomicBool, last: u64, dropped: impl Fn() -> u64) -> u64 {
    let (pattern, mut wanted) = (pattern(), [0; HEADER + LONGEST]);
    let mut bytes = [0; HEADER + LONGEST];
    let (mut next, mut received) = (0, 0);
    let mut heard = Instant::now();
    vm.rx.set_available_flags(QUIET);
    loop {
        // Before looking: what is sent after the look is not waited for.
        let complete = sent_all.load(Ordering::Acquire) && received + dropped() == last;
        let arrived = vm.rx.used();
        if arrived.is_empty() {
            if complete {
                return received;
            }
            assert!(heard.elapsed() < PATIENCE, "{received} arrived, {} dropped, of {last}", dropped());
            std::thread::yield_now();
            continue;
        }
        heard = Instant::now();
        for (head, length) in arrived {
            let bytes = &mut bytes[..length as usize];
            vm.guest.read_into(BUFFERS + u64::from(head) * ROOM, bytes);
            let number = u64::from_le_bytes(bytes[HEADER + 14..FRONT].try_into().unwrap());
            assert!(number >= next, "frame {number} came after {next}");
            let wanted = write_frame(number, &pattern, &mut wanted);
            assert_eq!(bytes[HEADER..], wanted[HEADER..], "frame {number} was altered");
            vm.rx.offer(head);
            (next, received) = (number + 1, received + 1);
        }
    }
}

/// Attacks another link of the worker whenever told; returns how often.
fn disturb(socket: &Path, told: &Receiver<()>) -> u64 {
    let mut attacks = 0;
    for () in told {
        let mut guest = Vm::connect(socket, BASIC | MERGEABLE);
        guest.tx.set_available(1000);
        guest.kick();
        guest.await_hangup();
        attacks += 1;
    }
    attacks
}

#[test]
fn a_soak_loses_nothing_uncounted_reorders_nothing_and_alters_nothing() {
    let packets = std::env::var("GUESTWIRE_SOAK_PACKETS");
    let packets: u64 = packets.map_or(SHORT, |packets| packets.parse().unwrap());
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    let (mut alice, mut bob) = joined.vms();
    let counters = joined.daemon.counters().remove(0);
    let dropped = || counters.directions[0].drops.each().iter().map(|(_, count)| count).sum();
    let (sent_all, disturbed) = (AtomicBool::new(false), joined.socket("c"));
    let (tell, told) = sync_channel(1);
    let begin = Instant::now();
    let (received, attacks) = std::thread::scope(|scope| {
        // Lent: what is still in a guest's ring when it goes is nobody's loss.
        let (alice, sent_all) = (&mut alice, &sent_all);
        scope.spawn(move || {
            send_all(alice, packets, &tell);
            sent_all.store(true, Ordering::Release);
        });
        let disturber = scope.spawn(move || disturb(&disturbed, &told));
        (check_all(&mut bob, sent_all, packets, dropped), disturber.join().unwrap())
    });
    let seconds = begin.elapsed().as_secs();
    // One round in some is timed, and there were thousands.
    assert!(joined.daemon.load().iter().any(|(_, busy)| *busy > Duration::ZERO));
    joined.daemon.stop();
    assert_eq!((received, counters.directions[0].packets.get()), (packets - dropped(), received));
    assert!(attacks > 0, "the neighbour was never disturbed");
    println!(
        "{received} of {packets} frames arrived in {seconds} s, whole and in order; {} were dropped and counted; \
         {attacks} attacks on the worker's other link",
        dropped()
    );
}
