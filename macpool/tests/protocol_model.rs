//! The protocol of `macpool::protocol`, explored: every interleaving of two replicas over one block of two addresses, with
//! crashes, lost answers, stale reads, paused replicas and writes that reach etcd late.
//!
//! The replicas' decisions are the functions of `macpool::record` themselves; the model adds the API server (versions,
//! compare-and-swap), leases, memory, and VMs on their way to etcd. The promise: an address is given only if nothing that exists
//! or may yet come to exist has it. Each rule that the argument leans on is then taken out in turn, and the explorer has to find
//! an address given twice; so it would notice if the code lost that rule.
//!
//! Replica A may crash or be paused for any time, B lives, deposes, sweeps and asks for an address by name.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use macpool::block::Bits;
use macpool::record::{ClaimStep, Identity, Record};

/// The range: places 0 and 1 of the block.
const PLACES: [u8; 2] = [0, 1];
const REPLICAS: [usize; 2] = [A, B];
const A: usize = 0;
const B: usize = 1;

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Writes of the record do not compare.
    BlindSwap,
    /// The lease of a silent replica is deleted whatever its version.
    BlindDepose,
    /// A replica gives although its lease is not renewed.
    GiveWithoutLease,
    /// A sweep does not wait for what is under way to etcd.
    SweepAtOnce,
    /// A holder that died is taken to have given nothing.
    DeposeKeepsFree,
    /// A block that goes back forgets what was given of it.
    RetireForgets,
}

/// How much may happen in one history. Every combination within these is explored.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Writes of the record.
    writes: u8,
    /// Addresses given or claimed.
    issued: u8,
    /// Renewals of A's lease.
    renewals: u8,
    /// Answers that get lost.
    lost: u8,
}

/// A VM whose review was answered and that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct UnderWay {
    place: u8,
    /// The sweep waits until it has landed or failed.
    awaited: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Replica {
    alive: bool,
    /// Believes that it may give.
    valid: bool,
    /// The last record read, however old.
    cache: Record,
    version: u8,
    /// The block in memory: what is taken, and what was given since.
    pool: Option<(Bits, Bits)>,
    /// Let go by memory, not written back yet.
    owed: Option<Bits>,
}

/// One that crashed, or forgot everything.
const DEAD: Replica = Replica {
    alive: false,
    valid: false,
    cache: Record { holder: None, recall: false, taken: Bits::EMPTY, claims: BTreeMap::new(), turn: 0 },
    version: 0,
    pool: None,
    owed: None,
};

/// B's sweep, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sweep {
    Idle,
    /// Observing this version, until what is awaited is not under way any more.
    Observing(u8, Record),
    /// Has listed what exists since.
    Listed(u8, Record, Bits),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    record: Record,
    version: u8,
    /// A's lease: its version, or none. B's never ends.
    lease: Option<u8>,
    renewals: u8,
    lost: u8,
    /// B has seen A's lease at this version for longer than its validity.
    silent: Option<u8>,
    replicas: [Replica; 2],
    sweep: Sweep,
    under_way: Vec<UnderWay>,
    stored: Vec<u8>,
    issued: u8,
}

fn identity(replica: usize) -> Identity {
    Identity(["a", "b"][replica].into())
}

impl World {
    fn new() -> Self {
        let replica = Replica { alive: true, valid: true, ..DEAD };
        Self {
            record: Record::default(),
            version: 0,
            lease: Some(0),
            renewals: 0,
            lost: 0,
            silent: None,
            replicas: [replica.clone(), replica],
            sweep: Sweep::Idle,
            under_way: Vec::new(),
            stored: Vec::new(),
            issued: 0,
        }
    }

    fn in_use(&self, place: u8) -> bool {
        self.stored.contains(&place) || self.under_way.iter().any(|vm| vm.place == place)
    }

    /// A review of `replica` is answered with this address.
    fn issue(&mut self, place: u8) {
        self.under_way.push(UnderWay { place, awaited: false });
        self.under_way.sort_unstable();
        self.issued += 1;
    }

    /// The API server's PUT.
    fn swap(&mut self, read: u8, new: Record, flaw: Flaw) -> bool {
        let same = self.version == read || flaw == Flaw::BlindSwap;
        if same {
            self.record = new;
            self.version += 1;
        }
        same
    }
}

