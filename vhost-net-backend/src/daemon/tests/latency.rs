//! How long one frame takes through an idle link, beside the least that two threads can do with eventfds.
//!
//! A measurement, not a promise: `make bench` runs it in a release build. The threads of both are in the same places: that of
//! the guests on one CPU; the worker, or the thread that answers, on another, or on the same.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::OFlags;
use rustix::thread::{CpuSet, sched_setaffinity};
use vhost::VhostBackend as _;

use super::super::fake_vm::{BUFFERS, Vm};
use super::hostile::lend_call;
use super::{Daemon, Joined};
use crate::cores::Cores;
use crate::ring::fake::frame;

const ROUNDS: usize = 2000;
/// Longer than a link polls after its last frame.
const REST: Duration = Duration::from_micros(300);
/// Of a ring's flags, the driver's: do not interrupt me.
const QUIET: u16 = 1;
/// Where the guests are.
const HERE: usize = 0;

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).unwrap();
}

/// The median time of each, in turns, so that the machine is in the same state for both; each begun after a rest.
fn medians(mut rounds: [&mut dyn FnMut(u8); 2]) -> [Duration; 2] {
    let mut times = [(); 2].map(|()| Vec::with_capacity(ROUNDS));
    for number in 0..ROUNDS {
        for (round, times) in rounds.iter_mut().zip(&mut times) {
            std::thread::sleep(REST);
            let begin = Instant::now();
            round(number.to_le_bytes()[0]);
            times.push(begin.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[ROUNDS / 2]
    })
}

/// Answers on one eventfd what it hears on the other, as often as there are rounds.
fn answer(cpu: usize, heard: &OwnedFd, answer: &OwnedFd) {
    pin(cpu);
    for _ in 0..ROUNDS {
        rustix::io::read(heard, &mut [0; 8]).unwrap();
        rustix::io::write(answer, &1_u64.to_ne_bytes()).unwrap();
    }
}

/// Has a guest's receive ring interrupt by an eventfd that is waited for by one read, as [`answer`] waits.
fn call_of(bob: &mut Vm) -> OwnedFd {
    let call = eventfd(0, EventfdFlags::empty()).unwrap();
    lend_call(&bob.stream, 0, &call);
    // Answered behind it.
    bob.frontend.get_features().unwrap();
    // The backend has made it non-blocking for all who have it.
    rustix::fs::fcntl_setfl(&call, OFlags::empty()).unwrap();
    call
}

/// The times of two threads that wake each other, and of one frame from a guest to another, with the other thread, and
/// the worker, on this CPU. The guests allocate nothing.
fn measure(cpu: usize) -> [Duration; 2] {
    let [there, back] = [(); 2].map(|()| eventfd(0, EventfdFlags::empty()).unwrap());
    let daemon = Daemon::start(Some(&Cores(vec![cpu]))).unwrap();
    // Not before: a worker goes where its starter may run.
    pin(HERE);
    let joined = Joined::over(daemon);
    let (mut alice, mut bob) = joined.vms();
    alice.tx.set_available_flags(QUIET);
    let call = call_of(&mut bob);
    let mut bytes = frame(100, 0);
    let mut arrived = bytes.clone();
    let mut one_frame = |seed| {
        bytes[100] = seed;
        alice.send_raw(&bytes);
        let head = loop {
            rustix::io::read(&call, &mut [0; 8]).unwrap();
            if let Some((head, _)) = bob.rx.next_used() {
                break head;
            }
        };
        bob.guest.read_into(BUFFERS + u64::from(head) * 2048, &mut arrived);
        assert_eq!(arrived[12..], bytes[12..]);
        bob.rx.offer(head);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| answer(cpu, &there, &back));
        let mut two_eventfds = |_| {
            rustix::io::write(&there, &1_u64.to_ne_bytes()).unwrap();
            rustix::io::read(&back, &mut [0; 8]).unwrap();
        };
        medians([&mut two_eventfds, &mut one_frame])
    })
}

#[test]
#[ignore = "a measurement: make bench runs it"]
fn a_frame_through_an_idle_link_beside_two_eventfds() {
    println!(
        "| one frame, median of {ROUNDS} | two eventfds | vhost-net-backend | ratio |\n| --- | --- | --- | --- |"
    );
    for (place, cpu) in [("two CPUs", HERE + 1), ("one CPU", HERE)] {
        let [eventfds, frames] = measure(cpu);
        let ratio = frames.as_secs_f64() / eventfds.as_secs_f64();
        println!("| {place} | {eventfds:?} | {frames:?} | {ratio:.2} |");
    }
}
