//! The blocks' records: reading and swapping them in the API server, and a cache of them.
//!
//! The cache says where to look for free addresses and which blocks changed when. It may lag: a swap compares the version,
//! so a stale entry costs a round trip and nothing else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::api::{Api, ApiError};
use super::objects::{BLOCKS, MacBlock};
use super::reflect::Sink;
use crate::block::{Bits, BlockId};
use crate::range::Ranges;
use crate::record::{Identity, Record};
use crate::store::lock;

/// A record as it was read. No version: there is no object, which means the empty record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Versioned {
    /// What it says.
    pub(super) record: Record,
    /// Its version.
    pub(super) version: Option<Box<str>>,
}

/// What became of a swap.
#[derive(Debug)]
pub(super) enum Swap {
    /// It happened.
    Done,
    /// Somebody else was faster; read again.
    Lost,
    /// Unknown; read again.
    Maybe(ApiError),
}

/// Whom to ask for a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToRecall {
    /// Nobody: no other replica holds one.
    Nothing,
    /// Nobody more: all of them have been asked.
    Asked,
    /// The holder of this one.
    Ask(BlockId, Versioned),
}

struct Cached {
    versioned: Versioned,
    /// When we first saw this version.
    since: Instant,
}

struct State {
    ranges: Ranges,
    cache: HashMap<BlockId, Cached>,
    /// Blocks with addresses in the range that have a record.
    known: u64,
    /// Of those, the ones that nobody holds and that have something free.
    spare: BTreeSet<BlockId>,
    /// Blocks that somebody holds, in the range or not.
    held: BTreeSet<BlockId>,
    /// Where to look next for a block without a record: an index into the ranges' blocks.
    cursor: u64,
    listing: Option<BTreeSet<BlockId>>,
}

/// All records.
pub(super) struct Blocks {
    api: Api,
    state: Mutex<State>,
    /// Something changed.
    pub(super) changed: Notify,
    synced: std::sync::atomic::AtomicBool,
}

impl Blocks {
    /// Knows nothing yet. `seed` says where to begin looking for untouched blocks, so that replicas begin apart.
    pub(super) fn new(api: Api, ranges: Ranges, seed: u64) -> Arc<Self> {
        let state = Mutex::new(State::new(ranges, seed));
        Arc::new(Self { api, state, changed: Notify::new(), synced: false.into() })
    }

    /// Has the first list been read?
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Reads a record from etcd.
    pub(super) async fn read(&self, block: BlockId) -> Result<Versioned, ApiError> {
        match self.api.get::<MacBlock>(&format!("{BLOCKS}/{block}")).await {
            Ok(object) => {
                let versioned =
                    Versioned { record: object.spec, version: Some(object.metadata.resource_version.into()) };
                lock(&self.state).put(block, versioned.clone());
                Ok(versioned)
            }
            Err(ApiError::NotFound { .. }) => {
                lock(&self.state).remove(block);
                Ok(Versioned::default())
            }
            Err(error) => Err(error),
        }
    }

    /// The record as the cache has it.
    pub(super) fn cached(&self, block: BlockId) -> Versioned {
        lock(&self.state).cache.get(&block).map(|cached| cached.versioned.clone()).unwrap_or_default()
    }

    /// Writes `record` if the stored one still has the version `read`. A record that says nothing is deleted.
    pub(super) async fn swap(&self, block: BlockId, read: &Versioned, record: Record) -> Swap {
        let path = format!("{BLOCKS}/{block}");
        let void = record.is_void();
        let written: Result<Option<MacBlock>, ApiError> = match &read.version {
            None => self.api.post(BLOCKS, &MacBlock::new(block.to_string(), None, record)).await.map(Some),
            Some(version) if void => self.api.delete(&path, version).await.map(|()| None),
            Some(version) => {
                self.api.put(&path, &MacBlock::new(block.to_string(), Some(version), record)).await.map(Some)
            }
        };
        match written {
            Ok(None) => lock(&self.state).remove(block),
            Ok(Some(object)) => {
                let version = Some(object.metadata.resource_version.into());
                lock(&self.state).put(block, Versioned { record: object.spec, version });
            }
            Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => return Swap::Lost,
            Err(error) => return Swap::Maybe(error),
        }
        Swap::Done
    }

