//! ADD.
//!
//! Order matters for a crash: the file that tells DEL what to put back is written first, then the alias that tells it
//! where; and the dummy that shows the addresses is complete before the pod interface loses them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Interface, Ip, Request, Success, Version};
use ipnetwork::IpNetwork;
use net_types::{IfName, Mac};
use netlink::{Link, NewBridge, PortFlag};
use tap::NewTap;

use super::before::{Before, Record, Settings};
use super::config::Config;
use super::detach;
use super::error::VmTapError;
use super::names::Names;
use super::pod::{self, Mode, Pod};
use super::tc;

/// `RT_TABLE_MAIN` and `RT_SCOPE_LINK` (`linux/rtnetlink.h`).
const MAIN_TABLE: u32 = 254;
const SCOPE_LINK: u8 = 253;

/// Makes the tap and adds it to what the chain has so far.
pub(super) fn add(
    config: &Config,
    pod: &Pod,
    record: Record<'_>,
    request: &Request,
) -> Result<Success, VmTapError> {
    let (names, nic) = pod.interface()?;
    let new = match config.mode {
        Mode::Bridge => vec![&names.bridge, &names.tap],
        Mode::Tc => vec![&names.tap],
    };
    for name in new.iter().copied().chain([&names.nic, &names.dummy]) {
        if pod.netlink.link_by_name(name.as_str())?.is_some() {
            return Err(VmTapError::NameTaken(name.clone()));
        }
    }
    let mac = nic.mac.ok_or_else(|| VmTapError::Vanished(names.pod.clone()))?;
    if config.mode == Mode::Tc {
        tc::refuse_ingress(pod, &names, &nic)?;
    }
    let before = Before::look(pod, &names.pod, &nic)?;
    record.keep(&before)?;
    cni::mutated("what it was");
    let built = match config.mode {
        Mode::Bridge => {
            keep_identity(pod, &names, &nic, mac, &before).and_then(|()| wire(config, pod, &names, &nic))
        }
        Mode::Tc => tc::add(config, pod, &names, &nic, mac, &before),
    };
    if let Err(error) = built {
        if let Err(undo) = detach::del(pod, record) {
            tracing::error!(
                "after a failed ADD, {} is not as it was: {}",
                names.pod,
                telemetry::chain(&undo)
            );
        }
        return Err(error);
    }
    let mut result = request.prev_result.clone().unwrap_or_default();
    for name in new {
        let link = pod.link(name)?;
        result.interfaces.push(interface(pod, link.name, link.mac, link.mtu));
    }
    tell(&mut result, pod, &nic, &before, request.version);
    Ok(result)
}

fn interface(pod: &Pod, name: String, mac: Option<Mac>, mtu: u32) -> Interface {
    let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
    Interface { name, mac, mtu: Some(mtu), sandbox: pod.sandbox.clone(), ..Interface::default() }
}

/// Adds the addresses and routes of the pod interface that the result does not tell of yet: they are the guest's now.
/// Versions before 0.3.0 have room for one address of each family, those before 1.1.0 for a route's destination and next
/// hop alone.
fn tell(result: &mut Success, pod: &Pod, nic: &Link, before: &Before, version: Version) {
    for address in before.networks() {
        let is_it = |ip: &Ip| {
            let takes_its_place = version < Version::V0_3_0 && ip.address.is_ipv6() == address.is_ipv6();
            ip.address == address || takes_its_place
        };
        if result.ips.iter().any(is_it) {
            continue;
        }
        let own = |one: &Interface| one.name == nic.name && one.sandbox == pod.sandbox;
        let index = result.interfaces.iter().position(own).unwrap_or_else(|| {
            result.interfaces.push(interface(pod, nic.name.clone(), nic.mac, nic.mtu));
            result.interfaces.len() - 1
        });
        result.ips.push(Ip { interface: Some(index), address, gateway: None });
    }
    for route in before.routes.iter().flat_map(|route| route.through(nic.index)) {
        let netlink::RouteOptions { table, priority, mtu, advmss, scope } = route.options;
        if table.is_some() && version < Version::V1_1_0 {
            // It would be taken for one of the main table.
            continue;
        }
        let is_told = |one: &cni::Route| {
            one.dst == route.destination
                && one.table.filter(|table| *table != MAIN_TABLE) == table
                && result.next_hop(one) == route.gateway
        };
        if result.routes.iter().any(is_told) {
            continue;
        }
        // Where neither gateway nor scope is given, the gateway of an address is meant.
        let scope = if route.gateway.is_none() { Some(SCOPE_LINK) } else { scope };
        let on_link = || on_link(result, route.destination, version);
        let gw = route.gateway.or_else(on_link);
        result.routes.push(cni::Route { dst: route.destination, gw, mtu, advmss, priority, table, scope });
    }
}

