//! The store of one machine: owns the range alone, remembers in a journal.
//!
//! For VMs without a cluster. There is nothing to watch, so the journal is the truth: what was given to a NIC stays that
//! NIC's, also when the VM goes down and comes up from the same manifest, until a DELETE review says that it is
//! gone for good. A reservation is on disk before its review is answered.
//!
//! With each reservation stands the network of its NIC, as the last review had it.

mod journal;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use net_types::Mac;

use crate::block::{Bits, BlockId};
use crate::metrics;
use crate::pool::Pool;
use crate::range::Ranges;
use crate::review::{Address, Want};
use crate::segment::{Domains, Segment};
use crate::store::{OnDuplicate, Order, OrderError, Owner, Store, Supplied, lock};
pub use journal::JournalError;
use journal::{Entry, Journal};

/// One reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Whose.
    pub owner: Owner,
    /// Of which NIC.
    pub nic: Box<str>,
    /// The address.
    pub mac: Mac,
    /// Where its frames go. Not known of those in older journals.
    pub segment: Option<Segment>,
}

/// How duplicates are told, and treated.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// What becomes of a VM that asks for an address another one has.
    pub on_duplicate: OnDuplicate,
    /// Networks that never meet.
    pub domains: Domains,
}

/// The machine's store.
pub struct DirStore {
    policy: Policy,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    journal: Journal,
    reserved: Reserved,
    /// The next block of the range to be held.
    cursor: u64,
}

/// A NIC of an owner.
#[derive(Debug, Clone)]
struct Nic {
    name: Box<str>,
    mac: Mac,
    /// Not known of those in older journals.
    segment: Option<Segment>,
}

impl Nic {
    /// Can it meet a NIC there?
    fn meets(&self, segment: &Segment, domains: &Domains) -> bool {
        match (&self.segment, segment) {
            (Some(Segment::Alone), _) | (_, Segment::Alone) => false,
            (Some(Segment::Network(one)), Segment::Network(other)) => domains.meet(one, other),
            (None, Segment::Network(_)) => true,
        }
    }
}

/// What the journal says, both ways.
#[derive(Default)]
struct Reserved {
    /// The addresses of one NIC in the order in which it got them.
    nics: HashMap<Owner, Vec<Nic>>,
    owners: HashMap<Mac, Vec<Owner>>,
}

impl DirStore {
    /// Opens the journal in `directory`, which is made if needed. One process at a time.
    pub fn open(directory: &Path, ranges: Ranges, policy: Policy) -> Result<Self, JournalError> {
        let mut reserved = Reserved::default();
        let journal = Journal::open(directory, |entry| reserved.apply(&entry))?;
        let mut state = State { pool: Pool::new(ranges), journal, reserved, cursor: 0 };
        state.journal.compact(state.reserved.entries())?;
        Ok(Self { policy, state: Mutex::new(state) })
    }

    /// Reads the reservations without opening the store, for `inspect`.
    pub fn read(directory: &Path) -> Result<Vec<Reservation>, JournalError> {
        let mut reserved = Reserved::default();
        Journal::read(&directory.join(journal::FILE), |entry| reserved.apply(&entry))?;
        let mut all: Vec<_> = reserved
            .nics
            .into_iter()
            .flat_map(|(owner, nics)| {
                nics.into_iter().map(move |Nic { name: nic, mac, segment }| Reservation {
                    owner: owner.clone(),
                    nic,
                    mac,
                    segment,
                })
            })
            .collect();
        all.sort_by(|one, two| (one.mac, &one.owner).cmp(&(two.mac, &two.owner)));
        Ok(all)
    }

    /// Where the journal of `directory` is.
    pub fn journal_path(directory: &Path) -> PathBuf {
        directory.join(journal::FILE)
    }
}

impl Store for DirStore {
    async fn order(&self, order: Order<'_>) -> Result<Supplied, OrderError> {
        // A write and an fdatasync: other reviews of this machine may go on meanwhile.
        tokio::task::block_in_place(|| lock(&self.state).order(order, &self.policy))
    }

    async fn forget(&self, owner: &Owner) -> Result<(), OrderError> {
        tokio::task::block_in_place(|| lock(&self.state).forget(owner))
    }

    fn render_metrics(&self, page: &mut String) {
        let state = lock(&self.state);
        metrics::header(page, "macpool_range_addresses", "gauge", "Addresses that may be given.");
        metrics::sample(page, "macpool_range_addresses", "", state.pool.ranges().len());
        metrics::header(page, "macpool_taken_addresses", "gauge", "Addresses that are reserved.");
        metrics::sample(page, "macpool_taken_addresses", "", state.reserved.owners.len());
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Reserved {
    fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Reserve { owner, nic, mac, segment } => {
                let nics = self.nics.entry(owner.clone()).or_default();
                nics.retain(|known| (&known.name, known.mac) != (nic, *mac));
                nics.push(Nic { name: nic.clone(), mac: *mac, segment: segment.clone() });
                let owners = self.owners.entry(*mac).or_default();
                if !owners.contains(owner) {
                    owners.push(owner.clone());
                }
            }
            Entry::Forget { owner } => {
                for Nic { mac, .. } in self.nics.remove(owner).unwrap_or_default() {
                    if let Some(owners) = self.owners.get_mut(&mac) {
                        owners.retain(|other| other != owner);
                    }
                    if self.owners.get(&mac).is_some_and(Vec::is_empty) {
                        self.owners.remove(&mac);
                    }
                }
            }
        }
    }

