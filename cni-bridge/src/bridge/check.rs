//! CHECK and STATUS.

use std::net::IpAddr;

use cni::{Interface, Ipam, Route, Success};
use ipnetwork::IpNetwork;
use net_types::{IfName, Mac};
use netlink::{ALL_GROUPS, Link, Netlink};
use netns::NetNs;

use super::config::{Config, Gateway};
use super::device;
use super::error::BridgeError;
use super::gateway;
use super::layer3;
use super::masquerade;
use super::port::Port;
use super::uplink;
use super::vlans::Vlans;
use crate::compare::{difference, expect, index, state};
use crate::spoof::{self, State};
use nf_tables::NfTables;

/// `RT_TABLE_MAIN`: the table of routes that name none.
const MAIN_TABLE: u32 = 254;

/// Compares the port with what ADD made of it; fails with the first difference.
pub(super) fn check(config: &Config, port: &Port, previous: Option<&Success>) -> Result<(), BridgeError> {
    let path = port.netns.clone().ok_or(BridgeError::NoNetns)?;
    let sandbox = path.display().to_string();
    let (guest_mac, mtu) = in_result(port, &sandbox, previous)?;
    let namespace = NetNs::open(path).map_err(BridgeError::Netns)?;
    let host = Netlink::open()?;
    let bridge = device::find(&host, config)?;
    let host_name = &port.host_name;
    let host_end = host.link_by_name(host_name.as_str())?;
    let host_end = host_end.ok_or_else(|| difference(host_name, "absent", "present"))?;
    expect(&format!("alias of {host_name}"), &host_end.alias, &port.alias)?;
    expect(&format!("state of {host_name}"), state(host_end.up), state(true))?;
    expect(&format!("master of {host_name}"), index(host_end.master), index(Some(bridge.index)))?;
    // Later plugins of the chain have no business at this end.
    if let Some(mtu) = config.mtu.or_else(|| host_mtu(port, previous)) {
        expect(&format!("MTU of {host_name}"), host_end.mtu, mtu)?;
    }
    check_flags(config, &host_end)?;
    check_bridge(config, &host, &bridge, previous)?;
    let pod = Netlink::open_in(&namespace)?;
    check_pod_end(config, port, &host_end, &pod, guest_mac, mtu)?;
    check_addresses(port, &pod, previous)?;
    if config.masquerade {
        masquerade::check(&NfTables::open()?, port, &assigned(port, previous))?;
    }
    check_vlans(config, port, host_end.index, &bridge)?;
    uplink::check(&host, config, &bridge)?;
    if config.has_spoof_check() {
        let assigned: Vec<_> = assigned(port, previous).iter().map(IpNetwork::ip).collect();
        let wanted = State::Allows(config.guard(guest_mac, &assigned));
        let found = spoof::state(&NfTables::open()?, host_name)?;
        expect(&format!("spoof check of {host_name}"), found, wanted)?;
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
    mtu: Option<u32>,
) -> Result<(), BridgeError> {
    let named = &port.if_name;
    let other_end = || format!("other end of {}", port.host_name);
    let peer = host_end.peer.map(|peer| pod.link_by_index(peer)).transpose()?.flatten();
    let peer = peer.filter(|peer| peer.kind == "veth" && peer.peer == Some(host_end.index));
    let peer = peer.ok_or_else(|| difference(other_end(), "not in the container", "in the container"))?;
    // One that ADD left down is for somebody else to set up.
    if !config.keep_pod_end_down {
        expect(&format!("state of {}", peer.name), state(peer.up), state(true))?;
    }
    if let Some(mtu) = mtu {
        expect(&format!("MTU of {}", peer.name), peer.mtu, mtu)?;
    }
    let visible = pod.link_by_name(named.as_str())?.ok_or_else(|| difference(named, "absent", "present"))?;
    Ok(expect(&format!("address of {named}"), visible.mac.unwrap_or(Mac::ZERO), mac)?)
}

fn check_vlans(config: &Config, port: &Port, port_index: u32, bridge: &Link) -> Result<(), BridgeError> {
    let default = bridge.bridge.and_then(|bridge| bridge.default_pvid);
    let Some(wanted) = Vlans::wanted(config, default) else { return Ok(()) };
    let found = Vlans::from_list(netlink::port_vlans(port_index)?);
    Ok(expect(&format!("VLANs of {}", port.host_name), found.to_string(), wanted.to_string())?)
}

/// Hairpin, isolation, and where frames to reserved addresses go.
fn check_flags(config: &Config, host_end: &Link) -> Result<(), BridgeError> {
    let flags = host_end.port.unwrap_or_default();
    if config.mac_spoof_check {
        let mask = |mask| format!("{mask:#06x}");
        let what = format!("mask of forwarded groups of {}", host_end.name);
        expect(&what, mask(flags.forwarded_groups), mask(ALL_GROUPS))?;
    }
    expect(&format!("hairpin mode of {}", host_end.name), flags.hairpin, config.hairpin)?;
    Ok(expect(&format!("isolation of {}", host_end.name), flags.isolated, config.isolated)?)
}

/// Addresses and routes, as far as the interface still has ADD's name and kind: another plugin answers for its own.
fn check_addresses(port: &Port, pod: &Netlink, previous: Option<&Success>) -> Result<(), BridgeError> {
    let named = &port.if_name;
    let Some(result) = previous.filter(|result| !result.ips.is_empty()) else { return Ok(()) };
    let Some(link) = pod.link_by_name(named.as_str())?.filter(|link| link.kind == "veth") else {
        return Ok(());
    };
    let addresses = pod.addresses(link.index)?;
    for address in assigned(port, previous) {
        if !addresses.contains(&address) {
            return Err(difference(format!("address {address} of {named}"), "absent", "present").into());
        }
    }
    let routes = pod.routes(link.index)?;
    result.routes.iter().try_for_each(|route| check_route(&routes, route, result.next_hop(route), named))
}

/// A route of the result is there, and goes by way of `next_hop`.
fn check_route(
    found: &[netlink::Route],
    wanted: &Route,
    next_hop: Option<IpAddr>,
    named: &IfName,
) -> Result<(), BridgeError> {
    let what = format!("route to {} by {named}", wanted.dst);
    let is_it = |route: &&netlink::Route| {
        let netlink::RouteOptions { table, priority, .. } = route.options;
        route.destination == wanted.dst
            && table == wanted.table.filter(|table| *table != MAIN_TABLE)
            && (wanted.priority.is_none() || priority == wanted.priority)
    };
    let mut candidates = found.iter().filter(is_it).peekable();
    let Some(first) = candidates.peek().copied() else {
        return Err(difference(what, "absent", "present").into());
    };
    let via =
        |gateway: Option<IpAddr>| gateway.map_or_else(|| "on the link".to_owned(), |ip| format!("via {ip}"));
    if candidates.any(|route| route.gateway == next_hop) {
        return Ok(());
    }
    Err(difference(what, via(first.gateway), via(next_hop)).into())
}

/// The bridge is what the network wants it to be to the pod: promiscuous, and its gateway.
fn check_bridge(
    config: &Config,
    host: &Netlink,
    bridge: &Link,
    previous: Option<&Success>,
) -> Result<(), BridgeError> {
    let name = &bridge.name;
    expect(&format!("state of {name}"), state(bridge.up), state(true))?;
    if config.promiscuous {
        expect(&format!("promiscuous mode of {name}"), bridge.promiscuous, true)?;
    }
    if config.gateway == Gateway::No {
        return Ok(());
    }
    let link = gateway::check(host, config, bridge)?;
    let (name, addresses) = (&link.name, host.addresses(link.index)?);
    for ip in previous.iter().flat_map(|result| &result.ips) {
        if let Some(gateway) = layer3::address(ip).filter(|gateway| !addresses.contains(gateway)) {
            return Err(
                difference(format!("gateway's address {gateway} on {name}"), "absent", "present").into()
            );
        }
    }
    Ok(())
}

/// The addresses that ADD had assigned to the container's interface.
fn assigned(port: &Port, previous: Option<&Success>) -> Vec<IpNetwork> {
    let Some(result) = previous else { return Vec::new() };
    let is_own = |one: &Interface| one.name == port.if_name.as_str() && !one.sandbox.is_empty();
    let own = result.interfaces.iter().position(is_own);
    let of_own = result.ips.iter().filter(|ip| ip.interface.is_none() || ip.interface == own);
    of_own.map(|ip| ip.address).collect()
}

/// The MTU that ADD reported for the host end, which a network that sets none has from its bridge.
fn host_mtu(port: &Port, previous: Option<&Success>) -> Option<u32> {
    let interfaces = previous.map(|result| &result.interfaces[..]).unwrap_or_default();
    let is_host_end = |one: &&Interface| one.name == port.host_name.as_str() && one.sandbox.is_empty();
    interfaces.iter().find(is_host_end).and_then(|one| one.mtu)
}

/// Address and MTU that the chain reported for the container's interface. Versions before 1.1.0 do not tell the MTU, and a
/// later plugin may have set another than the configuration's: nobody knows then what it should be.
fn in_result(
    port: &Port,
    sandbox: &str,
    previous: Option<&Success>,
) -> Result<(Mac, Option<u32>), BridgeError> {
    let interfaces = previous.map(|result| &result.interfaces[..]).unwrap_or_default();
    let own = interfaces.iter().find(|one| one.name == port.if_name.as_str() && one.sandbox == sandbox);
    let told = own.and_then(|one| Some((one.mac.parse().ok()?, one.mtu)));
    told.ok_or_else(|| BridgeError::NoPrevResult(port.if_name.clone()))
}

/// An ADD could work now: the bridge is there and does what the network needs, and the kernel would take the rules.
pub(super) fn status(config: &Config, ipam: Option<&Ipam<'_>>) -> Result<(), BridgeError> {
    device::survey(&Netlink::open()?, config)?;
    ipam.map_or(Ok(()), Ipam::status)?;
    if config.has_spoof_check() {
        spoof::try_out(&NfTables::open()?, &config.bridge)?;
    }
    if config.masquerade {
        masquerade::try_out(&NfTables::open()?)?;
    }
    Ok(())
}
