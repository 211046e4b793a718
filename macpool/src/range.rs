//! The addresses that may be given: one or several ranges, less exclusions.
//!
//! Made from flags or the ConfigMap, replaced whole when that changes, never edited. A [`Ranges`] holds at least one
//! unicast address and nothing else, so that nothing behind it checks again.

use std::fmt;
use std::str::FromStr;

use net_types::{Mac, MacError};

use crate::block::{BLOCK_SIZE, Bits, BlockId, address, number};

/// From one address to another, both included, unicast all through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacRange {
    first: u64,
    last: u64,
}

/// Why a range cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not `FIRST-LAST`.
    #[error(
        "{0:?} is not a range of MAC addresses (FIRST-LAST with colons, 02:00:00:00:00:00-02:00:00:ff:ff:ff)"
    )]
    Form(String),
    /// One end is no address.
    #[error("one end of the range is wrong")]
    End(#[source] MacError),
    /// Its end comes before its start.
    #[error("the range ends at {last}, before its start {first}")]
    Inverted {
        /// The start given.
        first: Mac,
        /// The end given.
        last: Mac,
    },
    /// It contains addresses that no NIC can have.
    #[error(
        "the range {first} to {last} contains group addresses or zero; both ends need the same, even first octet"
    )]
    NotUnicast {
        /// The start given.
        first: Mac,
        /// The end given.
        last: Mac,
    },
    /// Nothing left to give.
    #[error("the ranges contain no address, or all of them are excluded")]
    Empty,
}

impl MacRange {
    /// The range from `first` to `last`.
    pub fn new(first: Mac, last: Mac) -> Result<Self, RangeError> {
        if number(first) > number(last) {
            return Err(RangeError::Inverted { first, last });
        }
        // Every second value of the first octet is a group address, so two different ones have some in between.
        if first.octets()[0] != last.octets()[0] || !first.is_unicast() {
            return Err(RangeError::NotUnicast { first, last });
        }
        Ok(Self { first: number(first), last: number(last) })
    }
}

/// `FIRST-LAST`, or one address. Colons only, as the dash is taken.
impl FromStr for MacRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        if !first.contains(':') || !last.contains(':') {
            return Err(RangeError::Form(text.to_owned()));
        }
        Self::new(
            first.trim().parse().map_err(RangeError::End)?,
            last.trim().parse().map_err(RangeError::End)?,
        )
    }
}

impl fmt::Display for MacRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", address(self.first), address(self.last))
    }
}

/// All addresses that may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges {
    /// Sorted, apart from one another.
    ranges: Vec<MacRange>,
    /// The blocks that these touch: first index, last index, and how many blocks come before. Sorted, apart.
    spans: Vec<(u64, u64, u64)>,
}

impl Ranges {
    /// `ranges` (in any order, overlapping or not) without `exclusions`.
    pub fn new(ranges: &[MacRange], exclusions: &[MacRange]) -> Result<Self, RangeError> {
        let mut rest = merged(ranges);
        for exclusion in exclusions {
            rest = rest.into_iter().flat_map(|range| subtract(range, *exclusion)).collect();
        }
        if rest.is_empty() {
            return Err(RangeError::Empty);
        }
        let mut spans: Vec<(u64, u64, u64)> = Vec::new();
        for range in &rest {
            let (first, last) = (range.first / BLOCK_SIZE, range.last / BLOCK_SIZE);
            match spans.last_mut() {
                Some(span) if first <= span.1 => span.1 = last,
                Some(&mut (start, end, before)) => spans.push((first, last, before + end - start + 1)),
                None => spans.push((first, last, 0)),
            }
        }
        Ok(Self { ranges: rest, spans })
    }

    /// May this address be given?
    pub fn contains(&self, mac: Mac) -> bool {
        let number = number(mac);
        let after = self.ranges.partition_point(|range| range.first <= number);
        after.checked_sub(1).and_then(|at| self.ranges.get(at)).is_some_and(|range| number <= range.last)
    }

    /// How many addresses there are.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.last - range.first + 1).sum()
    }

    /// Never: a range without addresses is an error.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many blocks have an address of the ranges.
    pub fn blocks(&self) -> u64 {
        self.spans.last().map_or(0, |(first, last, before)| before + last - first + 1)
    }

    /// The `n`th of these blocks, counted from 0.
    pub fn block(&self, n: u64) -> Option<BlockId> {
        let after = self.spans.partition_point(|(_, _, before)| *before <= n);
        let (first, last, before) = self.spans.get(after.checked_sub(1)?)?;
        let index = first + (n - before);
        (index <= *last).then(|| BlockId::from_index(index))
    }

    /// The addresses of a block that may be given.
    pub fn mask(&self, block: BlockId) -> Bits {
        let (start, end) = (block.index() * BLOCK_SIZE, block.index() * BLOCK_SIZE + BLOCK_SIZE - 1);
        let from = self.ranges.partition_point(|range| range.last < start);
        let mut mask = Bits::EMPTY;
        for range in self.ranges.iter().skip(from).take_while(|range| range.first <= end) {
            if range.first <= start && end <= range.last {
                return Bits::ALL;
            }
            for number in range.first.max(start)..=range.last.min(end) {
                mask.insert(address(number).octets()[5]);
            }
        }
        mask
    }
}

