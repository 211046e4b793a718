//! The model's state: API server, leases, replicas' memory, and VMs on their way to etcd.

use std::collections::BTreeMap;

use macpool::block::Bits;
use macpool::record::{Identity, Record};

/// The range: places 0 and 1 of the block.
pub(crate) const PLACES: [u8; 2] = [0, 1];
pub(crate) const REPLICAS: [usize; 2] = [A, B];
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// The version of a record that is not the stored one any more.
const STALE: u8 = u8::MAX;

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// Writes of the record do not compare.
    BlindSwap,
    /// The lease of a silent replica is deleted whatever its version.
    BlindDepose,
    /// A renewal makes a lease anew that was deleted.
    RenewalRevives,
    /// A replica gives although its lease is not renewed.
    GiveWithoutLease,
    /// A sweep does not wait for what is under way to etcd.
    SweepAtOnce,
    /// A holder that died is taken to have given nothing.
    DeposeKeepsFree,
    /// A block that goes back forgets what was given of it.
    RetireForgets,
    /// A repeated claim changes nothing in the record.
    ClaimWithoutTurn,
}

/// How much may happen in one history. Every combination within these is explored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Writes of the record.
    pub(crate) writes: u8,
    /// Addresses given or claimed.
    pub(crate) issued: u8,
    /// Renewals of A's lease.
    pub(crate) renewals: u8,
    /// Answers that get lost.
    pub(crate) lost: u8,
}

/// A VM whose review was answered and that is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct UnderWay {
    pub(crate) place: u8,
    /// The sweep waits until it has landed or failed.
    pub(crate) awaited: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Replica {
    pub(crate) alive: bool,
    /// Believes that it may give.
    pub(crate) valid: bool,
    /// The last record read, however old.
    pub(crate) cache: Record,
    pub(crate) version: u8,
    /// The block in memory: what is taken, and what was given since.
    pub(crate) pool: Option<(Bits, Bits)>,
    /// Let go by memory, not written back yet.
    pub(crate) owed: Option<Bits>,
}

/// One that crashed, or forgot everything.
pub(crate) const DEAD: Replica = Replica {
    alive: false,
    valid: false,
    cache: Record { holder: None, recall: false, taken: Bits::EMPTY, claims: BTreeMap::new(), turn: 0 },
    version: 0,
    pool: None,
    owed: None,
};

/// B's sweep, step by step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Sweep {
    Idle,
    /// Observing this version, until what is awaited is not under way any more.
    Observing(u8, Record),
    /// Has listed what exists since.
    Listed(u8, Record, Bits),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) record: Record,
    pub(crate) version: u8,
    /// A's lease: its version, or none. B's never ends.
    pub(crate) lease: Option<u8>,
    pub(crate) renewals: u8,
    pub(crate) lost: u8,
    /// B has seen A's lease at this version for longer than its validity.
    pub(crate) silent: Option<u8>,
    pub(crate) replicas: [Replica; 2],
    pub(crate) sweep: Sweep,
    pub(crate) under_way: Vec<UnderWay>,
    pub(crate) stored: Vec<u8>,
    pub(crate) issued: u8,
}

pub(crate) fn identity(replica: usize) -> Identity {
    Identity(["a", "b"][replica].into())
}

impl World {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn in_use(&self, place: u8) -> bool {
        self.stored.contains(&place) || self.under_way.iter().any(|vm| vm.place == place)
    }

    /// A review of `replica` is answered with this address.
    pub(crate) fn issue(&mut self, place: u8) {
        self.under_way.push(UnderWay { place, awaited: false });
        self.under_way.sort_unstable();
        self.issued += 1;
    }

    /// The API server's PUT. One that changes nothing succeeds, and leaves the version as it is.
    pub(crate) fn swap(&mut self, read: u8, new: Record, flaw: Flaw) -> bool {
        let same = self.version == read || flaw == Flaw::BlindSwap;
        if same && self.record != new {
            self.record = new;
            self.version += 1;
        }
        same
    }

    /// The same world without what can make no difference any more, so that histories that differ in nothing else meet:
    /// a record that was read before the last write (as no write of it can succeed), what the counters count beyond
    /// telling a record from the one before, and a lease whose holder is gone.
    pub(crate) fn canonical(mut self, flaw: Flaw) -> Self {
        if flaw == Flaw::BlindSwap {
            return self;
        }
        for replica in &mut self.replicas {
            if replica.version != self.version {
                (replica.cache, replica.version) = (Record::default(), STALE);
            }
            replica.cache.turn = 0;
        }
        self.record.turn = 0;
        // An observation that a write has ended is given up.
        let observed = match &mut self.sweep {
            Sweep::Observing(version, record) | Sweep::Listed(version, record, _) => {
                record.turn = 0;
                *version == self.version
            }
            Sweep::Idle => false,
        };
        if !observed {
            self.sweep = Sweep::Idle;
            self.under_way.iter_mut().for_each(|vm| vm.awaited = false);
            self.under_way.sort_unstable();
        }
        if self.lease.is_none() {
            (self.renewals, self.silent) = (0, None);
        }
        self
    }
}
