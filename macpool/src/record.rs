//! What the API server knows of one block, and the changes that replicas make to it.
//!
//! Pure: each change is a function from the record that was read to the record to swap in, or to the reason why not.
//! [`crate::protocol`] says why these changes are safe; the kube store performs them, the model test explores them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::block::Bits;

/// One start of one replica. Never used twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(pub Box<str>);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The shared knowledge about one block. The default is that of a block without a record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Who may give addresses of the block from its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<Identity>,
    /// Somebody asks the holder to hand the block back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recall: bool,
    /// Addresses that must not be given. Of a held block: as they were when it was taken.
    pub taken: Bits,
    /// Who asked for which address (its place in the block) by name: `namespace/name`, or `pod namespace/name`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "claims")]
    pub claims: BTreeMap<u8, Box<str>>,
    /// Counts the claims, so that a repeated one is a change too.
    pub turn: u64,
}

/// Claims of places that no block has are left out. The API server's schema cannot tell them, and a record that could not be
/// read would blind replicas for all others.
fn claims<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u8, Box<str>>, D::Error> {
    let all = BTreeMap::<Box<str>, Box<str>>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|(place, owner)| Some((place.parse().ok()?, owner))).collect())
}

/// How a claim goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimStep {
    /// Swap this in; then the claim stands.
    Swap(Record),
    /// The claimer holds the block: its memory decides.
    HeldByMe,
    /// Swap this in to ask the holder for the block, if it is not asked yet; then wait.
    Recall(Identity, Option<Record>),
}

impl Record {
    /// Rule 1: takes hold of a block that nobody holds.
    pub fn hold(&self, me: &Identity) -> Option<Self> {
        self.holder.is_none().then(|| Self { holder: Some(me.clone()), recall: false, ..self.clone() })
    }

    /// Rule 2: hands a block back with what was given of it. `None` if it is not ours (any more). One that nobody holds, because
    /// somebody has deleted the record or put an older one in its place, is told what was given of it.
    pub fn retire(&self, me: &Identity, given: Bits, claims: &BTreeMap<u8, Box<str>>) -> Option<Self> {
        match &self.holder {
            Some(holder) if holder == me => {}
            None if !given.without(self.taken).is_empty() => {}
            Some(_) | None => return None,
        }
        let mut record = self.clone();
        record.holder = None;
        record.recall = false;
        record.taken = record.taken.or(given);
        record.claims.extend(claims.iter().map(|(offset, owner)| (*offset, owner.clone())));
        record.turn += 1;
        Some(record)
    }

    /// Rule 3: takes one address by name.
    pub fn claim(&self, me: &Identity, offset: u8, owner: &str) -> ClaimStep {
        match &self.holder {
            Some(holder) if holder == me => ClaimStep::HeldByMe,
            Some(holder) => {
                let ask = (!self.recall).then(|| Self { recall: true, ..self.clone() });
                ClaimStep::Recall(holder.clone(), ask)
            }
            None => {
                let mut record = self.clone();
                record.taken.insert(offset);
                record.claims.insert(offset, owner.into());
                record.turn += 1;
                ClaimStep::Swap(record)
            }
        }
    }

    /// Rule 4: takes the block from a holder that has no lease any more. All of it counts as given.
    pub fn depose(&self, dead: &Identity) -> Option<Self> {
        (self.holder.as_ref() == Some(dead)).then(|| Self {
            holder: None,
            recall: false,
            taken: Bits::ALL,
            claims: self.claims.clone(),
            turn: self.turn + 1,
        })
    }

    /// Rule 5: frees what nothing that exists has. `None` if somebody holds the block, or there is nothing to free.
    pub fn sweep(&self, existing: Bits) -> Option<Self> {
        let taken = self.taken.and(existing);
        if self.holder.is_some() || taken == self.taken {
            return None;
        }
        // A claim is of interest until its owner is seen or given up, and the sweep is just that.
        Some(Self { holder: None, recall: false, taken, claims: BTreeMap::new(), turn: self.turn + 1 })
    }

