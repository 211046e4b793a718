//! Guests and links come and go, for years: a daemon keeps nothing of those that are gone.

use std::time::{Duration, Instant};

use super::super::fake_vm::{BASIC, MERGEABLE, Vm};
use super::{Joined, link};

/// Before what is made once is made, and after.
const WARM_UP: usize = 20;
const CYCLES: usize = 100;
/// Bytes that a cycle may seem to keep: queues of calls grow and shrink by blocks. A guest's memory table is more.
const SLACK: usize = 50;

/// What the process has, without what it has allocated: descriptors, threads, memory files.
#[derive(Debug, PartialEq, Eq)]
struct Held(usize, usize, usize);

fn held() -> Held {
    let count = |folder: &str| std::fs::read_dir(folder).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files = maps.lines().filter(|line| line.contains("/memfd:")).count();
    Held(count("/proc/self/fd"), count("/proc/self/task"), files)
}

/// Waits until the process has what it is to have, and no more bytes than that; says how many. Sessions and threads take a
/// moment to end.
fn settle(wanted: &Held, bytes: usize) -> usize {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let (now, live) = (held(), crate::allocations::live());
        if now == *wanted && live <= bytes {
            return live;
        }
        assert!(Instant::now() < until, "{now:?} is left of {wanted:?}, and {live} bytes of {bytes}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs cycles, and compares what is held after them with what was before.
fn keeps_nothing(mut cycle: impl FnMut()) {
    let before = held();
    (0..WARM_UP).for_each(|_| cycle());
    let live = settle(&before, usize::MAX);
    (0..CYCLES).for_each(|_| cycle());
    settle(&before, live + CYCLES * SLACK);
}

/// A frame goes each way.
fn exchange(alice: &mut Vm, bob: &mut Vm) {
    alice.send(1);
    bob.expect(1);
    bob.send(2);
    alice.expect(2);
}

#[test]
fn links_that_are_removed_leave_nothing() {
    let mut joined = Joined::new();
    let spec = link(joined.directory.path(), "c", "d");
    let sockets = ["c", "d"].map(|name| joined.socket(name));
    keeps_nothing(|| {
        let name = joined.daemon.add(&spec).unwrap();
        let [mut carol, mut dave] = sockets.each_ref().map(|socket| Vm::connect(socket, BASIC | MERGEABLE));
        exchange(&mut carol, &mut dave);
        // With both still connected.
        joined.daemon.remove(&name).unwrap();
    });
}

#[test]
fn guests_that_come_again_leave_nothing_of_their_last_life() {
    let joined = Joined::new();
    let mut alice = Vm::connect(&joined.socket("a"), BASIC | MERGEABLE);
    keeps_nothing(|| {
        let mut bob = Vm::connect(&joined.socket("b"), BASIC | MERGEABLE);
        exchange(&mut alice, &mut bob);
    });
}

#[test]
fn guests_that_are_cut_off_leave_nothing() {
    let joined = Joined::new();
    keeps_nothing(|| {
        let mut alice = Vm::connect(&joined.socket("a"), BASIC);
        alice.tx.set_available(1000);
        alice.kick();
        alice.await_hangup();
    });
}
