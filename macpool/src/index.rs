//! Which objects have which address, as the watches show it.
//!
//! Written by the reflectors of the kube store; read for duplicates, for metrics and to guess what a sweep may find. It may
//! lag behind the cluster: whatever gives or frees an address must not rest on something being absent here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use net_types::Mac;

use crate::block::{Bits, BlockId};
use crate::segment::{Domains, Nic, Segment};
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
    /// The kind of who has an address there.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Vm | Self::Vmi => Kind::Vm,
            Self::Pod => Kind::Pod,
        }
    }
}

/// What an object says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sighting {
    /// Its NICs that have addresses.
    pub nics: Vec<Nic>,
    /// The halves of the live migration it takes part in, if it does: a source and a target that share one are one guest.
    pub migrations: Vec<Box<str>>,
}

/// One object.
type Object = (Place, Box<str>);

/// What is kept of a sighting: networks are few, and kept once each. No network: alone.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    nics: Box<[(Mac, Option<Arc<str>>)]>,
    migrations: Box<[Box<str>]>,
}

/// Departures that are remembered: of some minutes in a busy cluster.
const DEPARTURES: usize = 4096;

/// Addresses and objects, both ways.
#[derive(Debug, Default)]
pub struct Index {
    /// With the round of listing in which it was seen last.
    objects: HashMap<Object, (u64, Known)>,
    users: HashMap<BlockId, HashMap<u8, Vec<Object>>>,
    networks: HashSet<Arc<str>>,
    domains: Domains,
    /// Who had an address until lately, the last one in front. A courtesy to those who come back: this process may have
    /// begun since.
    departed: VecDeque<(Mac, Object, Instant)>,
}

impl Index {
    /// Replaces what is known of L2 domains.
    pub fn set_domains(&mut self, domains: Domains) {
        self.domains = domains;
    }

    /// An object exists and says exactly this; true if that is news. `round` marks it as seen in a round of listing.
    pub fn put(&mut self, place: Place, key: &str, sighting: Sighting, round: u64) -> bool {
        let Sighting { nics, migrations } = sighting;
        let nics = nics.into_iter().map(|Nic { mac, segment }| (mac, self.intern(segment))).collect();
        let known = Known { nics, migrations: migrations.into() };
        let object: Object = (place, key.into());
        match self.objects.get_mut(&object) {
            Some((seen, old)) if *old == known => {
                *seen = round;
                return false;
            }
            _ => {
                let old = self.take(&object);
                let left = old.into_iter().filter(|mac| !known.nics.iter().any(|(kept, _)| kept == mac));
                self.depart(&object, left);
            }
        }
        if known.nics.is_empty() {
            return true;
        }
        for (mac, _) in &known.nics {
            let (block, offset) = BlockId::of(*mac);
            // Room for one: most addresses have one user.
            let users =
                self.users.entry(block).or_default().entry(offset).or_insert_with(|| Vec::with_capacity(1));
            if !users.contains(&object) {
                users.push(object.clone());
            }
        }
        self.objects.insert(object, (round, known));
        true
    }

    fn intern(&mut self, segment: Segment) -> Option<Arc<str>> {
        let Segment::Network(name) = segment else { return None };
        if let Some(known) = self.networks.get(&*name) {
            return Some(Arc::clone(known));
        }
        let network: Arc<str> = name.into();
        self.networks.insert(Arc::clone(&network));
        Some(network)
    }

    /// An object is gone.
    pub fn remove(&mut self, place: Place, key: &str) {
        let object: Object = (place, key.into());
        let macs = self.take(&object);
        self.depart(&object, macs.into_iter());
    }

    fn depart(&mut self, object: &Object, macs: impl Iterator<Item = Mac>) {
        let now = Instant::now();
        for mac in macs {
            self.departed.push_front((mac, object.clone(), now));
        }
        self.departed.truncate(DEPARTURES);
    }

    fn lately(&self, within: Duration) -> impl Iterator<Item = (Mac, &Object)> {
        let departed = self.departed.iter().take_while(move |(_, _, when)| when.elapsed() < within);
        departed.map(|(mac, object, _)| (*mac, object))
    }

    /// Was the owner the last one that was seen with an address, within this time?
    pub fn had_last(&self, owner: &Owner, mac: Mac, within: Duration) -> bool {
        let last = self.lately(within).find(|(departed, _)| *departed == mac);
        last.is_some_and(|(_, (place, key))| (place.kind(), key) == (owner.kind, &owner.key))
    }

