//! CHECK and STATUS.

use cni::Success;
use net_types::Mac;
use netlink::{Link, Netlink, PortVlan};
use netns::NetNs;

use super::attach::find_bridge;
use super::config::Config;
use super::error::BridgeError;
use super::port::Port;
use crate::compare::{difference, expect, index, state};
use crate::nf_tables::NfTables;
use crate::spoof;

/// Compares the port with what ADD made of it; fails with the first difference.
pub(super) fn check(config: &Config, port: &Port, previous: Option<&Success>) -> Result<(), BridgeError> {
    let path = port.netns.clone().ok_or(BridgeError::NoNetns)?;
    let sandbox = path.display().to_string();
    let guest_mac = mac_in_result(port, &sandbox, previous)?;
    let namespace = NetNs::open(path).map_err(BridgeError::Netns)?;
    let host = Netlink::open()?;
    let bridge = find_bridge(&host, config)?;
    let host_name = &port.host_name;
    let host_end = host.link_by_name(host_name.as_str())?;
    let host_end = host_end.ok_or_else(|| difference(host_name, "absent", "present"))?;
    expect(&format!("alias of {host_name}"), &host_end.alias, &port.alias)?;
    expect(&format!("state of {host_name}"), state(host_end.up), state(true))?;
    expect(&format!("master of {host_name}"), index(host_end.master), index(Some(bridge.index)))?;
    check_pod_end(config, port, &host_end, &Netlink::open_in(&namespace)?, guest_mac)?;
    check_vlans(config, port, &host, host_end.index, &bridge)?;
    if config.mac_spoof_check {
        let found = match spoof::state(&NfTables::open()?, host_name)? {
            spoof::State::Allows(mac) => mac.to_string(),
            spoof::State::Absent => "absent".to_owned(),
            spoof::State::Foreign => "not ours".to_owned(),
        };
        expect(&format!("spoof check of {host_name}"), found, guest_mac.to_string())?;
    }
    Ok(())
}

/// The pod's end is found through the host's: a later plugin may have renamed it and given its name and address to
/// another link, which is then for that plugin to check.
fn check_pod_end(
    config: &Config,
    port: &Port,
    host_end: &Link,
    pod: &Netlink,
    mac: Mac,
) -> Result<(), BridgeError> {
    let named = &port.if_name;
    let other_end = || format!("other end of {}", port.host_name);
    let peer = host_end.peer.map(|peer| pod.link_by_index(peer)).transpose()?.flatten();
    let peer = peer.filter(|peer| peer.kind == "veth" && peer.peer == Some(host_end.index));
    let peer = peer.ok_or_else(|| difference(other_end(), "not in the container", "in the container"))?;
    expect(&format!("state of {}", peer.name), state(peer.up), state(true))?;
    if let Some(mtu) = config.mtu {
        expect(&format!("MTU of {}", peer.name), peer.mtu, mtu)?;
    }
    let visible = pod.link_by_name(named.as_str())?.ok_or_else(|| difference(named, "absent", "present"))?;
    Ok(expect(&format!("address of {named}"), visible.mac.unwrap_or(Mac::ZERO), mac)?)
}

fn check_vlans(
    config: &Config,
    port: &Port,
    host: &Netlink,
    port_index: u32,
    bridge: &Link,
) -> Result<(), BridgeError> {
    let Some(vlan) = config.vlan else { return Ok(()) };
    let mut expected = vec![PortVlan::access(vlan)];
    let default = bridge.bridge.and_then(|bridge| bridge.default_pvid).filter(|default| *default != vlan);
    if let (Some(default), true) = (default, config.preserve_default_vlan) {
        expected.push(PortVlan { range: default.into(), pvid: false, untagged: true });
    }
    let mut found = host.port_vlans(port_index)?;
    for list in [&mut expected, &mut found] {
        list.sort_by_key(|vlan| vlan.range.first);
    }
    Ok(expect(&format!("VLANs of {}", port.host_name), vlans(&found), vlans(&expected))?)
}

/// The address that ADD reported for the container's interface.
fn mac_in_result(port: &Port, sandbox: &str, previous: Option<&Success>) -> Result<Mac, BridgeError> {
    let interfaces = previous.map(|result| &result.interfaces[..]).unwrap_or_default();
    let own = interfaces.iter().find(|one| one.name == port.if_name.as_str() && one.sandbox == sandbox);
    own.and_then(|one| one.mac.parse().ok()).ok_or_else(|| BridgeError::NoPrevResult(port.if_name.clone()))
}

/// An ADD could work now: the bridge is there and does what the network needs, and so is the packet filter.
pub(super) fn status(config: &Config) -> Result<(), BridgeError> {
    find_bridge(&Netlink::open()?, config)?;
    if config.mac_spoof_check {
        NfTables::open()?;
    }
    Ok(())
}

fn vlans(list: &[PortVlan]) -> String {
    let one = |vlan: &PortVlan| {
        let (first, last) = (vlan.range.first, vlan.range.last);
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let pvid = if vlan.pvid { " PVID" } else { "" };
        let untagged = if vlan.untagged { " untagged" } else { "" };
        format!("{range}{pvid}{untagged}")
    };
    if list.is_empty() { "none".to_owned() } else { list.iter().map(one).collect::<Vec<_>>().join(", ") }
}
