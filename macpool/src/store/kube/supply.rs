//! Keeps the pool supplied with blocks, and gives blocks back: rules 1, 2 and 4 of [`crate::protocol`].
//!
//! One task, [`run`], woken by whoever finds the pool low and by every change of the records. Each of its rounds ends with an
//! [`Outcome`], for which those wait who want an address that is not there. Another, [`watch_over`], frees the blocks of the dead.
//!
//! In a range of few blocks these pass from replica to replica. One that was asked for goes back as soon as nobody here waits
//! for what is in it, and is left to who asked ([`Yielded`]): each hand-over takes two writes, whoever is faster.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Shared;
use super::blocks::{Swap, ToRecall, Versioned};
use super::tenure::Seen;
use crate::block::{Bits, BlockId};
use crate::pool::Returned;
use crate::record::{Identity, Record};
use crate::store::lock;

/// Blocks taken at once when the stock is nearly gone: their swaps are under way together. Else they are taken one by one,
/// since reviews share the machine with the API server.
const AT_ONCE: usize = 4;

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The pool has what it should.
    Supplied,
    /// Another replica has been asked for a block.
    Asked,
    /// There is no free address anywhere.
    Full,
    /// The API server could not be asked, or we may not give.
    Failed,
}

/// The last round that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Counts them.
    pub(super) number: u64,
    /// How it ended.
    pub(super) outcome: Outcome,
}

/// Blocks that went back because another replica asked for them, as they were then.
#[derive(Debug, Default)]
struct Yielded(HashMap<BlockId, (Option<Box<str>>, Instant)>);

impl Yielded {
    fn add(&mut self, shared: &Shared, block: BlockId) {
        self.0.insert(block, (shared.blocks.cached(block).version, Instant::now()));
    }

    /// Those to be left alone: nobody has touched them yet, and who asked may still be alive.
    fn left_alone(&mut self, shared: &Shared) -> HashSet<BlockId> {
        let silence = shared.settings.terms.silence;
        self.0.retain(|block, (version, since)| {
            since.elapsed() < silence && shared.blocks.cached(*block).version == *version
        });
        self.0.keys().copied().collect()
    }
}

/// Runs for the life of the process.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut yielded = Yielded::default();
    loop {
        tokio::select! {
            () = shared.low.notified() => {}
            () = shared.blocks.changed.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let outcome = round(&shared, &mut yielded).await;
        shared.rounds.send_modify(|round| *round = Round { number: round.number + 1, outcome });
    }
}

/// Rule 4: ends the tenure of replicas that went silent, and takes the blocks of those without a lease. For the life of the
/// process.
pub(super) async fn watch_over(shared: Arc<Shared>) {
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(shared.settings.terms.renew / 2).await;
        // Read before the leases are: whoever held a block then had one, and whoever has none now is gone for good.
        let me = shared.tenure.identity();
        let held = shared.blocks.held(|holder| *holder != me);
        match shared.tenure.depose_the_silent(&mut seen).await {
            Ok(living) => depose(&shared, held, &living).await,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at the leases");
            }
        }
    }
}

async fn depose(shared: &Shared, held: Vec<(BlockId, Versioned)>, living: &HashSet<Identity>) {
    for (block, read) in held {
        let Some(holder) = read.record.holder.clone().filter(|holder| !living.contains(holder)) else {
            continue;
        };
        if let Some(record) = read.record.depose(&holder) {
            let swap = shared.blocks.swap(block, &read, record).await;
            tracing::info!(%block, %holder, ?swap, "taking a block from a replica that is gone");
        }
    }
}

async fn round(shared: &Arc<Shared>, yielded: &mut Yielded) -> Outcome {
    let Some(me) = shared.tenure.current() else { return Outcome::Failed };
    if !shared.is_synced() {
        return Outcome::Failed;
    }
    hand_back(shared, &me, yielded).await;
    loop {
        let (free, waiting) = (lock(&shared.pool).free(), shared.waiting());
        if free >= shared.stock_wanted().max(waiting) {
            return Outcome::Supplied;
        }
        let mut left_alone = yielded.left_alone(shared);
        // Nor those of which it is not known yet whether they have gone back: they would do so once they are ours again.
        left_alone.extend(lock(&shared.owed).keys());
        let urgent = waiting > 0 || free < shared.stock_wanted() / 4;
        // One that is ours may have lost its record meanwhile. Taken again, what was given of it would be forgotten.
        let not = left_alone.iter().copied().chain(lock(&shared.pool).blocks()).collect();
        let candidates = shared.blocks.candidates(if urgent { AT_ONCE } else { 1 }, &not);
        if candidates.is_empty() {
            if waiting <= free {
                return Outcome::Supplied;
            }
            return match ask(shared, &me).await {
                // What we left to others is not gone: they take it, and can be asked for it.
                Outcome::Full if !left_alone.is_empty() => Outcome::Asked,
                outcome => outcome,
            };
        }
        let tries = candidates.into_iter().map(|block| hold(shared, &me, block));
        if join_all(tries).await.into_iter().any(|outcome| outcome == Outcome::Failed) {
            return Outcome::Failed;
        }
        // Whoever waits need not wait for the rest.
        shared.rounds.send_modify(|round| round.outcome = Outcome::Supplied);
    }
}

