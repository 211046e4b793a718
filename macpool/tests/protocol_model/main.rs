//! The protocol of `macpool::protocol`, explored: every interleaving of two replicas over one block of two addresses, with
//! crashes, lost answers, stale reads, paused replicas and writes that reach etcd late.
//!
//! The replicas' decisions are the functions of `macpool::record` themselves; the model adds the API server (versions,
//! compare-and-swap, writes that change nothing), leases, memory, and VMs on their way to etcd. The promise: an address is
//! given only if nothing that exists or may yet come to exist has it. Each rule that the argument leans on is then taken out
//! in turn, and the explorer has to find an address given twice; so it would notice if the code lost that rule.
//!
//! Replica A may crash or be paused for any time, B lives, deposes, sweeps and asks for an address by name.
//!
//! What is explored is every history of up to four writes of the record, one renewal of the lease, and either three
//! addresses asked for, or two and one answer that gets lost. Histories that can differ in nothing any more count as one
//! (`World::canonical`), which makes tens of thousands of states out of millions.

mod explorer;
mod world;

use explorer::{Explorer, Twice};
use world::{Bounds, Flaw, PLACES};

const SMALL: Bounds = Bounds { writes: 3, issued: 2, renewals: 1, lost: 1 };

#[track_caller]
fn assert_safe(bounds: Bounds) {
    let outcome = Explorer::run(Flaw::None, bounds);
    // Fewer states would mean that the model does not do what it says.
    assert!(matches!(outcome, Ok(states) if states > 50_000), "{outcome:?}");
}

#[test]
fn no_interleaving_gives_an_address_twice() {
    assert_safe(Bounds { writes: 4, issued: 3, lost: 0, ..SMALL });
}

#[test]
fn nor_does_one_with_a_lost_answer() {
    assert_safe(Bounds { writes: 4, ..SMALL });
}

#[track_caller]
fn assert_noticed(flaw: Flaw) {
    assert_noticed_within(flaw, SMALL);
}

#[track_caller]
fn assert_noticed_within(flaw: Flaw, bounds: Bounds) {
    let outcome = Explorer::run(flaw, bounds);
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
fn without_the_end_of_a_deleted_lease_one_is() {
    assert_noticed(Flaw::RenewalRevives);
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

#[test]
fn without_a_trace_of_every_claim_one_is() {
    // Claimed, gone, and claimed again while the sweep is at it; then given.
    assert_noticed_within(Flaw::ClaimWithoutTurn, Bounds { issued: 3, ..SMALL });
}
