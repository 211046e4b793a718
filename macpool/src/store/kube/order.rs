//! Serving one order: addresses asked for by name are claimed, any others come from the pool.

use std::sync::atomic::Ordering;
use std::time::Duration;

use net_types::Mac;
use tokio::time::Instant;

use super::blocks::Swap;
use super::supply::Outcome;
use super::{KubeStore, Shared};
use crate::block::BlockId;
use crate::pool::Exact;
use crate::record::ClaimStep;
use crate::review::{Address, Want};
use crate::segment::{Nic, Segment};
use crate::store::{OnDuplicate, Order, OrderError, Owner, Store, Supplied, lock, may_be};

/// How long a review may wait for a hand-over, within a webhook's default timeout of 10 s.
const PATIENCE: Duration = Duration::from_secs(9);
/// Why nothing can be said of what others have.
const UNSYNCED: &str = "the cluster's objects have not been listed yet";

impl Store for KubeStore {
    async fn order(&self, order: Order<'_>) -> Result<Supplied, OrderError> {
        let shared = &*self.shared;
        let mut warnings = Vec::new();
        for want in order.wants {
            if let Address::Named(mac) | Address::Carried(mac) | Address::Moved(mac) = want.address {
                let nic = Nic { mac, segment: want.segment.clone() };
                warnings.extend(shared.check_duplicate(want, &nic, order.owner)?);
                // The stored object has the other ones.
                if !order.dry_run && matches!(want.address, Address::Named(_)) {
                    shared.claim(&nic, order.owner).await?;
                }
            }
        }
        let any = order.wants.iter().filter(|want| want.address == Address::Any).count();
        // What a dry run names is not claimed, and so may be free.
        let named: Vec<_> = order.wants.iter().filter_map(|want| want.address.named()).collect();
        let dry_run = order.dry_run.then_some(&*named);
        let mut given = shared.any(any, dry_run).await?.into_iter();
        let macs = order.wants.iter().filter_map(|want| match want.address {
            Address::Any => given.next(),
            Address::Named(mac) | Address::Restored(mac) | Address::Carried(mac) | Address::Moved(mac) => {
                Some(mac)
            }
        });
        Ok(Supplied { macs: macs.collect(), warnings })
    }

    /// The watch sees for itself when the VM is gone, and its guest.
    async fn forget(&self, _owner: &Owner) -> Result<(), OrderError> {
        Ok(())
    }

    fn render_metrics(&self, page: &mut String) {
        super::metrics::render(&self.shared, page);
    }

    fn ready(&self) -> Result<(), String> {
        if !self.shared.is_synced() {
            return Err(UNSYNCED.to_owned());
        }
        match self.shared.tenure.current() {
            Some(_) => Ok(()),
            None => Err("the lease is not renewed: the API server cannot be reached".to_owned()),
        }
    }
}

/// Addresses that a review waits for, until it has them or its client is gone.
struct Waiting<'s> {
    shared: &'s Shared,
    count: u64,
}

impl<'s> Waiting<'s> {
    fn new(shared: &'s Shared, count: u64) -> Self {
        shared.wanted.fetch_add(count, Ordering::AcqRel);
        Self { shared, count }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.wanted.fetch_sub(self.count, Ordering::AcqRel);
        // A block that was recalled may go now.
        self.shared.low.notify_one();
    }
}

impl Shared {
    /// A warning, or a refusal, if somebody has been seen with the address whom the NIC can meet.
    fn check_duplicate(&self, want: &Want, nic: &Nic, owner: &Owner) -> Result<Option<String>, OrderError> {
        let mac = nic.mac;
        if self.settings.on_duplicate == OnDuplicate::Reject && !self.is_synced() {
            return Err(OrderError::Unavailable(UNSYNCED.to_owned()));
        }
        let others = lock(&self.index).rivals(owner, nic);
        let Some(other) = others.first() else { return Ok(None) };
        match self.settings.on_duplicate {
            OnDuplicate::Reject => Err(OrderError::Duplicate { mac, owner: other.to_string() }),
            OnDuplicate::Warn => {
                tracing::warn!(%owner, nic = want.nic, %mac, %other, "an address is used twice");
                Ok(Some(format!("interface {:?}: macAddress {mac} is also used by {other}", want.nic)))
            }
        }
    }

