//! DEL: the pod interface becomes what it was. Also how a failed ADD is undone, so every step may find its object
//! missing.

use std::error::Error as _;

use net_types::IfName;
use netlink::{Link, Netlink};

use super::attach::own_addresses;
use super::before::{Before, Record, Settings};
use super::error::VmTapError;
use super::pod::{Mode, Pod, Wired};
use super::tc;

/// Takes everything apart and puts the pod interface back. Nothing there is fine. The dummy, which shows the
/// addresses, goes when the interface has them, then the alias, and last the file that tells what there was: cut off
/// anywhere, this can begin again.
pub(super) fn del(pod: &Pod, record: Record<'_>) -> Result<(), VmTapError> {
    let Some(Wired { names, nic, mac, mode }) = pod.wired()? else { return record.forget() };
    let before = record.read()?;
    let netlink = &pod.netlink;
    if mode == Mode::Tc {
        tc::end(pod, &nic)?;
    }
    for name in [&names.tap, &names.bridge] {
        if let Some(link) = netlink.link_by_name(name.as_str())? {
            delete(netlink, &link)?;
        }
    }
    let dummy = dummy(netlink, [&names.pod, &names.dummy])?;
    if let Some(dummy) = dummy.as_ref().filter(|dummy| dummy.name == names.pod.as_str()) {
        netlink.set_name(dummy.index, &names.dummy)?;
        cni::mutated("name freed");
    }
    if nic.name != names.pod.as_str() || nic.mac != Some(mac) {
        netlink.set_down(nic.index)?;
        netlink.set_mac(nic.index, mac)?;
        netlink.set_name(nic.index, &names.pod)?;
        cni::mutated("pod interface as it was");
    }
    match before {
        Some(before) => give_back(pod, &names.pod, &nic, &before)?,
        // An earlier release made it, which wrote nothing down, or the file is lost.
        None => give_back_addresses_of(pod, &names.pod, &nic, dummy.as_ref())?,
    }
    if let Some(dummy) = dummy {
        delete(netlink, &dummy)?;
    }
    netlink.set_alias(nic.index, "")?;
    cni::mutated("alias cleared");
    record.forget()
}

/// State, settings, addresses and routes as they were.
fn give_back(pod: &Pod, name: &IfName, nic: &Link, before: &Before) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    let Before { up, settings, addresses, routes } = before;
    settings.write(pod, name)?;
    if *up {
        netlink.set_up(nic.index)?;
    } else {
        netlink.set_down(nic.index)?;
    }
    cni::mutated("state given back");
    for address in addresses {
        match netlink.give_back_address(nic.index, address) {
            Err(error) if !error.already_exists() => return Err(error.into()),
            _ => cni::mutated("address given back"),
        }
    }
    for route in routes {
        match netlink.give_back_route(route) {
            // It may lead through something else that is gone by now, and the rest must still be put back.
            Err(error) if !error.already_exists() => {
                let cause = error.source().map(ToString::to_string).unwrap_or_default();
                tracing::warn!("the {route} through {name} is lost: {error}: {cause}");
            }
            _ => cni::mutated("route given back"),
        }
    }
    Ok(())
}

/// What can be given back when nothing is written down: the addresses that the dummy shows.
fn give_back_addresses_of(
    pod: &Pod,
    name: &IfName,
    nic: &Link,
    dummy: Option<&Link>,
) -> Result<(), VmTapError> {
    tracing::warn!("nothing tells what {name} was; it gets its addresses back, and no routes");
    Settings::default().write(pod, name)?;
    pod.netlink.set_up(nic.index)?;
    let Some(dummy) = dummy else { return Ok(()) };
    for address in own_addresses(pod, dummy.index)? {
        match pod.netlink.add_sole_address(nic.index, address) {
            Err(error) if !error.already_exists() => return Err(error.into()),
            _ => cni::mutated("address given back"),
        }
    }
    Ok(())
}

fn delete(netlink: &Netlink, link: &Link) -> Result<(), VmTapError> {
    match netlink.delete_link(link.index) {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    cni::mutated("link removed");
    Ok(())
}

fn dummy(netlink: &Netlink, names: [&IfName; 2]) -> Result<Option<Link>, VmTapError> {
    for name in names {
        let link = netlink.link_by_name(name.as_str())?;
        if let Some(dummy) = link.filter(|link| link.kind == "dummy") {
            return Ok(Some(dummy));
        }
    }
    Ok(None)
}
