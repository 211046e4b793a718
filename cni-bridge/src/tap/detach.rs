//! DEL: the pod interface becomes what it was. Also how a failed ADD is undone, so every step may find its object
//! missing.

use net_types::IfName;
use netlink::{Link, Netlink};

use super::attach::own_addresses;
use super::error::VmTapError;
use super::pod::{Mode, Pod, Wired};
use super::tc;

/// Takes everything apart and puts the pod interface back. Nothing there is fine. The dummy, which keeps the
/// addresses, goes when the interface has them, and the alias last: cut off anywhere, this can begin again.
pub(super) fn del(pod: &Pod) -> Result<(), VmTapError> {
    let Some(Wired { names, nic, mac, mode }) = pod.wired()? else { return Ok(()) };
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
    pod.namespace.run(|| end_silence(&names.pod)).map_err(VmTapError::Netns)?;
    netlink.set_up(nic.index)?;
    if let Some(dummy) = dummy {
        for address in own_addresses(pod, dummy.index)? {
            match netlink.add_sole_address(nic.index, address) {
                Err(error) if !error.already_exists() => return Err(error.into()),
                _ => cni::mutated("address given back"),
            }
        }
        delete(netlink, &dummy)?;
    }
    netlink.set_alias(nic.index, "")?;
    cni::mutated("alias cleared");
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

/// Undoes ADD's silence. A kernel without IPv6 has no such setting.
fn end_silence(name: &IfName) {
    for setting in [format!("ipv6/conf/{name}/disable_ipv6"), format!("ipv4/conf/{name}/arp_ignore")] {
        if let Err(error) = std::fs::write(format!("/proc/sys/net/{setting}"), "0") {
            tracing::debug!("{setting} is not as it was: {error}");
        }
    }
}
