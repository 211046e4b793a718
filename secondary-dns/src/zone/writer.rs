//! The one writer: turns what VMs contribute into snapshots.
//!
//! It is owned by the source's task. Per VM it remembers the contribution, so that a change touches only the names
//! that differ. Names of different VMs never meet (each lies at or below its own `<vm>.<namespace>`); addresses
//! may: several VMs can claim one, and then the best-believed and oldest claim alone has the PTR record, whatever
//! order the claims arrived in, so that replicas agree. Nearly every address has one claimant only: claims are kept
//! where there are more.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Name, NicRecords, SharedZone, VmRecords, Zone};

/// Makes snapshots and publishes them.
#[derive(Debug)]
pub struct ZoneWriter {
    shared: Arc<SharedZone>,
    /// The next snapshot.
    next: Zone,
    changed: bool,
    vms: HashMap<Name, VmRecords>,
    /// VMs with a name, per namespace: its label exists as long as there is one.
    namespaces: HashMap<Name, usize>,
    /// Everybody who claims an address that more than one does, the best first.
    contested: HashMap<IpAddr, Vec<Claim>>,
}

/// Ordered as claims are preferred.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    rank: u8,
    /// An object that does not say when it was made comes last.
    undated: bool,
    created: Box<str>,
    nic: Name,
}

impl ZoneWriter {
    /// A writer that goes on from the snapshot in `shared`, which must be empty of VMs.
    pub fn new(shared: Arc<SharedZone>) -> Self {
        let next = Zone::clone(&shared.load_full());
        Self {
            shared,
            next,
            changed: false,
            vms: HashMap::new(),
            namespaces: HashMap::new(),
            contested: HashMap::new(),
        }
    }

    /// Sets what the VM `name` (`<vm>.<namespace>`) contributes; `None` takes it away.
    pub fn set(&mut self, name: &Name, records: Option<VmRecords>) {
        if self.vms.get(name) == records.as_ref() {
            return;
        }
        self.changed = true;
        let old = match records.clone() {
            Some(records) => self.vms.insert(name.clone(), records),
            None => self.vms.remove(name),
        };
        self.update_namespace(name, old.is_some(), records.is_some());
        self.update_names(old.as_ref(), records.as_ref());
        self.update_claims(old.as_ref(), records.as_ref());
    }

    /// Takes away every VM that is not in `present`.
    pub fn retain(&mut self, present: &HashSet<Name>) {
        let gone: Vec<Name> = self.vms.keys().filter(|name| !present.contains(*name)).cloned().collect();
        for name in gone {
            self.set(&name, None);
        }
    }

    /// True if something differs from what was published last.
    pub fn has_changes(&self) -> bool {
        self.changed
    }

    /// The serial published last.
    pub fn serial(&self) -> u32 {
        self.next.serial
    }

    /// Publishes what has changed under a new serial; readers see all of it or nothing.
    pub fn publish(&mut self, serial: u32) {
        self.next.serial = serial;
        self.changed = false;
        self.shared.publish(self.next.clone());
    }

    fn update_namespace(&mut self, vm: &Name, was: bool, is: bool) {
        let label = vm.parent();
        if is && !was {
            if let Some(vms) = self.namespaces.get_mut(label) {
                *vms += 1;
                return;
            }
            let label = Name::from_labels(label);
            // A namespace called `ns` shares its label with the name server, whose addresses stay.
            if !self.next.names.contains_key(&label) {
                self.next.names.insert_mut(label.clone(), None);
            }
            self.namespaces.insert(label, 1);
        } else if was && !is {
            let Some(vms) = self.namespaces.get_mut(label) else { return };
            *vms -= 1;
            if *vms == 0 {
                self.namespaces.remove(label);
                if matches!(self.next.names.get(label), Some(None)) {
                    self.next.names.remove_mut(label);
                }
            }
        }
    }

    fn update_names(&mut self, old: Option<&VmRecords>, new: Option<&VmRecords>) {
        for name in old.into_iter().flat_map(owners) {
            if !new.into_iter().flat_map(owners).any(|kept| kept.0 == name.0) {
                self.next.names.remove_mut(name.0);
            }
        }
        for (name, addresses) in new.into_iter().flat_map(owners) {
            if !old.into_iter().flat_map(owners).any(|known| known == (name, addresses)) {
                self.next.names.insert_mut(name.clone(), Some(Arc::clone(addresses)));
            }
        }
    }

    fn update_claims(&mut self, old: Option<&VmRecords>, new: Option<&VmRecords>) {
        if self.next.settings.reverse.is_empty() {
            return;
        }
        for (address, records, nic) in old.into_iter().flat_map(claims) {
            self.release(address, &Claim::new(records, nic));
        }
        for (address, records, nic) in new.into_iter().flat_map(claims) {
            if self.next.settings.reverse.iter().any(|(_, network)| network.contains(address)) {
                self.claim(address, records, nic);
            }
        }
    }

    fn claim(&mut self, address: IpAddr, records: &VmRecords, nic: &NicRecords) {
        let Some(holder) = self.next.addresses.get(&address).filter(|holder| **holder != nic.name) else {
            self.next.addresses.insert_mut(address, nic.name.clone());
            return;
        };
        let claim = Claim::new(records, nic);
        let holders = self.claim_of(holder);
        let all = self.contested.entry(address).or_insert_with(|| holders.into_iter().collect());
        if let Err(place) = all.binary_search(&claim) {
            all.insert(place, claim);
        }
        if let Some(best) = all.first() {
            self.next.addresses.insert_mut(address, best.nic.clone());
        }
    }

    fn release(&mut self, address: IpAddr, claim: &Claim) {
        let Some(all) = self.contested.get_mut(&address) else {
            if self.next.addresses.get(&address) == Some(&claim.nic) {
                self.next.addresses.remove_mut(&address);
            }
            return;
        };
        if let Ok(place) = all.binary_search(claim) {
            all.remove(place);
        }
        if let Some(best) = all.first() {
            self.next.addresses.insert_mut(address, best.nic.clone());
        }
        if all.len() < 2 {
            self.contested.remove(&address);
        }
    }

    /// The claim of a NIC that has an address, from what its VM contributes.
    fn claim_of(&self, nic: &Name) -> Option<Claim> {
        let records = self.vms.get(nic.parent())?;
        let nic = records.nics.iter().find(|known| known.name == *nic)?;
        Some(Claim::new(records, nic))
    }
}

impl Claim {
    fn new(records: &VmRecords, nic: &NicRecords) -> Self {
        let created = records.created.clone();
        Self { rank: nic.rank, undated: created.is_empty(), created, nic: nic.name.clone() }
    }
}

/// Every name of a VM with what it answers: its own, which is its first NIC's, and its NICs'.
fn owners(records: &VmRecords) -> impl Iterator<Item = (&Name, &Arc<super::AddressSet>)> {
    let own = records.nics.first().map(|nic| (&records.name, &nic.addresses));
    own.into_iter().chain(records.nics.iter().map(|nic| (&nic.name, &nic.addresses)))
}

fn claims(records: &VmRecords) -> impl Iterator<Item = (IpAddr, &VmRecords, &NicRecords)> {
    records.nics.iter().flat_map(move |nic| nic.addresses.iter().map(move |address| (address, records, nic)))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