/// Rule 1.
async fn hold(shared: &Shared, me: &Identity, block: BlockId) -> Outcome {
    let read = shared.blocks.cached(block);
    let Some(record) = read.record.hold(me) else { return Outcome::Supplied };
    let taken = record.taken;
    match shared.blocks.swap(block, &read, record).await {
        Swap::Done => {}
        Swap::Lost => return reread(shared, block).await,
        Swap::Maybe(error) => {
            tracing::warn!(%block, error = &error as &dyn std::error::Error, "cannot tell whether a block is ours");
            return Outcome::Failed;
        }
    }
    let mut pool = lock(&shared.pool);
    // A tenure that ended meanwhile has lost this block too. Under the pool's lock: one that ends now takes it out again.
    if shared.tenure.identity() == *me {
        // Read under the pool's lock: who is seen later finds the block there.
        let used = lock(&shared.index).used(block);
        pool.hold(block, taken.or(used));
    }
    Outcome::Supplied
}

async fn reread(shared: &Shared, block: BlockId) -> Outcome {
    match shared.blocks.read(block).await {
        Ok(_) => Outcome::Supplied,
        Err(_) => Outcome::Failed,
    }
}

/// The blocks that we hold in memory only: somebody has deleted their records, or written over them.
async fn lost(shared: &Shared, me: &Identity) -> Vec<BlockId> {
    let is_ours = |read: &Versioned| read.record.holder.as_ref() == Some(me);
    let held: Vec<_> = lock(&shared.pool).blocks().collect();
    let mut lost = Vec::new();
    for block in held {
        // The cache may not show our own holding yet.
        if !is_ours(&shared.blocks.cached(block))
            && shared.blocks.read(block).await.is_ok_and(|read| !is_ours(&read))
        {
            tracing::warn!(%block, "a block's record is not as this replica wrote it; the block is let go");
            lost.push(block);
        }
    }
    lost
}

/// Rule 2, for exhausted and recalled blocks, for those that are ours by record only, as an answer got lost, and for those
/// that are by memory only.
async fn hand_back(shared: &Arc<Shared>, me: &Identity, yielded: &mut Yielded) {
    let lost = lost(shared, me).await;
    let mut returned: Vec<_> = {
        let mut pool = lock(&shared.pool);
        let lost: Vec<_> = lost.into_iter().filter_map(|block| pool.let_go(block)).collect();
        lost.into_iter().chain(pool.let_go_of_exhausted()).collect()
    };
    let ours = shared.blocks.held(|holder| holder == me);
    let recalled: Vec<BlockId> =
        ours.iter().filter(|(_, read)| read.record.recall).map(|(block, _)| *block).collect();
    for (block, Versioned { record, .. }) in ours {
        let mut pool = lock(&shared.pool);
        // Reviews that wait here for what there is take it in a moment, and wake us.
        let busy = (1..=pool.free()).contains(&shared.waiting());
        if record.recall && !busy || !pool.holds(block) {
            let nothing = Returned { block, given: Bits::EMPTY, claims: Default::default() };
            let back = pool.let_go(block).unwrap_or(nothing);
            if !returned.iter().any(|other| other.block == block) {
                returned.push(back);
            }
        }
    }
    let owed: Vec<_> = {
        let mut owed = lock(&shared.owed);
        for back in returned {
            owed.entry(back.block).or_insert(back);
        }
        std::mem::take(&mut *owed).into_values().collect()
    };
    let mut owed = owed.into_iter();
    // One after the other: reviews share the machine with the API server.
    while let Some(back) = owed.next() {
        let block = back.block;
        if let Some(back) = retire(shared, me, back).await {
            lock(&shared.owed).extend(std::iter::once(back).chain(owed).map(|back| (back.block, back)));
            return;
        }
        if recalled.contains(&block) {
            yielded.add(shared, block);
        }
    }
}

/// Writes one block back. Returns it if that has to be tried again.
pub(super) async fn retire(shared: &Shared, me: &Identity, back: Returned) -> Option<Returned> {
    let mut read = shared.blocks.cached(back.block);
    let mut lost = false;
    // The cache may not show our own holding yet, so "not ours" is believed only when etcd says so.
    for fresh in [false, true] {
        if fresh {
            read = match shared.blocks.read(back.block).await {
                Ok(read) => read,
                Err(_) => return Some(back),
            };
        }
        let Some(record) = read.record.retire(me, back.given, &back.claims) else { continue };
        match shared.blocks.swap(back.block, &read, record).await {
            Swap::Done => return None,
            Swap::Lost => lost = fresh,
            Swap::Maybe(error) => {
                tracing::warn!(block = %back.block, error = &error as &dyn std::error::Error, "cannot hand a block back yet");
                return Some(back);
            }
        }
    }
    // Somebody was faster than our look at it: the next one tells.
    match lost || read.record.holder.as_ref() == Some(me) {
        true => Some(back),
        false => None,
    }
}

/// Asks another replica for a block, when nothing else is left.
async fn ask(shared: &Shared, me: &Identity) -> Outcome {
    let (block, read) = match shared.blocks.to_recall(me) {
        ToRecall::Nothing => return Outcome::Full,
        ToRecall::Asked => return Outcome::Asked,
        ToRecall::Ask(block, read) => (block, read),
    };
    let record = Record { recall: true, ..read.record.clone() };
    match shared.blocks.swap(block, &read, record).await {
        Swap::Done | Swap::Lost => Outcome::Asked,
        Swap::Maybe(_) => Outcome::Failed,
    }
}
