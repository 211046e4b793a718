//! The uplink (`uplink`, ours): the bridge's way out of the node is in a network's VLANs while a NIC needs them.
//!
//! Nothing is counted: who needs a VLAN is read from the kernel, which lists the bridge's ports, their aliases and their
//! VLANs. So neither a crash nor a missed DEL can make a count wrong; the next DEL or GC of the network puts it right.
//! Whoever names an uplink leaves its membership in these VLANs to us: the last NIC's DEL removes it.
//!
//! Callers hold the [`super::device::BridgeLock`] from the look at the ports to the change.

use std::ops::ControlFlow;

use net_types::IfName;
use netlink::{Link, Netlink, PortVlan};

use super::config::Config;
use super::error::BridgeError;
use super::is_port_of_ours;
use super::vlans::Vlans;
use crate::compare::difference;

/// The network's uplink, which must be a port of `bridge`; none if the network names none.
pub(super) fn find(host: &Netlink, config: &Config, bridge: &Link) -> Result<Option<Link>, BridgeError> {
    let Some(name) = &config.uplink else { return Ok(None) };
    let link = host.link_by_name(name.as_str())?.filter(|link| link.master == Some(bridge.index));
    let no_port = || BridgeError::NotAPort { name: name.clone(), bridge: config.bridge.clone() };
    link.ok_or_else(no_port).map(Some)
}

/// Puts the uplink into those of the network's VLANs that it lacks.
pub(super) fn join(host: &Netlink, config: &Config, bridge: &Link) -> Result<(), BridgeError> {
    let Some(uplink) = find(host, config, bridge)? else { return Ok(()) };
    let present = Vlans::from_list(netlink::port_vlans(uplink.index)?);
    for vlans in Vlans::of_network(config).without(&present).ranges() {
        host.add_port_vlan(uplink.index, vlans)?;
        cni::mutated("VLAN of the uplink");
    }
    Ok(())
}

/// Takes the uplink out of those of the network's VLANs that no port of ours is in any more. A VLAN that is untagged there
/// is somebody else's doing and stays.
pub(super) fn leave(host: &Netlink, config: &Config) -> Result<(), BridgeError> {
    let Some(name) = &config.uplink else { return Ok(()) };
    let by_name = |name: &IfName| host.link_by_name(name.as_str());
    let (Some(bridge), Some(uplink)) = (by_name(&config.bridge)?, by_name(name)?) else { return Ok(()) };
    if uplink.master != Some(bridge.index) {
        return Ok(());
    }
    let mut present = netlink::port_vlans(uplink.index)?;
    present.retain(is_tagged);
    let wanted = Vlans::of_network(config).within(&Vlans::from_list(present));
    for PortVlan { range, .. } in wanted.without(&used(host, &bridge, &wanted)?).ranges() {
        host.delete_port_vlans(uplink.index, range)?;
        cni::mutated("VLAN of the uplink left");
    }
    Ok(())
}

/// Those of the `wanted` VLANs that a port of ours on the bridge is in. Ports are looked at until that is known of each, and
/// only those more closely that are in a VLAN of which it is not known yet.
pub(super) fn used(host: &Netlink, bridge: &Link, wanted: &Vlans) -> Result<Vlans, BridgeError> {
    let mut used = Vlans::default();
    if wanted.is_empty() {
        return Ok(used);
    }
    let failed = netlink::search_port_vlans(|port, vlans| {
        let theirs = wanted.within_list(vlans);
        if used.include(&theirs) {
            return ControlFlow::Continue(());
        }
        match host.link_by_index(port) {
            Ok(Some(link)) if link.master == Some(bridge.index) && is_port_of_ours(&link) => {
                used.extend(theirs.ranges());
            }
            Ok(_) => {}
            Err(error) => return ControlFlow::Break(Some(error)),
        }
        if used.include(wanted) { ControlFlow::Break(None) } else { ControlFlow::Continue(()) }
    })?;
    failed.flatten().map_or(Ok(used), |error| Err(error.into()))
}

/// The uplink is in all of the network's VLANs.
pub(super) fn check(host: &Netlink, config: &Config, bridge: &Link) -> Result<(), BridgeError> {
    let Some(uplink) = find(host, config, bridge)? else { return Ok(()) };
    let present = Vlans::from_list(netlink::port_vlans(uplink.index)?);
    let wanted = Vlans::of_network(config);
    let missing = wanted.without(&present);
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!("VLANs of uplink {}", uplink.name);
    Err(difference(what, format!("without {missing}"), format!("with {wanted}")).into())
}

fn is_tagged(vlan: &PortVlan) -> bool {
    !vlan.pvid && !vlan.untagged
}
