//! What ADD finds, all of it looked at before anything is changed.

use std::path::{Path, PathBuf};

use cni::Request;
use cni::device_info::{self, Device};
use net_types::{IfName, Mac, PciAddress};
use netlink::{Link, Netlink, Vf};
use netns::NetNs;

use super::config::Config;
use super::error::SriovError;
use super::release::release;
use super::{Node, interface};
use crate::attribute::Attribute;
use crate::journal::{self, Entry, LinkBefore, Lock, Namespace, Owner};
use crate::sysfs::{Mode, VirtualFunction};

/// What is there before a VF is handed over.
pub(super) struct Ground {
    pub(super) host: Netlink,
    pub(super) namespace: NetNs,
    /// What the interface will be called in the pod.
    pub(super) if_name: IfName,
    /// The physical function's interface.
    pub(super) pf: Link,
    /// The VF's interface on the host, if it is to move.
    pub(super) link: Option<Link>,
    /// What is going to be done.
    pub(super) entry: Entry,
}

/// Looks at everything the VF needs. Changes nothing, but clears away what missed DELs left. The lock is the PF's: the
/// VF's address is nobody else's as long as it is held.
pub(super) fn survey(
    node: &Node,
    config: &Config,
    request: &Request,
    device: PciAddress,
) -> Result<(Ground, Lock), SriovError> {
    let attachment = request.attachment().map_err(|_no_attachment| SriovError::NoNetns)?;
    let path = attachment.netns.clone().ok_or(SriovError::NoNetns)?;
    let namespace = NetNs::open(path.clone()).map_err(SriovError::Netns)?;
    let if_name = attachment.if_name.clone();
    let owner = Owner {
        container: attachment.container.to_string(),
        if_name: if_name.clone(),
        network: request.network.clone(),
    };
    let vf = node.sysfs.virtual_function(device)?;
    clear(node, device, &owner)?;
    let mode = node.sysfs.mode(device)?;
    let host = Netlink::open()?;
    let link = match mode {
        Mode::Netdevice => Some(own_link(node, &host, device)?),
        Mode::Vfio => None,
    };
    if link.is_some() {
        refuse_taken_name(&namespace, &if_name, &path)?;
    }
    let pf = pf_link(node, &host, &vf)?;
    if let Some(mac) = config.mac {
        clear_siblings(node, &vf, mac)?;
    }
    let pf_lock = node.journal.lock(vf.pf)?;
    let siblings = netlink::virtual_functions(pf.index)?;
    if let Some(mac) = config.mac {
        refuse_taken_mac(node, &vf, &pf, &siblings, mac)?;
    }
    let now = siblings.into_iter().find(|sibling| sibling.index == vf.index).unwrap_or_default();
    let wanted = config.attributes(&now);
    let entry = Entry {
        version: journal::VERSION,
        boot: node.boot.clone(),
        address: device,
        pf: vf.pf,
        index: vf.index,
        mode,
        owner,
        netns: identity(&namespace)?,
        before: wanted.iter().map(|attribute| attribute.before(&now)).collect(),
        wanted,
        link: link.as_ref().and_then(before),
        device_info: device_info_to_write(config, &vf)?,
        attached: false,
    };
    Ok((Ground { host, namespace, if_name, pf, link, entry }, pf_lock))
}

fn own_link(node: &Node, host: &Netlink, device: PciAddress) -> Result<Link, SriovError> {
    match interface::on_host(node, host, device)? {
        Some(link) => Ok(link),
        None => {
            let driver = node.sysfs.driver(device)?.unwrap_or_default();
            Err(SriovError::NoLink { address: device, driver })
        }
    }
}

fn pf_link(node: &Node, host: &Netlink, vf: &VirtualFunction) -> Result<Link, SriovError> {
    let name = node.sysfs.pf_link(vf.pf)?;
    let pf = host.link_by_name(name.as_str())?.ok_or_else(|| SriovError::Vanished(name.clone()))?;
    if !pf.up {
        tracing::warn!("{name} is down, so {} has no carrier; set it up: ip link set {name} up", vf.address);
    }
    Ok(pf)
}

fn identity(namespace: &NetNs) -> Result<Namespace, SriovError> {
    let (device, inode) = namespace.id().map_err(SriovError::Netns)?;
    Ok(Namespace { path: namespace.path().to_owned(), device, inode })
}

