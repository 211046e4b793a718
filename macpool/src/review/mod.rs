//! AdmissionReviews: bytes in, what each NIC wants out, and the answer back to bytes.
//!
//! [`envelope`] reads the request around the object, [`vm`] and [`pod`] read the object, [`answer`] writes the reply.
//! Only the fields that decide are read, in place; everything else in the object passes by unread and is never written
//! back, because the answer is a patch of single fields. What is wanted becomes addresses in [`crate::admit`].

pub mod answer;
pub mod envelope;
pub mod pod;
pub mod vm;

use std::fmt;
use std::marker::PhantomData;

use net_types::Mac;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::segment::Segment;

/// What one NIC of a reviewed object wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Its place in the object's list of NICs, from 0.
    pub index: usize,
    /// Its name, for messages and for finding it again: the interface's, or the pod network's.
    pub nic: String,
    /// What it wants.
    pub address: Address,
    /// Where its frames go.
    pub segment: Segment,
}

/// The address wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Any.
    Any,
    /// The one it had before this update: it is in the stored object, so no claim is needed.
    Restored(Mac),
    /// This one, by name, new to the object.
    Named(Mac),
    /// The same, but its NIC goes to another network, where it may meet others.
    Carried(Mac),
    /// The one that the stored object has, on another network than before: no claim is needed, but it may meet others there.
    Moved(Mac),
}

impl Address {
    /// Which one, unless any will do.
    pub(crate) fn named(self) -> Option<Mac> {
        match self {
            Self::Any => None,
            Self::Restored(mac) | Self::Named(mac) | Self::Carried(mac) | Self::Moved(mac) => Some(mac),
        }
    }
}

/// Why an object is refused. The text is what the user reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The object cannot be read.
    #[error("the object is malformed: {0}")]
    Malformed(String),
    /// An address that is none.
    #[error("interface {nic:?}: macAddress {source}")]
    NotAnAddress {
        /// Which NIC.
        nic: String,
        /// What is wrong.
        source: net_types::MacError,
    },
    /// An address that no NIC can have.
    #[error("interface {nic:?}: macAddress {mac} is a group address or zero; a NIC needs a unicast one")]
    NotUnicast {
        /// Which NIC.
        nic: String,
        /// The address.
        mac: Mac,
    },
    /// Two NICs of the object with one address.
    #[error("interfaces {first:?} and {second:?} have the same macAddress {mac}")]
    SameAddress {
        /// The address.
        mac: Mac,
        /// One NIC.
        first: String,
        /// The other.
        second: String,
    },
    /// Two NICs of the object with one name: which address is whose could not be told.
    #[error("two interfaces are called {0:?}")]
    SameName(String),
    /// More NICs than any machine has.
    #[error("{0} interfaces, at most {MAX_NICS} are handled")]
    TooMany(usize),
    /// More networks than NICs can be on.
    #[error("{0} networks, at most {MAX_NICS} are handled")]
    TooManyNetworks(usize),
    /// A name that no object can have.
    #[error("metadata: a name of {0} bytes is longer than any that an object can have")]
    LongName(usize),
    /// The networks annotation of a pod makes no sense.
    #[error("annotation k8s.v1.cni.cncf.io/networks: {0}")]
    Networks(String),
}

/// NICs of one object: beyond that it is no machine but an attack on the pool. (q35 has 32 slots per bus.)
pub const MAX_NICS: usize = 256;

/// A list of which no more is kept than can be of use; the rest, a million entries maybe, is counted only.
#[derive(Debug)]
pub(crate) struct Few<T> {
    kept: Vec<T>,
    count: usize,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), count: 0 }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keep<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keep<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < MAX_NICS {
                    let Some(entry) = list.next_element()? else {
                        return Ok(Few { count: kept.len(), kept });
                    };
                    kept.push(entry);
                }
                let mut count = kept.len();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Few { kept, count })
            }
        }
        deserializer.deserialize_seq(Keep(PhantomData))
    }
}

/// A unicast address from a manifest.
fn parse_mac(nic: &str, text: &str) -> Result<Mac, Refusal> {
    let mac: Mac = text.parse().map_err(|source| Refusal::NotAnAddress { nic: nic.to_owned(), source })?;
    if mac.is_unicast() { Ok(mac) } else { Err(Refusal::NotUnicast { nic: nic.to_owned(), mac }) }
}

/// Refuses an address that two NICs share. Quadratic, over at most [`MAX_NICS`].
fn refuse_shared<'a>(macs: impl Iterator<Item = (&'a str, Mac)> + Clone) -> Result<(), Refusal> {
    for (at, (second, mac)) in macs.clone().enumerate() {
        if let Some((first, _)) = macs.clone().take(at).find(|(_, other)| *other == mac) {
            return Err(Refusal::SameAddress { mac, first: first.to_owned(), second: second.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
