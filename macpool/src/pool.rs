//! The addresses this process may give right now, in memory.
//!
//! A store [`hold`](Pool::hold)s blocks for it ahead of need and takes them back; admission [`give`](Pool::give)s from them. Giving is a pop
//! from the first block with something free: it costs the same in an empty range and in one that is all but full.
//! No I/O, no clock, no lock: the owner has those.

use std::collections::{BTreeMap, HashMap, VecDeque};

use net_types::Mac;

use crate::block::{Bits, BlockId};
use crate::range::Ranges;

/// What became of an address that was asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// It was free, and is the asker's now.
    Given,
    /// It was taken already, by whom is not known here.
    Taken,
    /// Its block is not held here.
    NotHeld,
}

/// A block of ours.
#[derive(Debug, Clone, Default)]
struct Held {
    /// Taken before it was ours, or known to be in use.
    taken: Bits,
    /// Given by us: reserved until somebody proves otherwise.
    given: Bits,
    /// Asked for by name, for the record.
    claims: BTreeMap<u8, Box<str>>,
    /// May be given: in the range, neither taken nor given. Kept up to date by every change above.
    free: Bits,
    /// Touched since the last call of [`Pool::age`].
    young: Bits,
    /// Not touched between the last two calls of [`Pool::age`], nor since.
    aged: Bits,
    /// In `Pool::stock`. True whenever `free` is not empty.
    stocked: bool,
}

impl Held {
    fn touch(&mut self, offset: u8) {
        self.young.insert(offset);
        self.aged.remove(offset);
    }

    fn recount(&mut self, mask: Bits) {
        self.free = mask.without(self.taken).without(self.given);
    }
}

/// What to write when a block goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// Which block.
    pub block: BlockId,
    /// The addresses that must not be given by who holds it next: given since it was held, or seen in use.
    pub given: Bits,
    /// Those of them asked for by name.
    pub claims: BTreeMap<u8, Box<str>>,
}

/// The blocks held, and the range they are to be used for.
#[derive(Debug, Clone)]
pub struct Pool {
    ranges: Ranges,
    held: HashMap<BlockId, Held>,
    /// Blocks with something free, in the order they are used up.
    stock: VecDeque<BlockId>,
    /// Free addresses in all of them.
    free: u64,
}

impl Pool {
    /// A pool that holds nothing yet.
    pub fn new(ranges: Ranges) -> Self {
        Self { ranges, held: HashMap::new(), stock: VecDeque::new(), free: 0 }
    }

    /// The range.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Addresses that can be given at once.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Does this process hold the block?
    pub fn holds(&self, block: BlockId) -> bool {
        self.held.contains_key(&block)
    }

