//! Where a gateway's addresses are: on the bridge, or for a network with a VLAN on a link in that VLAN.
//!
//! The bridge itself is in its default VLAN, so it cannot answer in another: the link `BRIDGE.VLAN` on top of it does. Its
//! alias says that it was made here; it goes with the VLAN's last pod, which the bridge's ports tell, or with the bridge. One
//! of that name that the reference plugin or an administrator made is used as it is, and stays.
//!
//! What makes a link and what removes one hold the [`BridgeLock`]: whoever makes it is in the VLAN already.

use cni::Interface;
use net_types::{IfName, VlanId};
use netlink::{Link, Netlink, PortVlan};
use sha2::{Digest as _, Sha256};

use super::config::{Config, Gateway};
use super::device::{BridgeLock, write_setting};
use super::error::BridgeError;
use super::uplink;
use super::vlans::Vlans;
use crate::compare::{difference, expect, state};

/// The alias of a link that was made here.
const MADE_HERE: &str = "guestwire cnv-bridge v1 gateway";

/// The name of the link and its VLAN; none if the bridge itself is the gateway.
fn in_vlan(config: &Config, bridge: &Link) -> Option<(IfName, VlanId)> {
    let default = bridge.bridge.and_then(|bridge| bridge.default_pvid);
    let vlan = config.vlan.filter(|vlan| config.gateway > Gateway::No && Some(*vlan) != default)?;
    Some((name(&config.bridge, vlan).ok()?, vlan))
}

/// A bridge follows the lowest address among its ports unless it has been given one: the gateway's must not change. The caller
/// holds the [`BridgeLock`], or two would each keep another.
pub(super) fn keep_address(host: &Netlink, bridge: &Link) -> Result<(), BridgeError> {
    if let Some(mac) = bridge.mac {
        host.set_mac(bridge.index, mac)?;
        cni::mutated("bridge's address");
    }
    Ok(())
}

/// What the link is called, as by the reference plugin.
pub(super) fn name(bridge: &IfName, vlan: VlanId) -> Result<IfName, net_types::IfNameError> {
    format!("{bridge}.{vlan}").parse()
}

/// What it is called until its alias is written, so that a call that is cut off leaves nothing that nobody knows.
fn unfinished(name: &IfName) -> Result<IfName, net_types::IfNameError> {
    let digits =
        Sha256::digest(name.as_str()).iter().take(5).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("cnvgw{digits}").parse()
}

/// The link that has, or shall have, the gateway's addresses; made if it is missing.
pub(super) fn ensure(host: &Netlink, config: &Config, bridge: &Link) -> Result<Link, BridgeError> {
    let Some((name, vlan)) = in_vlan(config, bridge) else { return Ok(bridge.clone()) };
    let _lock = BridgeLock::take()?;
    let link = match host.link_by_name(name.as_str())? {
        Some(link) => link,
        None => make(host, &name, vlan, bridge)?,
    };
    match link.kind.as_str() {
        "vlan" if link.peer == Some(bridge.index) => {
            host.add_own_vlan(bridge.index, PortVlan::tagged(vlan.into()))?;
            cni::mutated("VLAN of the bridge");
        }
        // The reference plugin's: its other end is a port of the bridge.
        "veth" => {}
        _ => return Err(BridgeError::NoGateway { name, kind: link.kind }),
    }
    if !link.up {
        host.set_up(link.index)?;
        cni::mutated("gateway up");
    }
    Ok(link)
}

fn make(host: &Netlink, name: &IfName, vlan: VlanId, bridge: &Link) -> Result<Link, BridgeError> {
    let unfinished = unfinished(name).map_err(BridgeError::GatewayName)?;
    let vanished = || BridgeError::Vanished(name.clone());
    if let Some(left) = host.link_by_name(unfinished.as_str())? {
        host.delete_link(left.index)?;
    }
    host.create_vlan(&unfinished, bridge.index, vlan)?;
    cni::mutated("gateway");
    let link = host.link_by_name(unfinished.as_str())?.ok_or_else(vanished)?;
    host.set_alias(link.index, MADE_HERE)?;
    cni::mutated("gateway's alias");
    host.set_name(link.index, name)?;
    cni::mutated("gateway's name");
    // Else a pod could give the node a default route.
    write_setting(&format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0")?;
    host.link_by_index(link.index)?.ok_or_else(vanished)
}

/// Removes the link of the network's VLAN if it was made here and no port of ours is in the VLAN any more. The caller holds the
/// [`BridgeLock`].
pub(super) fn leave(host: &Netlink, config: &Config) -> Result<(), BridgeError> {
    if config.vlan.is_none() || config.gateway == Gateway::No {
        return Ok(());
    }
    let Some(bridge) = host.link_by_name(config.bridge.as_str())? else { return Ok(()) };
    let Some((name, vlan)) = in_vlan(config, &bridge) else { return Ok(()) };
    if let Some(left) = host.link_by_name(unfinished(&name).map_err(BridgeError::GatewayName)?.as_str())? {
        host.delete_link(left.index)?;
    }
    let Some(link) = host.link_by_name(name.as_str())? else { return Ok(()) };
    if link.alias != MADE_HERE || link.peer != Some(bridge.index) {
        return Ok(());
    }
    let wanted = Vlans::from_list(vec![PortVlan::tagged(vlan.into())]);
    if !uplink::used(host, &bridge, &wanted)?.is_empty() {
        return Ok(());
    }
    host.delete_own_vlans(bridge.index, vlan.into())?;
    cni::mutated("VLAN of the bridge left");
    host.delete_link(link.index)?;
    cni::mutated("gateway removed");
    Ok(())
}

/// As the result tells of it; none if it is the bridge, which the result has anyway.
pub(super) fn describe(link: &Link, bridge: &Link) -> Option<Interface> {
    (link.index != bridge.index).then(|| Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        ..Interface::default()
    })
}

/// The link that has the gateway's addresses, for CHECK.
pub(super) fn check(host: &Netlink, config: &Config, bridge: &Link) -> Result<Link, BridgeError> {
    let Some((name, vlan)) = in_vlan(config, bridge) else { return Ok(bridge.clone()) };
    let link = host.link_by_name(name.as_str())?;
    let link = link.ok_or_else(|| difference(&name, "absent", "present"))?;
    expect(&format!("state of {name}"), state(link.up), state(true))?;
    if link.kind == "vlan" && !Vlans::from_list(netlink::port_vlans(bridge.index)?).contains(vlan) {
        let what = format!("VLANs of {}", bridge.name);
        return Err(difference(what, format!("without {vlan}"), format!("with {vlan}")).into());
    }
    Ok(link)
}