/// The parts in order, for people: `02:00:00:00:00:00-02:00:00:ff:ff:ff, …`.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, range) in self.ranges.iter().enumerate() {
            write!(f, "{}{range}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn merged(ranges: &[MacRange]) -> Vec<MacRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<MacRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(previous) if range.first <= previous.last.saturating_add(1) => {
                previous.last = previous.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// What is left of `range` below and above `hole`.
fn subtract(range: MacRange, hole: MacRange) -> impl Iterator<Item = MacRange> {
    let below = (range.first < hole.first)
        .then(|| MacRange { first: range.first, last: range.last.min(hole.first - 1) });
    let above = (range.last > hole.last)
        .then(|| MacRange { first: range.first.max(hole.last + 1), last: range.last });
    below.into_iter().chain(above)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> MacRange {
        text.parse().unwrap()
    }

    #[test]
    fn a_bad_range_is_refused_with_its_reason() {
        let refused = |text: &str| text.parse::<MacRange>().unwrap_err();
        assert!(matches!(refused("02:00:00:00:01:00-02:00:00:00:00:ff"), RangeError::Inverted { .. }));
        // Grows in one octet and shrinks in a higher one: inverted all the same.
        assert!(matches!(refused("02:00:00:01:00:00-02:00:00:00:ff:ff"), RangeError::Inverted { .. }));
        assert!(matches!(refused("01:00:00:00:00:00-01:00:00:00:00:ff"), RangeError::NotUnicast { .. }));
        assert!(matches!(refused("02:00:00:00:00:00-04:00:00:00:00:ff"), RangeError::NotUnicast { .. }));
        assert!(matches!(refused("00:00:00:00:00:00-00:00:00:00:00:ff"), RangeError::NotUnicast { .. }));
        assert!(matches!(refused("02:00:00:00:00:00-02:00:00:00:00"), RangeError::End(_)));
        assert!(matches!(refused("02-00"), RangeError::Form(_)));
        let all = range("02:00:00:00:00:00-02:00:00:00:00:ff");
        assert_eq!(Ranges::new(&[all], &[all]), Err(RangeError::Empty));
        assert_eq!(Ranges::new(&[], &[]), Err(RangeError::Empty));
    }

    #[test]
    fn blocks_of_ranges_are_counted_once() {
        let ranges = Ranges::new(
            &[range("02:00:00:00:03:f0-02:00:00:00:04:0f"), range("02:00:00:00:00:10-02:00:00:00:01:0f")],
            &[range("02:00:00:00:00:80")],
        )
        .unwrap();
        let blocks: Vec<_> = (0..ranges.blocks()).map(|n| ranges.block(n).unwrap().to_string()).collect();
        assert_eq!(blocks, ["02-00-00-00-00", "02-00-00-00-01", "02-00-00-00-03", "02-00-00-00-04"]);
        assert_eq!(ranges.block(4), None);
        assert_eq!(ranges.len(), 256 - 1 + 32);
        assert_eq!(
            ranges.to_string(),
            "02:00:00:00:00:10-02:00:00:00:00:7f, 02:00:00:00:00:81-02:00:00:00:01:0f, \
             02:00:00:00:03:f0-02:00:00:00:04:0f"
        );
    }

    fn any_range() -> impl Strategy<Value = MacRange> {
        (0u64..2000, 0u64..600).prop_map(|(first, length)| {
            let base = number(Mac([2, 0, 0, 0, 0, 0]));
            MacRange { first: base + first, last: base + first + length }
        })
    }

    proptest! {
        #[test]
        fn ranges_and_masks_agree_with_a_plain_set(
            ranges in prop::collection::vec(any_range(), 1..5),
            holes in prop::collection::vec(any_range(), 0..5),
        ) {
            let mut set = std::collections::BTreeSet::new();
            ranges.iter().for_each(|range| set.extend(range.first..=range.last));
            holes.iter().for_each(|hole| set.retain(|number| !(hole.first..=hole.last).contains(number)));
            match Ranges::new(&ranges, &holes) {
                Err(error) => prop_assert!(error == RangeError::Empty && set.is_empty()),
                Ok(ranges) => {
                    prop_assert_eq!(ranges.len(), set.len() as u64);
                    let mut given = Vec::new();
                    for n in 0..ranges.blocks() {
                        let block = ranges.block(n).unwrap();
                        prop_assert!(!ranges.mask(block).is_empty());
                        given.extend(ranges.mask(block).iter().map(|offset| number(block.mac(offset))));
                    }
                    prop_assert!(given.iter().all(|number| ranges.contains(address(*number))));
                    prop_assert_eq!(given, set.into_iter().collect::<Vec<_>>());
                }
            }
        }
    }
}