    /// The blocks held, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.held.keys().copied()
    }

    /// Is the address taken in a block of ours, and who asked for it by name?
    pub fn taken(&self, mac: Mac) -> (bool, Option<&str>) {
        let (block, offset) = BlockId::of(mac);
        let held = self.held.get(&block);
        let taken = held.is_some_and(|held| held.taken.or(held.given).contains(offset));
        (taken, held.and_then(|held| held.claims.get(&offset)).map(|owner| &**owner))
    }

    /// The addresses of a block that are taken in it while it is ours.
    pub fn taken_in(&self, block: BlockId) -> Bits {
        self.held.get(&block).map(|held| held.taken.or(held.given)).unwrap_or_default()
    }

    /// Gives the next free address.
    pub fn give(&mut self) -> Option<Mac> {
        let block = *self.stock.front()?;
        let held = self.held.get_mut(&block)?;
        let offset = held.free.first()?;
        held.given.insert(offset);
        held.touch(offset);
        held.free.remove(offset);
        self.free -= 1;
        self.shelve(block);
        Some(block.mac(offset))
    }

    /// The next `count` free addresses, which stay free: what a dry run is shown. Fewer if there are fewer.
    pub fn peek(&self, count: usize) -> Vec<Mac> {
        let blocks = self.stock.iter().filter_map(|block| Some((block, self.held.get(block)?)));
        blocks
            .flat_map(|(block, held)| held.free.iter().map(|offset| block.mac(offset)))
            .take(count)
            .collect()
    }

    /// Gives the address that `owner` (`namespace/name`) asks for.
    pub fn give_exact(&mut self, mac: Mac, owner: &str) -> Exact {
        let (block, offset) = BlockId::of(mac);
        let Some(held) = self.held.get_mut(&block) else { return Exact::NotHeld };
        held.claims.insert(offset, owner.into());
        held.touch(offset);
        let new = !held.taken.contains(offset);
        // Given again even if taken, so that it is reserved for this asker when the first one goes.
        let outcome = if held.given.insert(offset) && new { Exact::Given } else { Exact::Taken };
        if held.free.remove(offset) {
            self.free -= 1;
        }
        self.shelve(block);
        outcome
    }

    /// Takes back what was given by a review that is refused after all: nobody has seen these addresses. Only for
    /// those from [`Self::give`] and those [`Exact::Given`]: one that was [`Exact::Taken`] may be somebody else's.
    pub fn undo(&mut self, macs: &[Mac]) {
        for mac in macs {
            let (block, offset) = BlockId::of(*mac);
            let mask = self.ranges.mask(block);
            let Some(held) = self.held.get_mut(&block) else { continue };
            held.claims.remove(&offset);
            if held.given.remove(offset) && mask.contains(offset) && !held.taken.contains(offset) {
                held.free.insert(offset);
                self.free += 1;
            }
            self.shelve(block);
        }
    }

    /// An object was seen with this address: it must not be given, whoever gave it.
    pub fn seen(&mut self, mac: Mac) {
        let (block, offset) = BlockId::of(mac);
        let Some(held) = self.held.get_mut(&block) else { return };
        held.taken.insert(offset);
        held.touch(offset);
        if held.free.remove(offset) {
            self.free -= 1;
        }
        self.shelve(block);
    }

    /// Adds a block. `taken` are its addresses that must not be given.
    pub fn hold(&mut self, block: BlockId, taken: Bits) {
        self.let_go(block);
        let mut held = Held { taken, young: taken, ..Held::default() };
        held.recount(self.ranges.mask(block));
        self.free += u64::from(held.free.len());
        self.held.insert(block, held);
        self.shelve(block);
    }

    /// Forgets a block, and says what was given of it. Nothing is given from it from now on.
    pub fn let_go(&mut self, block: BlockId) -> Option<Returned> {
        let held = self.held.remove(&block)?;
        self.free -= u64::from(held.free.len());
        if held.stocked {
            self.stock.retain(|stocked| *stocked != block);
        }
        // What is only seen in use too: without it the block would look as if it had something to give.
        Some(Returned { block, given: held.given.or(held.taken), claims: held.claims })
    }

    /// Forgets the blocks that have nothing left to give.
    pub fn let_go_of_exhausted(&mut self) -> Vec<Returned> {
        let exhausted: Vec<_> =
            self.held.iter().filter(|(_, held)| held.free.is_empty()).map(|(block, _)| *block).collect();
        exhausted.into_iter().filter_map(|block| self.let_go(block)).collect()
    }

    /// The taken addresses of our blocks that nobody has touched since the previous call: candidates for
    /// [`reclaim`](Self::reclaim).
    pub fn age(&mut self) -> Vec<(BlockId, Bits)> {
        let age = |(block, held): (&BlockId, &mut Held)| {
            held.aged = held.given.or(held.taken).without(held.young);
            held.young = Bits::EMPTY;
            (*block, held.aged)
        };
        self.held.iter_mut().map(age).filter(|(_, aged)| !aged.is_empty()).collect()
    }

    /// Rule 6 of [`crate::protocol`]: the aged addresses of a block that do not exist, and have not been touched since
    /// [`age`](Self::age), become free again. Returns how many.
    pub fn reclaim(&mut self, block: BlockId, existing: Bits) -> u32 {
        let mask = self.ranges.mask(block);
        let Some(held) = self.held.get_mut(&block) else { return 0 };
        let gone = held.aged.without(existing);
        let before = held.free.len();
        held.given = held.given.without(gone);
        held.taken = held.taken.without(gone);
        held.claims.retain(|offset, _| !gone.contains(*offset));
        held.recount(mask);
        let more = held.free.len() - before;
        self.free += u64::from(more);
        self.shelve(block);
        more
    }

    /// Changes the range. What was given stays given; only what may be given changes.
    pub fn set_ranges(&mut self, ranges: Ranges) {
        self.ranges = ranges;
        self.free = 0;
        for (block, held) in &mut self.held {
            held.recount(self.ranges.mask(*block));
            self.free += u64::from(held.free.len());
        }
        let blocks: Vec<_> = self.held.keys().copied().collect();
        blocks.into_iter().for_each(|block| self.shelve(block));
    }

    /// Puts a block into the stock or takes it out, as it has something free or not.
    fn shelve(&mut self, block: BlockId) {
        let Some(held) = self.held.get_mut(&block) else { return };
        match (held.stocked, held.free.is_empty()) {
            (true, true) if self.stock.front() == Some(&block) => drop(self.stock.pop_front()),
            (true, true) => self.stock.retain(|stocked| *stocked != block),
            (false, false) => self.stock.push_back(block),
            (true, false) | (false, true) => {}
        }
        held.stocked = !held.free.is_empty();
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