/// An address given although something had it.
#[derive(Debug, PartialEq, Eq)]
struct Twice(u8);

struct Explorer {
    flaw: Flaw,
    bounds: Bounds,
    /// Hashes of the worlds: of some million, two being equal by accident is out of the question.
    seen: HashSet<u64>,
    todo: Vec<World>,
    hasher: RandomState,
}

impl Explorer {
    /// Explores everything. Returns the number of states, or the first address given twice.
    fn run(flaw: Flaw, bounds: Bounds) -> Result<usize, Twice> {
        let mut explorer =
            Self { flaw, bounds, seen: HashSet::new(), todo: vec![World::new()], hasher: RandomState::new() };
        while let Some(world) = explorer.todo.pop() {
            for replica in REPLICAS {
                if world.replicas[replica].alive {
                    explorer.replica(&world, replica)?;
                }
            }
            explorer.tenure_of_a(&world);
            explorer.sweep(&world);
            explorer.cluster(&world);
        }
        Ok(explorer.seen.len())
    }

    fn reach(&mut self, world: World) {
        if world.version <= self.bounds.writes && self.seen.insert(self.hasher.hash_one(&world)) {
            self.todo.push(world);
        }
    }

    fn step(&mut self, world: &World, change: impl FnOnce(&mut World)) {
        let mut next = world.clone();
        change(&mut next);
        self.reach(next);
    }

    /// A write of the record by a replica: with its answer, and with its answer lost.
    fn write(&mut self, world: &World, me: usize, new: Record, then: impl FnOnce(&mut World)) {
        let mut next = world.clone();
        let read = next.replicas[me].version;
        if next.swap(read, new, self.flaw) {
            if next.lost < self.bounds.lost {
                let mut unheard = next.clone();
                unheard.lost += 1;
                self.reach(unheard);
            }
            (next.replicas[me].cache, next.replicas[me].version) = (next.record.clone(), next.version);
            then(&mut next);
            self.reach(next);
        }
    }

    /// Rules 1 to 3, and reading.
    fn replica(&mut self, world: &World, me: usize) -> Result<(), Twice> {
        let replica = &world.replicas[me];
        let name = identity(me);
        self.step(world, |next| {
            (next.replicas[me].cache, next.replicas[me].version) = (next.record.clone(), next.version);
        });
        let may_give = replica.valid || self.flaw == Flaw::GiveWithoutLease;
        if let (None, None, true, Some(new)) =
            (&replica.pool, &replica.owed, may_give, replica.cache.hold(&name))
        {
            let taken = new.taken;
            self.write(world, me, new, |next| next.replicas[me].pool = Some((taken, Bits::EMPTY)));
        }
        if let Some((taken, given)) = replica.pool {
            self.give(world, me, taken, given, may_give)?;
            self.step(world, |next| {
                next.replicas[me].pool = None;
                next.replicas[me].owed = Some(given);
            });
        }
        // What is owed is written with the record that was read last, or again once a newer one is.
        let ours_by_record_only = replica.pool.is_none() && replica.cache.holder.as_ref() == Some(&name);
        let owed = replica.owed.or(ours_by_record_only.then_some(Bits::EMPTY));
        if let Some(owed) = owed {
            let owed = if self.flaw == Flaw::RetireForgets { Bits::EMPTY } else { owed };
            match replica.cache.retire(&name, owed, &BTreeMap::new()) {
                Some(new) => self.write(world, me, new, |next| next.replicas[me].owed = None),
                // Only etcd's word ends a debt.
                None if replica.version == world.version => {
                    self.step(world, |next| next.replicas[me].owed = None);
                }
                None => {}
            }
        }
        if me == B {
            self.claim(world, 0);
        }
        Ok(())
    }

    fn give(&mut self, world: &World, me: usize, taken: Bits, given: Bits, may: bool) -> Result<(), Twice> {
        let free = PLACES.into_iter().find(|place| !taken.or(given).contains(*place));
        let Some(place) = free.filter(|_| may && world.issued < self.bounds.issued) else { return Ok(()) };
        if world.in_use(place) {
            return Err(Twice(place));
        }
        self.step(world, |next| {
            let mut given = given;
            given.insert(place);
            next.replicas[me].pool = Some((taken, given));
            next.issue(place);
        });
        Ok(())
    }