    /// True if the record says no more than none would.
    pub fn is_void(&self) -> bool {
        self.holder.is_none() && self.taken.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(name: &str) -> Identity {
        Identity(name.into())
    }

    #[test]
    fn a_block_has_one_holder() {
        let (a, b) = (replica("a"), replica("b"));
        let held = Record::default().hold(&a).unwrap();
        assert_eq!(held.hold(&b), None);
        assert_eq!(held.hold(&a), None, "holding twice would forget what was given in between");
        assert_eq!(held.retire(&b, Bits::EMPTY, &BTreeMap::new()), None);
    }

    #[test]
    fn what_was_given_stays_taken_when_a_block_goes_back() {
        let a = replica("a");
        let before = Record { taken: [1].into_iter().collect(), ..Record::default() };
        let back = before.hold(&a).unwrap().retire(&a, [2].into_iter().collect(), &BTreeMap::new()).unwrap();
        assert_eq!((back.holder.clone(), back.taken), (None, [1, 2].into_iter().collect()));
        assert!(back.turn > before.turn, "a sweeper's observation begins anew");
    }

    #[test]
    fn a_record_that_was_lost_is_told_what_was_given() {
        let a = replica("a");
        let given = [2].into_iter().collect();
        let told = Record::default().retire(&a, given, &BTreeMap::new()).unwrap();
        assert_eq!((&told.holder, told.taken), (&None, given));
        assert_eq!(told.retire(&a, given, &BTreeMap::new()), None, "it knows");
        assert_eq!(told.hold(&replica("b")).unwrap().retire(&a, Bits::ALL, &BTreeMap::new()), None);
    }

    #[test]
    fn a_claim_asks_the_holder_once() {
        let (a, b) = (replica("a"), replica("b"));
        let held = Record::default().hold(&a).unwrap();
        assert_eq!(held.claim(&a, 7, "ns/vm"), ClaimStep::HeldByMe);
        let ClaimStep::Recall(holder, Some(asked)) = held.claim(&b, 7, "ns/vm") else { panic!() };
        assert_eq!(holder, a);
        assert_eq!(asked.claim(&b, 7, "ns/vm"), ClaimStep::Recall(a, None));
    }

    #[test]
    fn a_repeated_claim_is_a_change() {
        let a = replica("a");
        let ClaimStep::Swap(first) = Record::default().claim(&a, 7, "ns/vm") else { panic!() };
        let ClaimStep::Swap(second) = first.claim(&a, 7, "ns/vm") else { panic!() };
        assert!(first.taken.contains(7) && first.claims[&7] == "ns/vm".into());
        assert_ne!(first, second);
    }

    #[test]
    fn a_deposed_holder_counts_as_having_given_everything() {
        let (a, b) = (replica("a"), replica("b"));
        let held = Record::default().hold(&a).unwrap();
        assert_eq!(held.depose(&b), None);
        assert_eq!(held.depose(&a).unwrap().taken, Bits::ALL);
    }

    #[test]
    fn a_sweep_leaves_held_blocks_and_existing_addresses_alone() {
        let record = Record { taken: [1, 2].into_iter().collect(), ..Record::default() };
        assert_eq!(record.hold(&replica("a")).unwrap().sweep(Bits::EMPTY), None);
        assert_eq!(record.sweep(Bits::ALL), None);
        assert_eq!(record.sweep([2, 3].into_iter().collect()).unwrap().taken, [2].into_iter().collect());
        assert!(record.sweep(Bits::EMPTY).unwrap().is_void());
    }

    #[test]
    fn a_record_survives_json() {
        let a = replica("a");
        let held = Record { taken: [1, 255].into_iter().collect(), ..Record::default() }.hold(&a).unwrap();
        let record = Record { claims: [(9, "ns/vm".into())].into(), turn: 3, ..held };
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["holder"], "a");
        assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
        assert_eq!(serde_json::from_str::<Record>("{}").unwrap(), Record::default());
    }
}
