//! CHECK and STATUS.

use cni::{Attachment, Request};
use net_types::PciAddress;
use netlink::Netlink;
use netns::NetNs;

use super::config::Config;
use super::error::SriovError;
use super::{Node, hinted_device, interface, release};
use crate::attribute::{self, Attribute};
use crate::journal::Entry;
use crate::sysfs::Mode;

/// Compares the VF with what ADD made of it; fails with the first difference.
pub(super) fn check(node: &Node, request: &Request) -> Result<(), SriovError> {
    let attachment = request.attachment().map_err(|_no_attachment| SriovError::NoNetns)?;
    let entry = own_entry(node, attachment, hinted_device(request))?;
    let address = entry.address;
    let mode = |mode| match mode {
        Mode::Netdevice => "a network driver",
        Mode::Vfio => "a vfio driver",
    };
    node.sysfs.virtual_function(address)?;
    expect(&format!("driver of {address}"), mode(node.sysfs.mode(address)?), mode(entry.mode))?;
    check_attributes(node, &entry)?;
    if entry.mode == Mode::Netdevice {
        check_interface(attachment, &entry, request)?;
    }
    match &entry.device_info {
        Some(path) if !path.exists() => {
            expect(&format!("device-info file {}", path.display()), "absent", "present")
        }
        _ => Ok(()),
    }
}

/// The entry of an attachment whose ADD is done.
fn own_entry(node: &Node, attachment: &Attachment, hint: Option<PciAddress>) -> Result<Entry, SriovError> {
    let (container, if_name) = (attachment.container.as_str(), attachment.if_name.as_str());
    let ours = |entry: &Entry| entry.owner.is(container, if_name) && entry.boot == node.boot;
    let entry = match release::find(node, hint, ours)? {
        Some(address) => node.journal.read(address)?,
        None => None,
    };
    entry.filter(|entry| entry.attached && ours(entry)).ok_or_else(|| SriovError::Differs {
        what: format!("the virtual function of interface {if_name}"),
        found: "not attached".to_owned(),
        expected: "attached".to_owned(),
    })
}

fn check_attributes(node: &Node, entry: &Entry) -> Result<(), SriovError> {
    let pf = node.sysfs.pf_link(entry.pf)?;
    let host = Netlink::open()?;
    let link = host.link_by_name(pf.as_str())?.ok_or_else(|| SriovError::Vanished(pf.clone()))?;
    let vfs = netlink::virtual_functions(link.index)?;
    let vf = vfs.into_iter().find(|vf| vf.index == entry.index).unwrap_or_default();
    match attribute::first_difference(&vf, &entry.wanted) {
        None => Ok(()),
        Some((expected, found)) => {
            expect(&format!("VF {} of {pf}", entry.index), &found.to_string(), &expected.to_string())
        }
    }
}

fn check_interface(attachment: &Attachment, entry: &Entry, request: &Request) -> Result<(), SriovError> {
    let path = attachment.netns.clone().ok_or(SriovError::NoNetns)?;
    let pod = Netlink::open_in(&NetNs::open(path).map_err(SriovError::Netns)?)?;
    let name = &attachment.if_name;
    let of_vf = format!("interface of {}", entry.address);
    let Some(link) = interface::find(&pod, entry.address)? else {
        return expect(&of_vf, "not in the container", "in the container");
    };
    let previous = request.prev_result.iter().flat_map(|result| &result.interfaces);
    let reported = previous.into_iter().find(|interface| interface.name == name.as_str());
    // A later plugin of the chain may have renamed it, and says so by an interface of its own under this name.
    if pod.link_by_name(name.as_str())?.is_none() {
        return expect(&format!("interface {name}"), "absent", "present");
    }
    expect(&format!("state of {}", link.name), if link.up { "up" } else { "down" }, "up")?;
    for attribute in &entry.wanted {
        if let Attribute::Mac(mac) = attribute {
            let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            expect(&format!("address of {}", link.name), &found, &mac.to_string())?;
        }
    }
    if let Some(mtu) = reported.and_then(|interface| interface.mtu) {
        expect(&format!("MTU of {}", link.name), &link.mtu.to_string(), &mtu.to_string())?;
    }
    check_addresses(&pod, link.index, request)
}

/// The addresses that ADD reported, which sit on the interface unless a later plugin moved them to another.
fn check_addresses(pod: &Netlink, index: u32, request: &Request) -> Result<(), SriovError> {
    let expected = request.prev_result.iter().flat_map(|result| &result.ips);
    let there = pod.addresses(index)?;
    for ip in expected.filter(|ip| ip.interface.is_none_or(|interface| interface == 0)) {
        if !there.contains(&ip.address) {
            return expect(&format!("address {}", ip.address), "absent", "present");
        }
    }
    Ok(())
}

fn expect(what: &str, found: &str, expected: &str) -> Result<(), SriovError> {
    if found == expected {
        return Ok(());
    }
    let (what, found, expected) = (what.to_owned(), found.to_owned(), expected.to_owned());
    Err(SriovError::Differs { what, found, expected })
}

/// An ADD could work now: the named VF is usable or, when none is named, the node has some; and the journal can be kept.
pub(super) fn status(node: &Node, config: &Config) -> Result<(), SriovError> {
    match config.device {
        Some(device) => {
            let vf = node.sysfs.virtual_function(device)?;
            drop(node.journal.lock(vf.pf)?);
            node.sysfs.mode(device)?;
            node.sysfs.pf_link(vf.pf)?;
            Ok(())
        }
        None => {
            for pf in node.sysfs.physical_functions()? {
                if !node.sysfs.virtual_functions(pf)?.is_empty() {
                    drop(node.journal.lock(pf)?);
                    return Ok(());
                }
            }
            Err(SriovError::NoVirtualFunctions)
        }
    }
}