    /// Up to `count` blocks that are worth holding, in the order to try them; none of `others`.
    pub(super) fn candidates(&self, count: usize, others: &HashSet<BlockId>) -> Vec<BlockId> {
        lock(&self.state).candidates(count, others)
    }

    /// A block of the range to ask another replica for: of one that has not been asked for any yet.
    pub(super) fn to_recall(&self, me: &Identity) -> ToRecall {
        let state = lock(&self.state);
        let held = state.held.iter().filter(|block| !state.ranges.mask(**block).is_empty());
        let held = held.filter_map(|block| Some((*block, &state.cache.get(block)?.versioned)));
        let (mut asked, mut not_asked) = (HashSet::new(), Vec::new());
        for (block, read) in held {
            match &read.record.holder {
                Some(holder) if holder == me => {}
                Some(holder) if read.record.recall => drop(asked.insert(holder)),
                Some(holder) => not_asked.push((block, holder, read)),
                None => {}
            }
        }
        match not_asked.iter().find(|(_, holder, _)| !asked.contains(holder)) {
            Some((block, _, read)) => ToRecall::Ask(*block, (*read).clone()),
            None if asked.is_empty() => ToRecall::Nothing,
            None => ToRecall::Asked,
        }
    }

    /// The blocks of the holders that `wanted` picks.
    pub(super) fn held(&self, wanted: impl Fn(&Identity) -> bool) -> Vec<(BlockId, Versioned)> {
        let state = lock(&self.state);
        let entries = state.held.iter().filter_map(|block| Some((*block, state.cache.get(block)?)));
        let picked =
            entries.filter(|(_, cached)| cached.versioned.record.holder.as_ref().is_some_and(&wanted));
        picked.map(|(block, cached)| (block, cached.versioned.clone())).collect()
    }

    /// The blocks that nobody holds and that have been as they are for `time`, if `wanted` picks them.
    pub(super) fn idle(
        &self,
        time: Duration,
        wanted: impl Fn(BlockId, &Record) -> bool,
    ) -> Vec<(BlockId, Versioned)> {
        lock(&self.state).idle(time, wanted, Instant::now())
    }

    /// Replaces the range.
    pub(super) fn set_ranges(&self, ranges: Ranges) {
        lock(&self.state).set_ranges(ranges);
        self.changed.notify_one();
    }

    /// Addresses of the range that are taken according to the records, which of a held block say what was before, and to `more`.
    pub(super) fn taken(&self, more: &HashMap<BlockId, Bits>) -> u64 {
        let state = lock(&self.state);
        let taken = state.cache.iter().map(|(block, cached)| {
            let taken = cached.versioned.record.taken.or(more.get(block).copied().unwrap_or_default());
            u64::from(state.ranges.mask(*block).and(taken).len())
        });
        taken.sum()
    }
}

/// Versions of one resource type grow (Kubernetes KEP-5504); used only to keep an older answer from hiding a newer one.
fn is_older(new: Option<&str>, old: Option<&str>) -> bool {
    let number = |version: Option<&str>| version.and_then(|version| version.parse::<u64>().ok());
    matches!((number(new), number(old)), (Some(new), Some(old)) if new < old)
}

impl State {
    fn new(ranges: Ranges, seed: u64) -> Self {
        let cursor = seed % ranges.blocks().max(1);
        Self {
            ranges,
            cache: HashMap::new(),
            known: 0,
            spare: BTreeSet::new(),
            held: BTreeSet::new(),
            cursor,
            listing: None,
        }
    }

    fn put(&mut self, block: BlockId, versioned: Versioned) {
        if let Some(old) = self.cache.get(&block) {
            let (new, old) = (versioned.version.as_deref(), old.versioned.version.as_deref());
            if new == old || is_older(new, old) {
                return;
            }
        }
        let (mask, record) = (self.ranges.mask(block), &versioned.record);
        self.spare.remove(&block);
        self.held.remove(&block);
        if record.holder.is_some() {
            self.held.insert(block);
        } else if !mask.without(record.taken).is_empty() {
            self.spare.insert(block);
        }
        let new = self.cache.insert(block, Cached { versioned, since: Instant::now() }).is_none();
        self.known += u64::from(new && !mask.is_empty());
    }

