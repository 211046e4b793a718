//! Sequence numbers end to end: nothing is lost beyond counted drops, nothing reordered, nothing altered.
//!
//! A short run in every test; `make soak` sets GUESTWIRE_SOAK_PACKETS to 10^9. Frames of all sizes go from one guest to another,
//! which checks each, while a third kind of guest comes and goes on another link of the same worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::super::fake_vm::{BASIC, MERGEABLE, Vm};
use super::{Joined, link};

const SHORT: u64 = 20_000;
/// How long nothing may arrive before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const HEADER: usize = 12;

/// The frame of a number: its length and every byte follow from that.
fn frame(number: u64) -> Vec<u8> {
    let length = 60 + usize::try_from(number.wrapping_mul(2_654_435_761) % 1455).unwrap();
    let mut bytes = vec![0; HEADER + 12];
    bytes.extend([0x88, 0xb5]);
    bytes.extend(number.to_le_bytes());
    let seed = number.to_le_bytes()[0];
    bytes.extend((0..length - 22).map(|at| seed.wrapping_add(at.to_le_bytes()[0])));
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[HEADER + 14..HEADER + 22].try_into().unwrap())
}

/// What arrives is in order and whole; returns how much did.
fn check_all(receiver: &mut Vm, sent_all: &AtomicBool, last: u64, dropped: impl Fn() -> u64) -> u64 {
    let (mut next, mut received) = (0, 0);
    let mut heard = Instant::now();
    loop {
        // Before looking: what is sent after the look is not waited for.
        let complete = sent_all.load(Ordering::Acquire) && received + dropped() == last;
        let arrived = receiver.arrived();
        if arrived.is_empty() {
            if complete {
                return received;
            }
            assert!(heard.elapsed() < PATIENCE, "{received} arrived, {} dropped, of {last}", dropped());
            std::thread::yield_now();
            continue;
        }
        heard = Instant::now();
        for bytes in arrived {
            let number = number(&bytes);
            assert!(number >= next, "frame {number} came after {next}");
            assert_eq!(bytes[HEADER..], frame(number)[HEADER..], "frame {number} was altered");
            (next, received) = (number + 1, received + 1);
        }
    }
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
    let (sent_all, disturber) = (AtomicBool::new(false), joined.socket("c"));
    let received = std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..packets {
                let bytes = frame(number);
                while !alice.try_send_raw(&bytes) {
                    std::thread::yield_now();
                }
            }
            sent_all.store(true, Ordering::Release);
        });
        scope.spawn(|| {
            while !sent_all.load(Ordering::Acquire) {
                let mut guest = Vm::connect(&disturber, BASIC | MERGEABLE);
                guest.tx.set_available(1000);
                guest.kick();
                guest.await_hangup();
            }
        });
        check_all(&mut bob, &sent_all, packets, dropped)
    });
    // One round in some is timed, and there were thousands.
    assert!(joined.daemon.load().iter().any(|(_, busy)| *busy > Duration::ZERO));
    joined.daemon.stop();
    assert_eq!((received, counters.directions[0].packets.get()), (packets - dropped(), received));
    println!("{received} of {packets} frames arrived, {} were dropped and counted", dropped());
}
