//! The network interface of a VF: finding it, moving it, naming it, giving it an address.
//!
//! An interface is found by the PCI address behind it, never by its name: names change with every move, and others
//! rename too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use net_types::{IfName, Mac, PciAddress};
use netlink::{Events, Link, Netlink};
use netns::NetNs;

use super::Node;
use super::error::SriovError;
use crate::journal::{Entry, LinkBefore};

/// How long the kernel may take to give back the interfaces of a namespace that is gone. Its own work takes
/// milliseconds; a busy node's queue of dying namespaces comes before.
const COMES_HOME: Duration = Duration::from_secs(10);
/// How long an interface may take to show the address that its PF assigned: some drivers reset in between.
const TAKES_ADDRESS: Duration = Duration::from_secs(2);
/// How often an interface is named while its own alternative name keeps coming in the way; udev adds one once.
const RENAMES: u32 = 8;
/// Where `ip netns` and container runtimes keep the names of namespaces.
const NAMED: &str = "/run/netns";

/// The interface of the VF in the namespace of `netlink`.
pub(super) fn find(netlink: &Netlink, address: PciAddress) -> Result<Option<Link>, SriovError> {
    let address = address.to_string();
    Ok(netlink.links()?.into_iter().find(|link| link.parent == address))
}

/// The interface of the VF while it is in the host's namespace.
pub(super) fn on_host(node: &Node, host: &Netlink, address: PciAddress) -> Result<Option<Link>, SriovError> {
    match node.sysfs.link(address)? {
        Some(name) => Ok(host.link_by_name(name.as_str())?),
        None => Ok(None),
    }
}

/// Gives an interface that is down an address, the one its PF has assigned.
pub(super) fn take_address(host: &Netlink, link: &Link, wanted: Mac) -> Result<(), SriovError> {
    let index = link.index;
    let address = || Ok::<_, SriovError>(host.link_by_index(index)?.and_then(|link| link.mac));
    if address()? == Some(wanted) {
        return Ok(());
    }
    let events = Events::of_links()?;
    if let Err(error) = host.set_mac(index, wanted) {
        // A driver that may not choose learns what was assigned when it resets, which it does on its way down.
        tracing::debug!("{} resets to learn its address: {error}", link.name);
        host.set_up(index)?;
        host.set_down(index)?;
    }
    cni::mutated("address of the interface");
    let taken =
        events.until(TAKES_ADDRESS, || Ok::<_, SriovError>(address()?.filter(|mac| *mac == wanted)))?;
    match taken {
        Some(_) => Ok(()),
        None => {
            let found = address()?.unwrap_or(Mac::ZERO);
            Err(SriovError::MacNotTaken { link: link.name.clone(), wanted, found })
        }
    }
}

/// Brings the VF's interface back to the host, wherever it is, with its former name. It is down then.
pub(super) fn bring_home(
    node: &Node,
    host: &Netlink,
    entry: &Entry,
    hint: Option<&Path>,
) -> Result<Link, SriovError> {
    let address = entry.address;
    // From here on nothing that arrives is missed.
    let events = Events::of_devices()?;
    let link = match on_host(node, host, address)? {
        Some(link) => link,
        None => match move_from_somewhere(node, host, entry, hint)? {
            Some(link) => link,
            None => {
                events.until(COMES_HOME, || on_host(node, host, address))?.ok_or(SriovError::Lost(address))?
            }
        },
    };
    host.set_down(link.index)?;
    cni::mutated("interface down");
    if let Some(before) = &entry.link {
        rename(host, &link, &before.name)?;
    }
    Ok(link)
}

