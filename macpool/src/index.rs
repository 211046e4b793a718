//! Which objects have which address, as the watches show it.
//!
//! Written by the reflectors of the kube store; read for duplicates, for metrics and to guess what a sweep may find. It may
//! lag behind the cluster: whatever gives or frees an address must not rest on something being absent here.

use std::collections::HashMap;

use net_types::Mac;

use crate::block::{Bits, BlockId};
use crate::store::{Kind, Owner};

/// Where an address was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In a VirtualMachine.
    Vm,
    /// In a VirtualMachineInstance.
    Vmi,
    /// In a pod.
    Pod,
}

impl Place {
    fn kind(self) -> Kind {
        match self {
            Self::Vm | Self::Vmi => Kind::Vm,
            Self::Pod => Kind::Pod,
        }
    }
}

/// One object.
type Object = (Place, Box<str>);

/// Addresses and objects, both ways.
#[derive(Debug, Default)]
pub struct Index {
    objects: HashMap<Object, (u64, Box<[Mac]>)>,
    users: HashMap<BlockId, HashMap<u8, Vec<Object>>>,
}

impl Index {
    /// An object exists with exactly these addresses; true if that is news. `round` marks it as seen in a round of
    /// listing.
    pub fn put(&mut self, place: Place, key: &str, macs: Vec<Mac>, round: u64) -> bool {
        let object: Object = (place, key.into());
        match self.objects.get_mut(&object) {
            Some((seen, old)) if **old == *macs => {
                *seen = round;
                return false;
            }
            _ => self.remove(place, key),
        }
        if macs.is_empty() {
            return true;
        }
        for mac in &macs {
            let (block, offset) = BlockId::of(*mac);
            let users = self.users.entry(block).or_default().entry(offset).or_default();
            if !users.contains(&object) {
                users.push(object.clone());
            }
        }
        self.objects.insert(object, (round, macs.into_boxed_slice()));
        true
    }

    /// An object is gone.
    pub fn remove(&mut self, place: Place, key: &str) {
        let object: Object = (place, key.into());
        let Some((_, macs)) = self.objects.remove(&object) else { return };
        for mac in macs {
            let (block, offset) = BlockId::of(mac);
            let Some(offsets) = self.users.get_mut(&block) else { continue };
            if let Some(users) = offsets.get_mut(&offset) {
                users.retain(|user| *user != object);
                if users.is_empty() {
                    offsets.remove(&offset);
                }
            }
            if offsets.is_empty() {
                self.users.remove(&block);
            }
        }
    }

    /// A listing of a place has ended: what it did not show is gone.
    pub fn retain_round(&mut self, place: Place, round: u64) {
        let gone: Vec<_> = self
            .objects
            .iter()
            .filter(|((other, _), (seen, _))| *other == place && *seen != round)
            .map(|((_, key), _)| key.clone())
            .collect();
        gone.iter().for_each(|key| self.remove(place, key));
    }

    /// The addresses of a block that somebody has.
    pub fn used(&self, block: BlockId) -> Bits {
        self.users.get(&block).map(|offsets| offsets.keys().copied().collect()).unwrap_or_default()
    }

    /// Who has an address, each owner once.
    pub fn owners(&self, mac: Mac) -> Vec<Owner> {
        let (block, offset) = BlockId::of(mac);
        let users = self.users.get(&block).and_then(|offsets| offsets.get(&offset));
        let mut owners: Vec<_> = users
            .into_iter()
            .flatten()
            .map(|(place, key)| Owner { kind: place.kind(), key: key.clone() })
            .collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// The addresses of an object.
    pub fn macs(&self, place: Place, key: &str) -> &[Mac] {
        self.objects.get(&(place, key.into())).map(|(_, macs)| &**macs).unwrap_or_default()
    }

    /// Every address with its owners, in no order.
    pub fn all(&self) -> impl Iterator<Item = (Mac, Vec<Owner>)> {
        self.users.iter().flat_map(|(block, offsets)| {
            offsets.keys().map(|offset| (block.mac(*offset), self.owners(block.mac(*offset))))
        })
    }

    /// How many objects with addresses are known.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Nothing known?
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const TWO: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn owner(kind: Kind, key: &str) -> Owner {
        Owner { kind, key: key.into() }
    }

    #[test]
    fn a_vm_and_its_instance_are_one_owner() {
        let mut index = Index::default();
        index.put(Place::Vm, "ns/a", vec![ONE], 1);
        index.put(Place::Vmi, "ns/a", vec![ONE], 1);
        assert_eq!(index.owners(ONE), [owner(Kind::Vm, "ns/a")]);
        index.put(Place::Pod, "ns/a", vec![ONE], 1);
        assert_eq!(index.owners(ONE).len(), 2);
    }

    #[test]
    fn an_address_is_used_until_the_guest_is_gone_too() {
        let mut index = Index::default();
        index.put(Place::Vm, "ns/a", vec![ONE], 1);
        index.put(Place::Vmi, "ns/a", vec![ONE], 1);
        index.remove(Place::Vm, "ns/a");
        assert!(index.used(BlockId::of(ONE).0).contains(1));
        index.remove(Place::Vmi, "ns/a");
        assert!(index.users.is_empty() && index.is_empty());
    }

    #[test]
    fn what_a_listing_does_not_show_is_gone() {
        let mut index = Index::default();
        index.put(Place::Vm, "ns/a", vec![ONE], 1);
        index.put(Place::Vm, "ns/b", vec![TWO], 1);
        index.put(Place::Vmi, "ns/b", vec![TWO], 1);
        index.put(Place::Vm, "ns/a", vec![ONE, TWO], 2);
        index.retain_round(Place::Vm, 2);
        assert_eq!(index.owners(TWO), [owner(Kind::Vm, "ns/a"), owner(Kind::Vm, "ns/b")]);
        index.put(Place::Vm, "ns/a", vec![ONE], 2);
        index.retain_round(Place::Vmi, 2);
        assert_eq!(index.owners(TWO), []);
        assert_eq!(index.macs(Place::Vm, "ns/a"), [ONE]);
    }
}
