//! Blocks of 256 addresses, the unit that replicas hold, and sets of addresses within one.
//!
//! Arithmetic only. Records, ranges and the pool are built on it.

use std::fmt;
use std::str::FromStr;

use net_types::Mac;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Addresses in a block.
pub const BLOCK_SIZE: u64 = 256;

/// A MAC address as a number, first octet highest: ranges and blocks are intervals of these.
pub const fn number(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.octets();
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// The address of a number below 2⁴⁸; higher bits are ignored.
pub const fn address(number: u64) -> Mac {
    let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
    Mac([a, b, c, d, e, f])
}

/// A block: the first five octets that its addresses share. Prints as `02-00-00-00-01`, an object's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(u64);

impl BlockId {
    /// The block of an address, and its place there.
    pub const fn of(mac: Mac) -> (Self, u8) {
        (Self(number(mac) / BLOCK_SIZE), mac.octets()[5])
    }

    /// The block with an index: the first five octets as a number below 2⁴⁰.
    pub const fn from_index(index: u64) -> Self {
        Self(index & 0xff_ffff_ffff)
    }

    /// The first five octets as a number.
    pub const fn index(self) -> u64 {
        self.0
    }

    /// The address at a place.
    pub const fn mac(self, offset: u8) -> Mac {
        let [_, _, _, a, b, c, d, e] = self.0.to_be_bytes();
        Mac([a, b, c, d, e, offset])
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, _] = self.mac(0).octets();
        write!(f, "{a:02x}-{b:02x}-{c:02x}-{d:02x}-{e:02x}")
    }
}

/// A text that names no block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a block of MAC addresses (five hexadecimal octets such as 02-00-00-00-01)")]
pub struct BlockIdError(String);

impl FromStr for BlockId {
    type Err = BlockIdError;

    fn from_str(text: &str) -> Result<Self, BlockIdError> {
        let first: Mac =
            format!("{text}-00").parse().map_err(|_not_five_octets| BlockIdError(text.to_owned()))?;
        Ok(Self::of(first).0)
    }
}

/// A set of addresses of one block. Serializes as 64 hexadecimal digits, the highest address first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Bits([u64; 4]);

impl Bits {
    /// No address.
    pub const EMPTY: Self = Self([0; 4]);
    /// Every address.
    pub const ALL: Self = Self([u64::MAX; 4]);

    const fn place(offset: u8) -> (usize, u64) {
        ((offset / 64) as usize, 1 << (offset % 64))
    }

    /// Is the address at this place in the set?
    pub const fn contains(&self, offset: u8) -> bool {
        let (word, bit) = Self::place(offset);
        self.0[word] & bit != 0
    }

    /// Adds one; true if it was not there.
    pub const fn insert(&mut self, offset: u8) -> bool {
        let (word, bit) = Self::place(offset);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Takes one out; true if it was there.
    pub const fn remove(&mut self, offset: u8) -> bool {
        let (word, bit) = Self::place(offset);
        let was = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was
    }

    /// The lowest place in the set.
    pub fn first(&self) -> Option<u8> {
        let (base, word) = [0, 64, 128, 192].into_iter().zip(self.0).find(|(_, word)| *word != 0)?;
        u8::try_from(base + word.trailing_zeros()).ok()
    }

    /// The places in the set, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        let mut rest = *self;
        std::iter::from_fn(move || {
            let first = rest.first()?;
            rest.remove(first);
            Some(first)
        })
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    fn zip(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut words = self.0;
        for (word, other) in words.iter_mut().zip(other.0) {
            *word = join(*word, other);
        }
        Self(words)
    }

    /// Those in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        self.zip(other, |one, two| one | two)
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.zip(other, |one, two| one & two)
    }

    /// Those in this one only.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        self.zip(other, |one, two| one & !two)
    }
}

impl FromIterator<u8> for Bits {
    fn from_iter<I: IntoIterator<Item = u8>>(offsets: I) -> Self {
        let mut bits = Self::EMPTY;
        for offset in offsets {
            bits.insert(offset);
        }
        bits
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, second, third, high] = self.0;
        write!(f, "{high:016x}{third:016x}{second:016x}{low:016x}")
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom(format_args!("{text:?} is not a set of 256 addresses (64 digits)"));
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut words = [0; 4];
        for (word, start) in words.iter_mut().rev().zip([0, 16, 32, 48]) {
            *word = u64::from_str_radix(&text[start..start + 16], 16).map_err(D::Error::custom)?;
        }
        Ok(Self(words))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_named_by_its_first_five_octets() {
        let (block, offset) = BlockId::of(Mac([2, 0xab, 0, 0, 1, 0xfe]));
        assert_eq!(block.to_string(), "02-ab-00-00-01");
        assert_eq!(offset, 0xfe);
        assert_eq!("02-ab-00-00-01".parse(), Ok(block));
        for text in ["", "02-ab-00-00", "02-ab-00-00-01-00", "02:ab:00:00:01", "x"] {
            assert!(text.parse::<BlockId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn addresses_survive_being_numbers_and_places(octets: [u8; 6]) {
            let mac = Mac(octets);
            let (block, offset) = BlockId::of(mac);
            prop_assert_eq!(block.mac(offset), mac);
            prop_assert_eq!(address(number(mac)), mac);
            prop_assert_eq!(BlockId::from_index(block.index()), block);
        }

        #[test]
        fn bits_are_a_set(places: Vec<u8>, gone: Vec<u8>) {
            let mut set: std::collections::BTreeSet<u8> = places.iter().copied().collect();
            let mut bits: Bits = places.into_iter().collect();
            for place in gone {
                prop_assert_eq!(bits.remove(place), set.remove(&place));
            }
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.first(), set.first().copied());
            prop_assert_eq!(bits.len() as usize, set.len());
            let text = serde_json::to_string(&bits).unwrap();
            prop_assert_eq!(serde_json::from_str::<Bits>(&text).unwrap(), bits);
        }
    }
}