    /// B reviews a VM that asks for a place by name.
    fn claim(&mut self, world: &World, place: u8) {
        if world.issued == self.bounds.issued {
            return;
        }
        let b = &world.replicas[B];
        if let Some((taken, mut given)) = b.pool {
            self.step(world, |next| {
                given.insert(place);
                next.replicas[B].pool = Some((taken, given));
                next.issue(place);
            });
            return;
        }
        match b.cache.claim(&identity(B), place, "ns/named") {
            ClaimStep::Swap(new) => self.write(world, B, new, |next| next.issue(place)),
            ClaimStep::Recall(_, Some(new)) => self.write(world, B, new, |_| {}),
            ClaimStep::Recall(_, None) | ClaimStep::HeldByMe => {}
        }
    }

    /// Rule 4: A's lease, and B's patience with it.
    fn tenure_of_a(&mut self, world: &World) {
        let a = &world.replicas[A];
        if a.alive {
            match world.lease {
                // The answer may come or get lost; a renewal that succeeded unheard still changes the version.
                Some(version) if world.renewals < self.bounds.renewals => {
                    let mut next = world.clone();
                    next.lease = Some(version + 1);
                    next.renewals += 1;
                    self.reach(next.clone());
                    next.replicas[A].valid = true;
                    self.reach(next);
                }
                Some(_) => {}
                // It finds out, and forgets; as a new identity it would be a third replica.
                None => self.step(world, |next| next.replicas[A] = DEAD),
            }
            self.step(world, |next| next.replicas[A].valid = false);
            self.step(world, |next| next.replicas[A] = DEAD);
        }
        if world.silent.is_none() && world.lease.is_some() {
            // Time passes for both: whatever A was told up to this version has run out when B has waited.
            self.step(world, |next| {
                next.silent = next.lease;
                next.replicas[A].valid = false;
            });
        }
        if let (Some(seen), Some(version)) = (world.silent, world.lease) {
            let same = seen == version || self.flaw == Flaw::BlindDepose;
            self.step(world, |next| {
                next.silent = None;
                next.lease = if same { None } else { next.lease };
            });
        }
        if world.lease.is_none()
            && let Some(mut new) = world.replicas[B].cache.depose(&identity(A))
        {
            if self.flaw == Flaw::DeposeKeepsFree {
                new.taken = world.replicas[B].cache.taken;
            }
            self.write(world, B, new, |_| {});
        }
    }

    /// Rule 5, by B.
    fn sweep(&mut self, world: &World) {
        let flaw = self.flaw;
        match &world.sweep {
            Sweep::Idle if world.record.holder.is_none() && !world.record.is_void() => {
                self.step(world, |next| {
                    next.under_way.iter_mut().for_each(|vm| vm.awaited = true);
                    next.sweep = Sweep::Observing(next.version, next.record.clone());
                });
            }
            Sweep::Idle => {}
            Sweep::Observing(version, record) => {
                if flaw == Flaw::SweepAtOnce || !world.under_way.iter().any(|vm| vm.awaited) {
                    let existing = world.stored.iter().copied().collect();
                    self.step(world, |next| next.sweep = Sweep::Listed(*version, record.clone(), existing));
                }
            }
            Sweep::Listed(version, record, existing) => self.step(world, |next| {
                next.sweep = Sweep::Idle;
                next.under_way.iter_mut().for_each(|vm| vm.awaited = false);
                if let Some(new) = record.sweep(*existing) {
                    next.swap(*version, new, flaw);
                }
            }),
        }
    }

    /// What the API server and users do: reviews become VMs or are refused by somebody else, and VMs go.
    fn cluster(&mut self, world: &World) {
        for at in 0..world.under_way.len() {
            self.step(world, |next| {
                let vm = next.under_way.remove(at);
                next.stored.push(vm.place);
                next.stored.sort_unstable();
                next.stored.dedup();
            });
            self.step(world, |next| {
                next.under_way.remove(at);
            });
        }
        for place in &world.stored {
            self.step(world, |next| next.stored.retain(|stored| stored != place));
        }
    }
}

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
