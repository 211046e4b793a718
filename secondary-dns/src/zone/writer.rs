//! The one writer: turns what VMs contribute into snapshots.
//!
//! It is owned by the source's task. Per VM it remembers the contribution, so that a change touches only the names
//! that differ. Names of different VMs never meet (each lies at or below its own `<vm>.<namespace>`); addresses
//! may: several VMs can claim one, and then the best-believed and oldest claim alone has the PTR record, whatever
//! order the claims arrived in, so that replicas agree.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Name, SharedZone, VmRecords, Zone, name_server_label};

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
    /// Everybody who claims an address of a reverse zone, the best first.
    claims: HashMap<IpAddr, Vec<Claim>>,
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
            claims: HashMap::new(),
        }
    }

    /// Sets what the VM `name` (`<vm>.<namespace>`) contributes; `None` takes it away.
    pub fn set(&mut self, name: &Name, records: Option<VmRecords>) {
        let old = self.vms.remove(name);
        if old != records {
            self.changed = true;
            self.update_namespace(old.as_ref(), records.as_ref());
            self.update_names(old.as_ref(), records.as_ref());
            self.update_claims(old.as_ref(), records.as_ref());
        }
        if let Some(records) = records {
            self.vms.insert(name.clone(), records);
        }
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

    fn update_namespace(&mut self, old: Option<&VmRecords>, new: Option<&VmRecords>) {
        match (old, new) {
            (None, Some(records)) => {
                let vms = self.namespaces.entry(records.namespace.clone()).or_insert(0);
                *vms += 1;
                // A namespace called `ns` shares its label with the name server, whose addresses stay.
                if *vms == 1 && !self.next.names.contains_key(&records.namespace) {
                    self.next.names.insert_mut(records.namespace.clone(), None);
                }
            }
            (Some(records), None) => {
                let left = self.namespaces.get_mut(&records.namespace).map_or(0, |vms| {
                    *vms -= 1;
                    *vms
                });
                if left == 0 {
                    self.namespaces.remove(&records.namespace);
                    if records.namespace != name_server_label() || self.next.settings.name_servers.is_empty()
                    {
                        self.next.names.remove_mut(&records.namespace);
                    }
                }
            }
            _ => {}
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
        for (address, claim) in old.into_iter().flat_map(claims) {
            self.release(address, &claim);
        }
        for (address, claim) in new.into_iter().flat_map(claims) {
            self.claim(address, claim);
        }
    }

    fn claim(&mut self, address: IpAddr, claim: Claim) {
        if !self.next.settings.reverse.iter().any(|(_, network)| network.contains(address)) {
            return;
        }
        let all = self.claims.entry(address).or_default();
        if let Err(place) = all.binary_search(&claim) {
            all.insert(place, claim);
        }
        if let Some(best) = all.first() {
            self.next.addresses.insert_mut(address, best.nic.clone());
        }
    }

    fn release(&mut self, address: IpAddr, claim: &Claim) {
        let Some(all) = self.claims.get_mut(&address) else { return };
        if let Ok(place) = all.binary_search(claim) {
            all.remove(place);
        }
        if let Some(best) = all.first() {
            self.next.addresses.insert_mut(address, best.nic.clone());
        } else {
            self.claims.remove(&address);
            self.next.addresses.remove_mut(&address);
        }
    }
}

/// Every name of a VM with what it answers: its own, which is its first NIC's, and its NICs'.
fn owners(records: &VmRecords) -> impl Iterator<Item = (&Name, &Arc<super::AddressSet>)> {
    let own = records.nics.first().map(|nic| (&records.name, &nic.addresses));
    own.into_iter().chain(records.nics.iter().map(|nic| (&nic.name, &nic.addresses)))
}

fn claims(records: &VmRecords) -> impl Iterator<Item = (IpAddr, Claim)> {
    let undated = records.created.is_empty();
    records.nics.iter().flat_map(move |nic| {
        let claim =
            Claim { rank: nic.rank, undated, created: records.created.clone(), nic: nic.name.clone() };
        nic.addresses.iter().map(move |address| (address, claim.clone()))
    })
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