/// The next hop that says of a destination that it is on the link, where a version has no scope to say it and none would
/// mean the gateway of an address.
fn on_link(result: &Success, destination: IpNetwork, version: Version) -> Option<IpAddr> {
    let is_ipv6 = destination.is_ipv6();
    let is_mistakable = version < Version::V1_1_0 && result.gateway_of_family(is_ipv6).is_some();
    is_mistakable.then_some(if is_ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() })
}

/// The dummy takes name, address, MTU and IP addresses of the pod interface.
fn keep_identity(pod: &Pod, names: &Names, nic: &Link, mac: Mac, before: &Before) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    netlink.set_alias(nic.index, &pod::alias(&names.pod, mac, Mode::Bridge))?;
    cni::mutated("alias");
    netlink.create_dummy(&names.dummy, mac, nic.mtu)?;
    cni::mutated("dummy");
    let dummy = pod.link(&names.dummy)?;
    for address in before.networks() {
        netlink.add_sole_address(dummy.index, address)?;
        cni::mutated("address kept");
    }
    netlink.set_down(nic.index)?;
    cni::mutated("pod interface down");
    for address in own_addresses(pod, nic.index)? {
        match netlink.delete_address(nic.index, address) {
            // Going down took the IPv6 ones.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
        cni::mutated("address taken");
    }
    netlink.set_name(nic.index, &names.nic)?;
    cni::mutated("pod interface renamed");
    netlink.set_name(dummy.index, &names.pod)?;
    cni::mutated("dummy renamed");
    Ok(())
}

/// Addresses somebody gave the interface, not those the kernel makes by itself.
pub(super) fn own_addresses(pod: &Pod, index: u32) -> Result<Vec<IpNetwork>, VmTapError> {
    let mut addresses = pod.netlink.addresses(index)?;
    addresses.retain(|address| !matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local()));
    Ok(addresses)
}

/// Node ── NIC ── bridge ── tap.
fn wire(config: &Config, pod: &Pod, names: &Names, nic: &Link) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    let bridge = NewBridge {
        name: &names.bridge,
        mac: Some(random_mac()?),
        mtu: Some(nic.mtu),
        vlan_filtering: false,
        // There is one guest, and the bridge must not speak on its wire.
        multicast_snooping: false,
    };
    netlink.create_bridge(&bridge)?;
    cni::mutated("bridge");
    let bridge = pod.link(&names.bridge)?;
    // The guest has the address that was the NIC's, so the NIC must not answer to it.
    if let Some(mac) = bridge.mac {
        netlink.set_mac(nic.index, mac)?;
        cni::mutated("address of the NIC");
    }
    make_tap(config, pod, &names.tap)?;
    cni::mutated("tap");
    let tap = pod.link(&names.tap)?;
    netlink.set_mtu(tap.index, nic.mtu)?;
    cni::mutated("MTU of the tap");
    for name in [&names.nic, &names.bridge, &names.tap] {
        Settings::silent().write(pod, name)?;
    }
    for port in [nic.index, tap.index] {
        netlink.set_master(port, Some(bridge.index))?;
        cni::mutated("bridge port");
    }
    // Only the guest is behind the tap: what comes from the node goes there without being learned.
    netlink.set_port_flag(nic.index, PortFlag::Learning, false)?;
    cni::mutated("learning off");
    for index in [bridge.index, tap.index, nic.index] {
        netlink.set_up(index)?;
        cni::mutated("link up");
    }
    Ok(())
}

pub(super) fn make_tap(config: &Config, pod: &Pod, name: &IfName) -> Result<(), VmTapError> {
    let Config { mode: _, owner, group, queues } = *config;
    let tap = NewTap { name: name.clone(), owner, group, multi_queue: queues > 1 };
    pod.namespace
        .run(|| tap::create(&tap))
        .map_err(VmTapError::Netns)?
        .map_err(|source| VmTapError::Tap { name: name.clone(), source })
}

/// A locally administered unicast address.
fn random_mac() -> Result<Mac, VmTapError> {
    use std::io::Read as _;

    let mut octets = [0; 6];
    let path = "/dev/urandom";
    fs::File::open(path)
        .and_then(|mut source| source.read_exact(&mut octets))
        .map_err(|source| VmTapError::Setting { path: path.to_owned(), source })?;
    octets[0] = octets[0] & 0xfc | 0x02;
    Ok(Mac(octets))
}