    /// Gives `count` addresses, all or none. For a dry run, those it would give, without these.
    async fn any(&self, count: usize, dry_run: Option<&[Mac]>) -> Result<Vec<Mac>, OrderError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if let Some(macs) = self.try_any(count, dry_run) {
            return Ok(macs);
        }
        let _waiting = Waiting::new(self, count as u64);
        self.wait_for_any(count, dry_run).await
    }

    fn try_any(&self, count: usize, dry_run: Option<&[Mac]>) -> Option<Vec<Mac>> {
        let mut pool = lock(&self.pool);
        // Under the pool's lock, so that a tenure that ends has nothing given behind its back.
        self.tenure.current()?;
        if let Some(named) = dry_run {
            let mut macs = pool.peek(count + named.len());
            macs.retain(|mac| !named.contains(mac));
            macs.truncate(count);
            return Some(macs).filter(|macs| macs.len() == count);
        }
        let macs: Vec<_> = std::iter::from_fn(|| pool.give()).take(count).collect();
        if macs.len() < count {
            pool.undo(&macs);
            return None;
        }
        let free = pool.free();
        drop(pool);
        // Half of the stock: the supply has time to answer before the other half is gone.
        if free < self.stock_wanted().div_ceil(2) {
            self.low.notify_one();
        }
        Some(macs)
    }

    async fn wait_for_any(&self, count: usize, dry_run: Option<&[Mac]>) -> Result<Vec<Mac>, OrderError> {
        let deadline = Instant::now() + PATIENCE;
        let mut rounds = self.rounds.subscribe();
        let mut full = 0;
        self.low.notify_one();
        loop {
            let number = rounds.borrow_and_update().number;
            if let Some(macs) = self.try_any(count, dry_run) {
                return Ok(macs);
            }
            match tokio::time::timeout_at(deadline, rounds.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => {
                    return Err(OrderError::Unavailable("no address could be had in time".to_owned()));
                }
            }
            let round = *rounds.borrow();
            match round.outcome {
                // The first may have begun before we asked.
                Outcome::Full if round.number > number => {
                    full += 1;
                    self.low.notify_one();
                }
                Outcome::Failed if self.tenure.current().is_none() => {
                    return Err(OrderError::Unavailable(
                        "this replica may not give addresses: its lease could not be renewed".to_owned(),
                    ));
                }
                Outcome::Full | Outcome::Supplied | Outcome::Asked | Outcome::Failed => {}
            }
            if full >= 2 {
                let pool = lock(&self.pool);
                let ranges = pool.ranges();
                return Err(OrderError::Full { size: ranges.len(), ranges: ranges.to_string() });
            }
        }
    }

    /// Rule 3 of [`crate::protocol`]: reserves an address by name.
    async fn claim(&self, nic: &Nic, owner: &Owner) -> Result<(), OrderError> {
        let mac = nic.mac;
        let (block, offset) = BlockId::of(mac);
        let deadline = Instant::now() + PATIENCE;
        let mut rounds = self.rounds.subscribe();
        let mut read = self.blocks.cached(block);
        loop {
            rounds.borrow_and_update();
            if self.claim_from_pool(nic, owner)? {
                return Ok(());
            }
            let me = self.tenure.identity();
            let claimant = read.record.claims.get(&offset).map(|owner| &**owner);
            let step = read.record.claim(&me, offset, &claim_of(nic, owner, claimant));
            let (record, claims) = match step {
                ClaimStep::Swap(record) => {
                    self.check_reserved(read.record.taken.contains(offset), claimant, nic, owner)?;
                    (Some(record), true)
                }
                ClaimStep::Recall(_, record) => (record, false),
                // By the record only: the supply is handing the block out or back.
                ClaimStep::HeldByMe => (None, false),
            };
            if let Some(record) = record {
                match self.blocks.swap(block, &read, record).await {
                    Swap::Done if claims => return Ok(()),
                    Swap::Done => {}
                    Swap::Lost => {
                        read = self.reread(block).await?;
                        continue;
                    }
                    Swap::Maybe(error) => return Err(unavailable(&error)),
                }
            }
            if tokio::time::timeout_at(deadline, rounds.changed()).await.is_err() {
                return Err(OrderError::Unavailable(format!("{mac} could not be reserved in time")));
            }
            read = self.reread(block).await?;
        }
    }

    async fn reread(&self, block: BlockId) -> Result<super::blocks::Versioned, OrderError> {
        self.blocks.read(block).await.map_err(|error| unavailable(&error))
    }

    /// If the block is ours, our memory is enough.
    fn claim_from_pool(&self, nic: &Nic, owner: &Owner) -> Result<bool, OrderError> {
        let mut pool = lock(&self.pool);
        if self.tenure.current().is_none() {
            return Ok(false);
        }
        let (taken, claimant) = pool.taken(nic.mac);
        self.check_reserved(taken, claimant, nic, owner)?;
        let claim = claim_of(nic, owner, claimant);
        Ok(pool.give_exact(nic.mac, &claim) != Exact::NotHeld)
    }

    /// Two that ask for one address at the same moment are not seen yet by the watch, but by record and memory. Who has
    /// been seen was judged before.
    fn check_reserved(
        &self,
        taken: bool,
        claimant: Option<&str>,
        nic: &Nic,
        owner: &Owner,
    ) -> Result<(), OrderError> {
        if !taken || self.settings.on_duplicate == OnDuplicate::Warn || nic.segment == Segment::Alone {
            return Ok(());
        }
        let (seen, had_last) = {
            let index = lock(&self.index);
            (index.owners(nic.mac), index.had_last(owner, nic.mac, self.settings.grace / 2))
        };
        let reserved = match claimant {
            Some(claimant) if claimant == owner.to_string() => return Ok(()),
            Some(claimant) if seen.iter().any(|other| may_be(claimant, &other.to_string())) => return Ok(()),
            Some(claimant) => claimant.to_owned(),
            None if !seen.is_empty() => return Ok(()),
            // Deleted a short while ago, and restored: no sweep frees what has been gone for less than the grace time.
            None if had_last => return Ok(()),
            None => "an object that is being created, or was deleted a short while ago".to_owned(),
        };
        Err(OrderError::Duplicate { mac: nic.mac, owner: reserved })
    }
}

/// Whose claim it is. A NIC that meets nobody leaves that of another, whom others can meet.
fn claim_of(nic: &Nic, owner: &Owner, claimant: Option<&str>) -> String {
    match claimant.filter(|_| nic.segment == Segment::Alone) {
        Some(claimant) => claimant.to_owned(),
        None => owner.to_string(),
    }
}

fn unavailable(error: &super::api::ApiError) -> OrderError {
    OrderError::Unavailable(format!("the address could not be reserved: {error}"))
}
