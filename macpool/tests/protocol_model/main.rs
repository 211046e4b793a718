//! The protocol of `macpool::protocol`, explored: every interleaving of two replicas over one block of two addresses, with
//! crashes, lost answers, stale reads, paused replicas and writes that reach etcd late.
//!
//! The replicas' decisions are the functions of `macpool::record` themselves; the model adds the API server (versions,
//! compare-and-swap), leases, memory, and VMs on their way to etcd. The promise: an address is given only if nothing that exists
//! or may yet come to exist has it. Each rule that the argument leans on is then taken out in turn, and the explorer has to find
//! an address given twice; so it would notice if the code lost that rule.
//!
//! Replica A may crash or be paused for any time, B lives, deposes, sweeps and asks for an address by name.

mod explorer;
mod world;

use explorer::{Explorer, Twice};
use world::{Bounds, Flaw, PLACES};

const SMALL: Bounds = Bounds { writes: 3, issued: 2, renewals: 1, lost: 1 };

#[track_caller]
fn assert_safe(bounds: Bounds) {
    let outcome = Explorer::run(Flaw::None, bounds);
    // Fewer states would mean that the model does not do what it says.
    assert!(matches!(outcome, Ok(states) if states > 100_000), "{outcome:?}");
}

#[test]
fn no_interleaving_gives_an_address_twice() {
    assert_safe(Bounds { writes: 4, lost: 0, ..SMALL });
}

#[test]
fn nor_does_one_with_a_lost_answer() {
    assert_safe(SMALL);
}

#[track_caller]
fn assert_noticed(flaw: Flaw) {
    let outcome = Explorer::run(flaw, SMALL);
    assert!(matches!(outcome, Err(Twice(place)) if PLACES.contains(&place)), "{flaw:?} goes unnoticed");
}

#[test]
fn without_the_compare_and_swap_one_is() {
    assert_noticed(Flaw::BlindSwap);
}

#[test]
fn without_comparing_the_lease_one_is() {
    assert_noticed(Flaw::BlindDepose);
}

#[test]
fn without_minding_the_lease_one_is() {
    assert_noticed(Flaw::GiveWithoutLease);
}

#[test]
fn without_the_grace_time_one_is() {
    assert_noticed(Flaw::SweepAtOnce);
}

#[test]
fn without_distrusting_the_dead_one_is() {
    assert_noticed(Flaw::DeposeKeepsFree);
}

#[test]
fn without_writing_back_what_was_given_one_is() {
    assert_noticed(Flaw::RetireForgets);
}