fn before(link: &Link) -> Option<LinkBefore> {
    Some(LinkBefore { name: link.name.parse().ok()?, mac: link.mac, mtu: link.mtu, up: link.up })
}

fn device_info_to_write(config: &Config, vf: &VirtualFunction) -> Result<Option<PathBuf>, SriovError> {
    let device = Device::Pci { address: vf.address, pf: Some(vf.pf) };
    match &config.device_info {
        Some(path) if !device_info::exists(path, &device)? => Ok(Some(path.clone())),
        _ => Ok(None),
    }
}

/// Refuses a VF that another attachment has; one whose owner is gone, or never got it, is taken back.
fn clear(node: &Node, device: PciAddress, owner: &Owner) -> Result<(), SriovError> {
    let Some(entry) = node.journal.read(device)? else { return Ok(()) };
    let unfinished = entry.owner == *owner && !entry.attached;
    if !unfinished && is_alive(node, &entry) {
        return Err(SriovError::InUse { address: device, owner: entry.owner });
    }
    tracing::warn!("{device} is left over from {}, which was never deleted: taking it back", entry.owner);
    release(node, &entry, None)
}

/// True if the namespace that the VF was handed to is still there, the same one.
fn is_alive(node: &Node, entry: &Entry) -> bool {
    let Namespace { path, device, inode } = &entry.netns;
    let same = NetNs::open(path.clone()).and_then(|namespace| namespace.id());
    entry.boot == node.boot && same.is_ok_and(|id| id == (*device, *inode))
}

fn refuse_taken_name(namespace: &NetNs, if_name: &IfName, path: &Path) -> Result<(), SriovError> {
    let pod = Netlink::open_in(namespace)?;
    match pod.link_by_name(if_name.as_str())? {
        None => Ok(()),
        Some(_) => Err(SriovError::InterfaceExists { if_name: if_name.clone(), netns: path.to_owned() }),
    }
}

/// Takes back the VFs of the same PF that have `mac` from owners that are gone: a pod that was never deleted must not keep
/// its successor out. VFs that somebody is busy with are left.
fn clear_siblings(node: &Node, vf: &VirtualFunction, mac: Mac) -> Result<(), SriovError> {
    let (entries, _unreadable) = node.journal.all()?;
    let stale = |entry: &Entry| {
        entry.pf == vf.pf
            && entry.address != vf.address
            && entry.wanted.contains(&Attribute::Mac(mac))
            && !is_alive(node, entry)
    };
    for entry in entries.into_iter().filter(stale) {
        let Some(_lock) = node.journal.try_lock(entry.address)? else { continue };
        // Read again: it may have changed hands before the lock was ours.
        if let Some(entry) = node.journal.read(entry.address)?.filter(stale) {
            tracing::warn!("taking back {} from {}, which was never deleted", entry.address, entry.owner);
            release(node, &entry, None)?;
        }
    }
    Ok(())
}

/// Refuses an address that the PF or another of its VFs has, or will have again when it comes back. The caller holds the
/// PF's lock, so nobody is assigning it meanwhile.
fn refuse_taken_mac(
    node: &Node,
    vf: &VirtualFunction,
    pf: &Link,
    siblings: &[Vf],
    mac: Mac,
) -> Result<(), SriovError> {
    let taken = |holder: String| Err(SriovError::MacInUse { mac, holder });
    if pf.mac == Some(mac) {
        return taken(format!("{}, the physical function", pf.name));
    }
    let (entries, _unreadable) = node.journal.all()?;
    let others = |entry: &&Entry| entry.pf == vf.pf && entry.index != vf.index;
    for entry in entries.iter().filter(others) {
        let former = entry.link.as_ref().and_then(|link| link.mac);
        let has = Attribute::Mac(mac);
        if former == Some(mac) || entry.before.contains(&has) || entry.wanted.contains(&has) {
            return taken(format!("VF {} of {}, which {} has", entry.index, pf.name, entry.owner));
        }
    }
    match siblings.iter().find(|sibling| sibling.index != vf.index && sibling.mac == Some(mac)) {
        Some(sibling) => taken(format!("VF {} of {}", sibling.index, pf.name)),
        None => Ok(()),
    }
}