/// Moves the interface from the container's namespace, or else from any that has a name: somebody may have moved it on.
fn move_from_somewhere(
    node: &Node,
    host: &Netlink,
    entry: &Entry,
    hint: Option<&Path>,
) -> Result<Option<Link>, SriovError> {
    let likely = [Some(entry.netns.path.clone()), hint.map(Path::to_owned)];
    for path in likely.into_iter().flatten().chain(named_namespaces()) {
        let namespace = match NetNs::open(path) {
            Ok(namespace) => namespace,
            Err(error) => {
                tracing::debug!("not looked into: {error}");
                continue;
            }
        };
        let there = Netlink::open_in(&namespace)?;
        let Some(link) = find(&there, entry.address)? else { continue };
        there.set_down(link.index)?;
        if let Some(before) = &entry.link {
            // It would be in the way of the interface's own name on the host.
            forget_alt_name(&there, &link, &before.name)?;
        }
        move_home(&there, &link, host, entry)?;
        cni::mutated("interface moved to the host");
        return on_host(node, host, entry.address);
    }
    Ok(None)
}

fn move_home(there: &Netlink, link: &Link, host: &Netlink, entry: &Entry) -> Result<(), SriovError> {
    let home = NetNs::current().map_err(SriovError::Netns)?;
    let former = entry.link.as_ref().map(|before| before.name.clone());
    let free = |name: &IfName| Ok::<_, SriovError>(host.link_by_name(name.as_str())?.is_none());
    if let Some(name) = former
        && free(&name)?
    {
        return Ok(there.move_link(link.index, &home, &name)?);
    }
    Ok(there.move_link(link.index, &home, &spare_name(entry.address)?)?)
}

/// A name that only the VF at `address` can have, for when its own is taken.
fn spare_name(address: PciAddress) -> Result<IfName, SriovError> {
    let (domain, bus) = (address.domain(), address.bus());
    let name = format!("vf{domain:04x}{bus:02x}{:02x}{:x}", address.device(), address.function());
    // Two letters and nine digits: always a name.
    name.parse().map_err(|_impossible| SriovError::Lost(address))
}

/// Names an interface of the host that is down. A name that another interface has taken is not fought over.
///
/// udev gives an interface that comes back under a pod's name its own as an alternative one, as ADD did. It may do so
/// at any moment, so what is in the way is looked at after each refusal, not before.
fn rename(host: &Netlink, link: &Link, name: &IfName) -> Result<(), SriovError> {
    if link.name == name.as_str() {
        return Ok(());
    }
    for attempt in 1.. {
        match host.set_name(link.index, name) {
            Err(error) if error.already_exists() && attempt < RENAMES => {}
            other => {
                other?;
                cni::mutated("interface renamed");
                return Ok(());
            }
        }
        match host.link_by_name(name.as_str())? {
            Some(holder) if holder.index == link.index => forget_alt_name(host, link, name)?,
            Some(_) => {
                tracing::warn!("{} keeps its name: another interface is called {name} by now", link.name);
                return Ok(());
            }
            // Whoever had it has left it meanwhile.
            None => {}
        }
    }
    Ok(())
}

/// Takes an alternative name away, if the interface has it.
fn forget_alt_name(netlink: &Netlink, link: &Link, name: &IfName) -> Result<(), SriovError> {
    if link.name == name.as_str() {
        return Ok(());
    }
    match netlink.delete_alt_name(link.index, name.as_str()) {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Gives the interface, which is at home, what it had before.
pub(super) fn restore(host: &Netlink, link: &Link, before: &LinkBefore) -> Result<(), SriovError> {
    if let Some(mac) = before.mac {
        take_address(host, link, mac)?;
    }
    if link.mtu != before.mtu {
        host.set_mtu(link.index, before.mtu)?;
        cni::mutated("MTU restored");
    }
    if before.up {
        host.set_up(link.index)?;
        cni::mutated("interface up");
    }
    Ok(())
}

fn named_namespaces() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(NAMED) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_name_fits_and_is_the_vf_s_own() {
        let name = |address: &str| spare_name(address.parse().unwrap()).unwrap().to_string();
        assert_eq!(name("0000:01:10.2"), "vf000001102");
        assert_eq!(name("ffff:ff:1f.7"), "vfffffff1f7");
    }
}
