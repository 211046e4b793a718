//! Keeps the pool supplied with blocks, and gives blocks back: rules 1, 2 and 4 of [`crate::protocol`].
//!
//! One task, [`run`], woken by whoever finds the pool low and by every change of the records. Each of its rounds ends with an
//! [`Outcome`], for which those wait who want an address that is not there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::Shared;
use super::blocks::{Swap, Versioned};
use crate::block::{Bits, BlockId};
use crate::pool::Returned;
use crate::record::{Identity, Record};
use crate::store::lock;

/// Blocks taken at once: their swaps are under way together.
const AT_ONCE: usize = 4;
/// How often the holders of other blocks are looked at.
const LOOK: Duration = Duration::from_secs(1);

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

/// Runs for the life of the process.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            () = shared.low.notified() => {}
            () = shared.blocks.changed.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        if looked.elapsed() > LOOK {
            depose(&shared).await;
            looked = Instant::now();
        }
        let outcome = round(&shared).await;
        shared.rounds.send_modify(|round| *round = Round { number: round.number + 1, outcome });
    }
}

async fn round(shared: &Arc<Shared>) -> Outcome {
    let Some(me) = shared.tenure.current() else { return Outcome::Failed };
    if !shared.is_synced() {
        return Outcome::Failed;
    }
    hand_back(shared, &me).await;
    loop {
        let (free, waiting) = (lock(&shared.pool).free(), shared.waiting());
        if free >= shared.stock_wanted().max(waiting) {
            return Outcome::Supplied;
        }
        let candidates = shared.blocks.candidates(AT_ONCE);
        if candidates.is_empty() {
            return match waiting > free {
                true => ask(shared, &me).await,
                false => Outcome::Supplied,
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
    let used = lock(&shared.index).used(block);
    let mut pool = lock(&shared.pool);
    // A tenure that ended meanwhile has lost this block too.
    if shared.tenure.is_current(me) {
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

/// Rule 2, for exhausted and recalled blocks, and for those that are ours by record only: an answer got lost.
async fn hand_back(shared: &Arc<Shared>, me: &Identity) {
    let mut returned = lock(&shared.pool).let_go_of_exhausted();
    let ours = shared.blocks.held(|holder| holder == me);
    for (block, Versioned { record, .. }, _) in ours {
        let mut pool = lock(&shared.pool);
        if record.recall || !pool.holds(block) {
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
    let failed = join_all(owed.into_iter().map(|back| retire(shared, me, back))).await;
    lock(&shared.owed).extend(failed.into_iter().flatten().map(|back| (back.block, back)));
}

/// Writes one block back. Returns it if that has to be tried again.
pub(super) async fn retire(shared: &Shared, me: &Identity, back: Returned) -> Option<Returned> {
    let mut read = shared.blocks.cached(back.block);
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
            Swap::Lost => {}
            Swap::Maybe(error) => {
                tracing::warn!(block = %back.block, error = &error as &dyn std::error::Error, "cannot hand a block back yet");
                return Some(back);
            }
        }
    }
    match read.record.holder.as_ref() == Some(me) {
        true => Some(back),
        false => None,
    }
}

/// Rule 4: takes blocks from holders without a lease.
async fn depose(shared: &Shared) {
    let me = shared.tenure.identity();
    let held = shared.blocks.held(|holder| *holder != me);
    let mut known: Vec<(Identity, bool)> = Vec::new();
    for (block, read, since) in held {
        let Some(holder) = read.record.holder.clone() else { continue };
        // Who took a block a moment ago is alive.
        if since.elapsed() < LOOK {
            continue;
        }
        let gone = match known.iter().find(|(identity, _)| *identity == holder) {
            Some((_, gone)) => *gone,
            None => {
                let gone = shared.tenure.is_gone(&holder).await.unwrap_or(false);
                known.push((holder.clone(), gone));
                gone
            }
        };
        if let Some(record) = read.record.depose(&holder).filter(|_| gone) {
            let swap = shared.blocks.swap(block, &read, record).await;
            tracing::info!(%block, %holder, ?swap, "taking a block from a replica that is gone");
        }
    }
}

/// Asks another replica for a block, when nothing else is left.
async fn ask(shared: &Shared, me: &Identity) -> Outcome {
    let Some((block, read)) = shared.blocks.held_by_other(me) else { return Outcome::Full };
    if read.record.recall {
        return Outcome::Asked;
    }
    let record = Record { recall: true, ..read.record.clone() };
    match shared.blocks.swap(block, &read, record).await {
        Swap::Done | Swap::Lost => Outcome::Asked,
        Swap::Maybe(_) => Outcome::Failed,
    }
}
