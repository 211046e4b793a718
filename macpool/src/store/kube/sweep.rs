//! Freeing what nobody has: rules 5 and 6 of [`crate::protocol`]. The only way back for an address.
//!
//! The index, which may lag, only tells whether a sweep is worth its cost. What is freed is decided by consistent lists
//! of everything that can have an address, read after the records had been unchanged for the grace time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::blocks::{Swap, Versioned};
use super::objects;
use super::reflect::{ReflectError, read_list};
use super::seen::macs_of;
use crate::block::{Bits, BlockId};
use crate::index::Place;
use crate::record::Record;
use crate::store::lock;

/// Objects per page of a consistent list: etcd and the API server are not to notice.
const PAGE: u32 = 500;
/// A sweep may take this share of the time.
const SHARE: u32 = 20;

/// Runs for the life of the process.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut pause = shared.settings.grace;
    loop {
        // Replicas that started together do not sweep together.
        let jitter = pause.mul_f64(f64::from(u8::try_from(crate::random() % 64).unwrap_or(0)) / 256.0);
        tokio::time::sleep(pause + jitter).await;
        let began = Instant::now();
        match sweep(&shared).await {
            Ok(0) => {}
            Ok(freed) => tracing::info!(addresses = freed, "freed what nobody has"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "could not sweep");
            }
        }
        pause = shared.settings.grace.max(began.elapsed() * SHARE);
    }
}

/// One sweep; returns how many addresses it freed.
async fn sweep(shared: &Arc<Shared>) -> Result<u64, ReflectError> {
    let aged = lock(&shared.pool).age();
    // Who is gone for less than the grace time may be restored.
    let (idle, own, lately) = {
        let index = lock(&shared.index);
        let lately = index.departures(shared.settings.grace);
        let kept = |block| index.used(block).or(lately.get(&block).copied().unwrap_or_default());
        let worth = |block, record: &Record| record.sweep(kept(block)).is_some();
        let idle = shared.blocks.idle(shared.settings.grace, worth);
        let worth = aged.iter().filter(|(block, aged)| !aged.without(kept(*block)).is_empty());
        let own: Vec<BlockId> = worth.map(|(block, _)| *block).collect();
        (idle, own, lately)
    };
    if idle.is_empty() && own.is_empty() {
        return Ok(0);
    }
    let blocks: HashSet<_> = idle.iter().map(|(block, _)| *block).chain(own.iter().copied()).collect();
    let existing = existing(shared, &blocks, lately).await?;
    let existing = |block: BlockId| existing.get(&block).copied().unwrap_or_default();
    let mut freed = 0;
    for block in own {
        freed += u64::from(lock(&shared.pool).reclaim(block, existing(block)));
    }
    for (block, read) in idle {
        freed += free(shared, block, &read, existing(block)).await;
    }
    Ok(freed)
}

/// Swaps in a record without what does not exist, if nothing has happened to it since it was read.
async fn free(shared: &Shared, block: BlockId, read: &Versioned, existing: Bits) -> u64 {
    let Some(record) = read.record.sweep(existing) else { return 0 };
    let freed = u64::from(read.record.taken.len() - record.taken.len());
    match shared.blocks.swap(block, read, record).await {
        Swap::Done => freed,
        Swap::Lost => 0,
        Swap::Maybe(error) => {
            tracing::debug!(%block, error = &error as &dyn std::error::Error, "cannot tell whether a block was swept");
            0
        }
    }
}

/// The addresses of these blocks that exist, by etcd's word, added to those that count as if they did.
async fn existing(
    shared: &Shared,
    blocks: &HashSet<BlockId>,
    mut existing: HashMap<BlockId, Bits>,
) -> Result<HashMap<BlockId, Bits>, ReflectError> {
    let pods = shared.settings.pods.then_some((Place::Pod, objects::PODS));
    // Guests last: an instance that a VM starts meanwhile has the addresses of that VM, which has been read.
    for (place, path) in
        [(Place::Vm, objects::VMS)].into_iter().chain(pods).chain([(Place::Vmi, objects::VMIS)])
    {
        let mut token = String::new();
        loop {
            let meta = read_list(&shared.api, &format!("{path}?limit={PAGE}&continue={token}"), |json| {
                for mac in macs_of(place, json)? {
                    let (block, offset) = BlockId::of(mac);
                    if blocks.contains(&block) {
                        existing.entry(block).or_default().insert(offset);
                    }
                }
                Ok(())
            })
            .await?;
            if meta.continue_token.is_empty() {
                break;
            }
            token = meta.continue_token;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(existing)
}
