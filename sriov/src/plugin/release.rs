//! DEL and GC, and the undoing of a failed ADD: the VF as it was.
//!
//! All goes by the journal. Each step may find its work done, so this can be cut off anywhere and begin again; the
//! journal's entry is removed last. Steps go on past failures of others, and every failure is reported.

use std::path::Path;

use cni::{Attachment, ContainerId, device_info};
use net_types::{Mac, PciAddress};
use netlink::Netlink;

use super::error::SriovError;
use super::{Node, interface};
use crate::attribute::{Attribute, AttributeError, Port};
use crate::journal::{Entry, JournalError};
use crate::sysfs::Mode;

/// Takes back the VF that `attachment` has; if it has none, that is fine. `hint`: the VF it is likely to be.
pub(super) fn del(node: &Node, attachment: &Attachment, hint: Option<PciAddress>) -> Result<(), SriovError> {
    let (container, if_name) = (attachment.container.as_str(), attachment.if_name.as_str());
    let ours = |entry: &Entry| entry.owner.is(container, if_name);
    let Some(address) = find(node, hint, ours)? else {
        tracing::debug!("nothing is attached");
        return Ok(());
    };
    let _lock = node.journal.lock(address)?;
    match node.journal.read(address)?.filter(|entry| ours(entry)) {
        Some(entry) => release(node, &entry, attachment.netns.as_deref()),
        // Another call has taken it back meanwhile.
        None => Ok(()),
    }
}

/// The VF whose entry is `ours`. An unreadable file is an error only if no readable one is: it may be the one.
pub(super) fn find(
    node: &Node,
    hint: Option<PciAddress>,
    ours: impl Fn(&Entry) -> bool,
) -> Result<Option<PciAddress>, JournalError> {
    let mut unreadable = None;
    if let Some(address) = hint {
        match node.journal.read(address) {
            Ok(Some(entry)) if ours(&entry) => return Ok(Some(address)),
            Ok(_) => {}
            Err(error) => unreadable = Some(error),
        }
    }
    let (entries, failure) = node.journal.all()?;
    match (entries.into_iter().find(|entry| ours(entry)), unreadable.or(failure)) {
        (Some(entry), _) => Ok(Some(entry.address)),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Takes back every VF of `network` that belongs to none of the `valid` attachments.
pub(super) fn gc(node: &Node, network: &str, valid: &[(ContainerId, String)]) -> Result<(), SriovError> {
    let (entries, failure) = node.journal.all()?;
    let mut failures: Vec<SriovError> = failure.map(SriovError::from).into_iter().collect();
    let stale = |entry: &Entry| {
        entry.owner.network == network
            && !valid.iter().any(|(container, if_name)| entry.owner.is(container.as_str(), if_name))
    };
    for entry in entries.into_iter().filter(stale) {
        tracing::info!("taking back {}: {} is gone", entry.address, entry.owner);
        failures.extend(take_back(node, entry.address, stale).err());
    }
    SriovError::all(failures)
}

fn take_back(node: &Node, address: PciAddress, stale: impl Fn(&Entry) -> bool) -> Result<(), SriovError> {
    let _lock = node.journal.lock(address)?;
    match node.journal.read(address)?.filter(|entry| stale(entry)) {
        Some(entry) => release(node, &entry, None),
        None => Ok(()),
    }
}

/// Makes the VF what it was before `entry`, and removes the entry. The caller holds the VF's lock.
pub(super) fn release(node: &Node, entry: &Entry, netns: Option<&Path>) -> Result<(), SriovError> {
    let mut failures = Vec::new();
    if entry.boot != node.boot || !node.sysfs.exists(entry.address) {
        tracing::info!("{} has been made anew since it was attached: nothing to undo", entry.address);
    } else {
        failures.extend(undo(node, entry, netns));
    }
    if let Some(path) = &entry.device_info {
        failures.extend(device_info::remove(path, &entry.device()).err().map(SriovError::from));
        cni::mutated("device-info file removed");
    }
    SriovError::all(failures)?;
    node.journal.remove(entry.address)?;
    cni::mutated("journal entry removed");
    Ok(())
}

fn undo(node: &Node, entry: &Entry, netns: Option<&Path>) -> Vec<SriovError> {
    let host = match Netlink::open() {
        Ok(host) => host,
        Err(error) => return vec![error.into()],
    };
    // Who bound another driver meanwhile has taken the interface away.
    let has_link = entry.mode == Mode::Netdevice
        && node.sysfs.mode(entry.address).is_ok_and(|mode| mode == Mode::Netdevice);
    let home = has_link.then(|| interface::bring_home(node, &host, entry, netns));
    let attributes = restore_attributes(node, &host, entry);
    let mut failures: Vec<SriovError> = attributes.err().into_iter().collect();
    match (home, &entry.link) {
        (Some(Ok(link)), Some(before)) => {
            failures.extend(interface::restore(&host, &link, before).err());
        }
        (Some(Err(error)), _) => failures.push(error),
        _ => {}
    }
    failures
}

/// Gives every attribute that was set its former value, one after the other: what a driver refuses now (igb changes no
/// rate while the PF has no carrier) must not keep the rest from coming back.
fn restore_attributes(node: &Node, host: &Netlink, entry: &Entry) -> Result<(), SriovError> {
    let pf = node.sysfs.pf_link(entry.pf)?;
    let _pf_lock = node.journal.lock(entry.pf)?;
    let vanished = || SriovError::Vanished(pf.clone());
    let link = host.link_by_name(pf.as_str())?.ok_or_else(vanished)?;
    let port = Port { netlink: host, pf: pf.as_str(), pf_index: link.index, vf: entry.index };
    let failures = entry.before.iter().filter_map(|before| restore(&port, *before).err());
    SriovError::all(failures.map(SriovError::from).collect())
}

fn restore(port: &Port<'_>, before: Attribute) -> Result<(), AttributeError> {
    match port.apply(&[before]) {
        Err(AttributeError::Refused { wanted: Attribute::Mac(Mac::ZERO), source, .. }) => {
            // The pod's address must not stay, or its next holder is refused or doubled.
            let pf = port.pf;
            tracing::warn!(
                "the driver of {pf} does not take back an address ({source}): assigning a new one"
            );
            port.apply(&[Attribute::Mac(random_mac())])
        }
        other => other,
    }
}

/// An address of nobody's: local, unicast, otherwise random.
fn random_mac() -> Mac {
    let mut octets = [0; 6];
    // The kernel's generator; what is missing early in a boot stays zero, which the two bits below make an address.
    let _ = rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty());
    octets[0] = octets[0] & 0xfc | 0x02;
    Mac(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_address_is_local_and_unicast() {
        for _ in 0..64 {
            let mac = random_mac();
            assert!(mac.is_unicast() && mac.is_local(), "{mac}");
        }
    }
}
