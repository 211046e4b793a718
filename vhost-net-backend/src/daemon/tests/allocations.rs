//! A worker allocates nothing for a frame, whatever is done with it on its way.

use std::time::Duration;

use super::super::fake_vm::{BASIC, MERGEABLE, Vm};
use super::{Joined, large_segment};
use crate::mirror::Seen;
use crate::ring::fake::frame;

/// Checksums and TSO, as a sender.
const CSUM_AND_TSO: u64 = 1 | 1 << 11;
const FRAMES: u64 = 2000;

/// How often the link's worker has allocated. To ask allocates nothing there.
fn allocations(joined: &Joined) -> u64 {
    joined.daemon.links[0].worker.call(|_| crate::allocations::of_this_thread()).unwrap()
}

/// Sends frames from the first guest to the second, one by one, and says how often the worker allocated meanwhile.
fn exchange(joined: &Joined, bytes: &[u8], features: u64) -> u64 {
    let mut alice = Vm::connect(&joined.socket("a"), BASIC | CSUM_AND_TSO);
    let mut bob = Vm::connect(&joined.socket("b"), BASIC | MERGEABLE | features);
    let mut receive = |alice: &mut Vm| {
        alice.send_raw(bytes);
        bob.receive().len()
    };
    receive(&mut alice);
    let before = allocations(joined);
    for _ in 0..FRAMES {
        receive(&mut alice);
    }
    allocations(joined) - before
}

#[test]
fn plain_frames_cost_no_allocation() {
    assert_eq!(exchange(&Joined::new(), &frame(100, 1), 0), 0);
}

#[test]
fn frames_that_are_finished_in_software_cost_no_allocation() {
    assert_eq!(exchange(&Joined::new(), &large_segment(2500), 0), 0);
}

#[test]
fn frames_that_are_kept_unfinished_cost_no_allocation() {
    assert_eq!(exchange(&Joined::new(), &large_segment(2500), 1 << 1 | 1 << 7), 0);
}

#[test]
fn frames_that_are_checked_observed_limited_and_captured_cost_no_allocation() {
    let mut joined = Joined::new();
    let [a, b] = ["a", "b"].map(|name| joined.socket(name));
    let old = joined.daemon.report()[0].name.clone();
    joined.daemon.remove(&old).unwrap();
    let options = "source=02:00:00:00:00:01&bytes=100000000&packets=10000000&observe";
    let ends = format!("vhost-user:{}?{options},vhost-user:{}", a.display(), b.display());
    let name = joined.daemon.add(&ends.parse().unwrap()).unwrap();
    let viewer = joined.daemon.capture(&name, 96).unwrap();
    let mut bytes = frame(100, 1);
    bytes[18..24].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    assert_eq!(exchange(&joined, &bytes, 0), 0);
    let Seen::Frame(record) = viewer.next(Duration::from_secs(10)) else { panic!("nothing was captured") };
    assert_eq!(record.bytes(), &bytes[12..108]);
}
