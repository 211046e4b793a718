//! Every step that the rules, or a flaw, allow from a world.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use macpool::block::Bits;
use macpool::record::{ClaimStep, Record};

use crate::world::{A, B, Bounds, DEAD, Flaw, PLACES, REPLICAS, Sweep, World, identity};

/// An address given although something had it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Twice(pub(crate) u8);

pub(crate) struct Explorer {
    flaw: Flaw,
    bounds: Bounds,
    /// Hashes of the worlds: of some million, two being equal by accident is out of the question.
    seen: HashSet<u64>,
    todo: Vec<World>,
    hasher: RandomState,
}

impl Explorer {
    /// Explores everything. Returns the number of states, or the first address given twice.
    pub(crate) fn run(flaw: Flaw, bounds: Bounds) -> Result<usize, Twice> {
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
        let world = world.canonical(self.flaw);
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
            ClaimStep::Swap(mut new) => {
                if self.flaw == Flaw::ClaimWithoutTurn {
                    new.turn = b.cache.turn;
                }
                self.write(world, B, new, |next| next.issue(place));
            }
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
                None if self.flaw == Flaw::RenewalRevives => self.step(world, |next| {
                    next.lease = Some(0);
                    next.replicas[A].valid = true;
                }),
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
