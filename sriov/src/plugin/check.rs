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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::journal::Journal;
    use crate::sysfs::Sysfs;
    use crate::sysfs::tests::{PF, sysfs};

    fn status_of(sysfs: Sysfs, journal: Journal, device: Option<&str>) -> Result<(), String> {
        let node = Node { sysfs, journal, boot: "b".into() };
        let config = Config {
            device: device.map(|device| device.parse().unwrap()),
            vlan: None,
            mac: None,
            min_rate: None,
            max_rate: None,
            spoof_check: None,
            trust: None,
            link_state: None,
            device_info: None,
        };
        status(&node, &config).map_err(|error| error.to_string())
    }

    #[test]
    fn status_says_whether_an_add_could_work_in_either_mode() {
        let (root, sysfs) = sysfs(3);
        let driver = |vf: &str| sysfs.device(vf.parse().unwrap()).join("driver");
        fs::remove_file(driver("0000:01:10.1")).unwrap();
        symlink("../../drivers/vfio-pci", driver("0000:01:10.1")).unwrap();
        fs::remove_file(driver("0000:01:10.2")).unwrap();
        let journal = Journal::at(&root.path().join("journal"));
        let says = |device| status_of(sysfs.clone(), journal.clone(), device);
        let fails = |device: &'static str| says(Some(device)).unwrap_err();
        for fine in [None, Some("0000:01:10.0"), Some("0000:01:10.1")] {
            assert_eq!(says(fine), Ok(()), "{fine:?}");
        }
        assert!(fails("0000:01:10.2").contains("has no driver"));
        assert!(fails(PF).contains("is a physical function"));
        assert!(fails("0000:09:00.0").contains("there is no PCI device"));
        fs::remove_dir_all(sysfs.device(PF.parse().unwrap()).join("net")).unwrap();
        assert!(fails("0000:01:10.1").contains("has no network interface"), "nothing to set it by");
    }

    #[test]
    fn status_fails_where_no_journal_can_be_kept_or_nothing_is_to_be_had() {
        let (root, with_vfs) = sysfs(1);
        fs::write(root.path().join("file"), "").unwrap();
        let blocked = Journal::at(&root.path().join("file"));
        assert!(status_of(with_vfs.clone(), blocked.clone(), None).unwrap_err().contains("cannot create"));
        assert!(status_of(with_vfs, blocked, Some("0000:01:10.0")).unwrap_err().contains("cannot create"));
        let (root, without) = sysfs(0);
        let journal = Journal::at(&root.path().join("journal"));
        assert_eq!(status_of(without, journal, None), Err("this node has no virtual functions".to_owned()));
    }
}