    /// The addresses that somebody had until lately.
    pub fn departures(&self, within: Duration) -> HashMap<BlockId, Bits> {
        let mut departures: HashMap<BlockId, Bits> = HashMap::new();
        for (mac, _) in self.lately(within) {
            let (block, offset) = BlockId::of(mac);
            departures.entry(block).or_default().insert(offset);
        }
        departures
    }

    /// Takes an object out; its addresses.
    fn take(&mut self, object: &Object) -> Vec<Mac> {
        let Some((_, known)) = self.objects.remove(object) else { return Vec::new() };
        let macs = known.nics.iter().map(|(mac, _)| *mac).collect();
        for (mac, network) in known.nics {
            let (block, offset) = BlockId::of(mac);
            // The set's and this one: nobody else is on that network.
            if let Some(network) = network.filter(|network| Arc::strong_count(network) == 2) {
                self.networks.remove(&network);
            }
            let Some(offsets) = self.users.get_mut(&block) else { continue };
            if let Some(users) = offsets.get_mut(&offset) {
                users.retain(|user| user != object);
                if users.is_empty() {
                    offsets.remove(&offset);
                }
            }
            if offsets.is_empty() {
                self.users.remove(&block);
            }
        }
        macs
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

    fn users(&self, mac: Mac) -> &[Object] {
        let (block, offset) = BlockId::of(mac);
        let users = self.users.get(&block).and_then(|offsets| offsets.get(&offset));
        users.map(Vec::as_slice).unwrap_or_default()
    }

    /// Who has an address, each owner once.
    pub fn owners(&self, mac: Mac) -> Vec<Owner> {
        distinct(self.users(mac).iter())
    }

    /// Who else has the address of a NIC of `owner` and can meet it, each owner once.
    pub fn rivals(&self, owner: &Owner, nic: &Nic) -> Vec<Owner> {
        let Segment::Network(network) = &nic.segment else { return Vec::new() };
        distinct(self.who_meet((owner.kind, &owner.key), nic.mac, network))
    }

    /// The objects of others than `owner` that have the address and can meet a NIC of it on `network`.
    fn who_meet(&self, owner: (Kind, &str), mac: Mac, network: &str) -> impl Iterator<Item = &Object> {
        let others = self
            .users(mac)
            .iter()
            .filter(move |(place, key)| (place.kind(), &**key) != owner && !self.is_one_guest(key, owner.1));
        others.filter(move |other| self.may_meet(other, mac, network))
    }

    /// Does a NIC of the object with this address reach the network?
    fn may_meet(&self, object: &Object, mac: Mac, network: &str) -> bool {
        self.networks_of(object, mac).any(|theirs| self.domains.meet(theirs, network))
    }

    fn networks_of(&self, object: &Object, mac: Mac) -> impl Iterator<Item = &Arc<str>> {
        let nics = self.objects.get(object).map(|(_, known)| &*known.nics).unwrap_or_default();
        nics.iter().filter(move |(theirs, _)| *theirs == mac).filter_map(|(_, network)| network.as_ref())
    }

    /// Are two VMs the source and the target of one migration?
    fn is_one_guest(&self, one: &str, other: &str) -> bool {
        let halves = |key: &str| {
            let known = self.objects.get(&(Place::Vmi, key.into()));
            known.map(|(_, known)| &*known.migrations).unwrap_or_default()
        };
        let others = halves(other);
        halves(one).iter().any(|half| others.contains(half))
    }

    /// Every address that several owners have who can meet, with how many they are, in no order.
    pub fn collisions(&self) -> impl Iterator<Item = (Mac, usize)> {
        let shared = self.users.iter().flat_map(|(block, offsets)| {
            let several = offsets.iter().filter(|(_, users)| users.len() > 1);
            several.map(|(offset, users)| (block.mac(*offset), users))
        });
        shared.filter_map(|(mac, users)| {
            let collide = users.iter().filter(|user| self.collides(user, mac));
            Some((mac, distinct(collide).len())).filter(|(_, owners)| *owners > 1)
        })
    }

    fn collides(&self, object: &Object, mac: Mac) -> bool {
        let (place, key) = object;
        // One is enough: the address may be that of thousands.
        self.networks_of(object, mac)
            .any(|network| self.who_meet((place.kind(), key), mac, network).next().is_some())
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

fn distinct<'o>(objects: impl Iterator<Item = &'o Object>) -> Vec<Owner> {
    let mut owners: Vec<_> =
        objects.map(|(place, key)| Owner { kind: place.kind(), key: key.clone() }).collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