    fn remove(&mut self, block: BlockId) {
        self.spare.remove(&block);
        self.held.remove(&block);
        let was = self.cache.remove(&block).is_some();
        self.known -= u64::from(was && !self.ranges.mask(block).is_empty());
    }

    fn set_ranges(&mut self, ranges: Ranges) {
        self.cursor %= ranges.blocks().max(1);
        self.ranges = ranges;
        self.known = 0;
        self.spare.clear();
        self.held.clear();
        for (block, cached) in std::mem::take(&mut self.cache) {
            let since = cached.since;
            self.put(block, cached.versioned);
            if let Some(again) = self.cache.get_mut(&block) {
                again.since = since;
            }
        }
    }

    fn idle(
        &self,
        time: Duration,
        wanted: impl Fn(BlockId, &Record) -> bool,
        now: Instant,
    ) -> Vec<(BlockId, Versioned)> {
        let idle = self.cache.iter().filter(|(block, cached)| {
            let record = &cached.versioned.record;
            record.holder.is_none() && now.duration_since(cached.since) >= time && wanted(**block, record)
        });
        idle.map(|(block, cached)| (*block, cached.versioned.clone())).collect()
    }

    /// Untouched blocks first: an address that was used once is used again as late as possible.
    fn candidates(&mut self, count: usize, others: &HashSet<BlockId>) -> Vec<BlockId> {
        let mut found = Vec::new();
        let blocks = self.ranges.blocks();
        let mut untouched = (blocks - self.known.min(blocks)).min(count as u64);
        // Among so many different blocks there are enough without a record.
        for _ in 0..blocks.min((self.cache.len() + others.len()) as u64 + untouched) {
            if untouched == 0 {
                break;
            }
            let Some(block) = self.ranges.block(self.cursor) else { break };
            self.cursor = (self.cursor + 1) % blocks;
            if !self.cache.contains_key(&block) && !others.contains(&block) {
                found.push(block);
                untouched -= 1;
            }
        }
        let rest = count.saturating_sub(found.len());
        found.extend(self.spare.iter().filter(|block| !others.contains(block)).take(rest));
        found
    }
}

/// Feeds the cache from the watch.
pub(super) struct BlocksSink(pub(super) Arc<Blocks>);

impl BlocksSink {
    fn object(json: &[u8]) -> Result<Option<(BlockId, Versioned)>, serde_json::Error> {
        let object: MacBlock = serde_json::from_slice(json)?;
        let Ok(block) = object.metadata.name.parse() else {
            tracing::warn!(name = object.metadata.name, "a MacBlock whose name is no block is ignored");
            return Ok(None);
        };
        let version = Some(object.metadata.resource_version.into());
        Ok(Some((block, Versioned { record: object.spec, version })))
    }
}

impl Sink for BlocksSink {
    fn listing(&mut self) {
        let mut state = lock(&self.0.state);
        state.listing = Some(state.cache.keys().copied().collect());
    }

    fn put(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        if let Some((block, versioned)) = Self::object(json)? {
            let mut state = lock(&self.0.state);
            if let Some(unlisted) = &mut state.listing {
                unlisted.remove(&block);
            }
            state.put(block, versioned);
            drop(state);
            self.0.changed.notify_one();
        }
        Ok(())
    }

    fn gone(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        if let Some((block, versioned)) = Self::object(json)? {
            let mut state = lock(&self.0.state);
            let cached = state.cache.get(&block).and_then(|cached| cached.versioned.version.as_deref());
            // An old event must not hide a record that we have made since.
            if !is_older(versioned.version.as_deref(), cached) {
                state.remove(block);
            }
        }
        self.0.changed.notify_one();
        Ok(())
    }

    fn listed(&mut self) {
        let mut state = lock(&self.0.state);
        for block in state.listing.take().unwrap_or_default() {
            state.remove(block);
        }
        self.0.synced.store(true, std::sync::atomic::Ordering::Release);
        drop(state);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