    /// The NIC as it was reserved last.
    fn of(&self, owner: &Owner, nic: &str) -> Option<&Nic> {
        self.nics.get(owner)?.iter().rev().find(|known| *known.name == *nic)
    }

    /// Somebody else with this address whom a NIC in `segment` can meet.
    fn rival(&self, owner: &Owner, mac: Mac, segment: &Segment, domains: &Domains) -> Option<&Owner> {
        let mut others = self.owners.get(&mac)?.iter().filter(|other| *other != owner);
        others.find(|other| {
            let mut nics = self.nics.get(*other).into_iter().flatten().filter(|nic| nic.mac == mac);
            nics.any(|nic| nic.meets(segment, domains))
        })
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.nics.iter().flat_map(|(owner, nics)| {
            let reserve = |nic: &Nic| Entry::Reserve {
                owner: owner.clone(),
                nic: nic.name.clone(),
                mac: nic.mac,
                segment: nic.segment.clone(),
            };
            nics.iter().map(reserve)
        })
    }
}

impl State {
    fn order(&mut self, order: Order<'_>, policy: &Policy) -> Result<Supplied, OrderError> {
        if order.owner.is_unnamed() {
            return Err(OrderError::NoName);
        }
        let mut supplied = Supplied::default();
        let (mut fresh, mut entries) = (Vec::new(), Vec::new());
        for want in order.wants {
            let outcome = self.one(order, want, policy, &mut fresh);
            let (mac, warning) = match outcome {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.pool.undo(&fresh);
                    return Err(error);
                }
            };
            supplied.macs.push(mac);
            supplied.warnings.extend(warning);
            let known = self.reserved.of(order.owner, &want.nic);
            if !known.is_some_and(|nic| (nic.mac, nic.segment.as_ref()) == (mac, Some(&want.segment))) {
                entries.push(Entry::Reserve {
                    owner: order.owner.clone(),
                    nic: want.nic.as_str().into(),
                    mac,
                    segment: Some(want.segment.clone()),
                });
            }
        }
        if order.dry_run {
            self.pool.undo(&fresh);
            return Ok(supplied);
        }
        if let Err(error) = self.write(&entries) {
            self.pool.undo(&fresh);
            return Err(OrderError::Unavailable(error.to_string()));
        }
        Ok(supplied)
    }

    fn one(
        &mut self,
        Order { owner, wants, .. }: Order<'_>,
        want: &Want,
        policy: &Policy,
        fresh: &mut Vec<Mac>,
    ) -> Result<(Mac, Option<String>), OrderError> {
        let mac = match want.address {
            Address::Any => {
                // Unless another NIC of the VM is to have it now.
                let known = self.reserved.of(owner, &want.nic);
                let known =
                    known.filter(|nic| !wants.iter().any(|want| want.address.named() == Some(nic.mac)));
                let mac = match known {
                    Some(nic) => nic.mac,
                    None => self.give()?,
                };
                if !self.reserved.owners.contains_key(&mac) {
                    fresh.push(mac);
                }
                return Ok((mac, None));
            }
            Address::Restored(mac) | Address::Carried(mac) | Address::Named(mac) | Address::Moved(mac) => mac,
        };
        let other = self.reserved.rival(owner, mac, &want.segment, &policy.domains);
        match (other, policy.on_duplicate) {
            (None, _) => {}
            (Some(other), OnDuplicate::Reject) => {
                return Err(OrderError::Duplicate { mac, owner: other.to_string() });
            }
            (Some(other), OnDuplicate::Warn) => {
                return Ok((
                    mac,
                    Some(format!("interface {:?}: macAddress {mac} is also used by {other}", want.nic)),
                ));
            }
        }
        if self.pool.give_exact(mac, &owner.key) == crate::pool::Exact::Given {
            fresh.push(mac);
        }
        Ok((mac, None))
    }

    /// The next free address, from the next block if the held ones are used up.
    fn give(&mut self) -> Result<Mac, OrderError> {
        loop {
            if let Some(mac) = self.pool.give() {
                return Ok(mac);
            }
            let Some(block) = self.pool.ranges().block(self.cursor) else {
                let ranges = self.pool.ranges();
                return Err(OrderError::Full { size: ranges.len(), ranges: ranges.to_string() });
            };
            self.cursor += 1;
            let taken = self.taken(block);
            self.pool.hold(block, taken);
        }
    }

    fn taken(&self, block: BlockId) -> Bits {
        (0..=u8::MAX).filter(|offset| self.reserved.owners.contains_key(&block.mac(*offset))).collect()
    }

    fn forget(&mut self, owner: &Owner) -> Result<(), OrderError> {
        let Some(nics) = self.reserved.nics.get(owner).cloned() else { return Ok(()) };
        self.write(&[Entry::Forget { owner: owner.clone() }])
            .map_err(|error| OrderError::Unavailable(error.to_string()))?;
        // The blocks are read anew, so that the addresses are free again, at the end of the line.
        let blocks: std::collections::BTreeSet<_> =
            nics.iter().map(|nic| BlockId::of(nic.mac).0).filter(|block| self.pool.holds(*block)).collect();
        for block in blocks {
            let taken = self.taken(block);
            self.pool.hold(block, taken);
        }
        Ok(())
    }

    /// On disk first, then in memory.
    fn write(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        self.journal.append(entries)?;
        entries.iter().for_each(|entry| self.reserved.apply(entry));
        let live = self.reserved.nics.values().map(Vec::len).sum();
        // What was to be written is. That the journal stays long for now is no reason to refuse it.
        if self.journal.is_bloated(live)
            && let Err(error) = self.journal.compact(self.reserved.entries())
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the journal could not be made shorter");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
