//! ADD.
//!
//! Everything is checked before anything is changed ([`super::survey`]), and everything that will be changed is in the
//! journal before the first change. A failure is undone by [`release`], as DEL would.

use std::time::Duration;

use cni::device_info;
use cni::{Interface, Ip, Ipam, Request, Success};
use net_types::Mac;
use netlink::{Events, Link, Netlink, Route, RouteOptions};

use super::config::Config;
use super::error::SriovError;
use super::release::release;
use super::survey::{Ground, survey};
use super::{Node, announce, interface};
use crate::attribute::{Attribute, Port};
use crate::journal::Lock;

/// How long the pod's interface may take to have a carrier before its neighbours are told of its addresses.
const CARRIER: Duration = Duration::from_millis(500);

/// Hands the VF over and describes it.
pub(super) fn add(
    node: &Node,
    config: &Config,
    request: &Request,
    ipam: Option<&Ipam<'_>>,
) -> Result<Success, SriovError> {
    let device = config.device.ok_or(SriovError::NoDevice)?;
    let _lock = node.journal.lock(device)?;
    let (mut ground, pf_lock) = survey(node, config, request, device)?;
    node.journal.write(&ground.entry)?;
    cni::mutated("journal entry");
    let built = build(&ground, config, ipam, pf_lock).and_then(|success| {
        ground.entry.attached = true;
        node.journal.write(&ground.entry)?;
        cni::mutated("journal entry completed");
        Ok(success)
    });
    built.inspect_err(|error| {
        tracing::debug!("undoing ADD after: {error}");
        if let Err(undo) = release(node, &ground.entry, None) {
            tracing::error!("after a failed ADD, {device} is not as it was: {}", telemetry::chain(&undo));
        }
        if let Some(Err(undo)) = ipam.map(Ipam::del) {
            tracing::error!("after a failed ADD, addresses stay assigned: {}", telemetry::chain(&undo));
        }
    })
}

fn build(
    ground: &Ground,
    config: &Config,
    ipam: Option<&Ipam<'_>>,
    pf_lock: Lock,
) -> Result<Success, SriovError> {
    let Ground { host, pf, link, entry, .. } = ground;
    if let Some(link) = link {
        host.set_down(link.index)?;
        cni::mutated("interface down");
    }
    let port = Port { netlink: host, pf: &pf.name, pf_index: pf.index, vf: entry.index };
    if let Some(mac) = config.mac {
        // Even if it is reported already: some drivers report what the VF chose, and forget it when the VF resets.
        port.set(Attribute::Mac(mac))?;
    }
    port.apply(&entry.wanted)?;
    let assigned = port.read()?.mac.filter(|mac| mac.is_unicast());
    drop(pf_lock);
    if let (Some(link), Some(mac)) = (link, config.mac) {
        interface::take_address(host, link, mac)?;
    }
    let moved = link.as_ref().map(|link| move_to_pod(ground, link)).transpose()?;
    let addresses = match ipam {
        Some(ipam) => ipam.add().map_err(SriovError::Ipam)?,
        None => Success::default(),
    };
    let mut success = describe(ground, addresses, assigned);
    if let Some((pod, index)) = moved {
        let link = set_up(ground, &pod, index, &success, config.mac)?;
        if let Some(interface) = success.interfaces.first_mut() {
            interface.mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            interface.mtu = Some(link.mtu);
        }
    }
    if let Some(path) = &entry.device_info {
        device_info::write(path, &entry.device())?;
        cni::mutated("device-info file");
    }
    Ok(success)
}

/// Moves the interface to the pod, where it has another index.
fn move_to_pod(ground: &Ground, link: &Link) -> Result<(Netlink, u32), SriovError> {
    let Ground { host, namespace, if_name, entry, .. } = ground;
    host.move_link(link.index, namespace, if_name)?;
    cni::mutated("interface moved to the pod");
    let pod = Netlink::open_in(namespace)?;
    let moved = interface::find(&pod, entry.address)?.filter(|link| link.name == if_name.as_str());
    let index = moved.ok_or_else(|| SriovError::Vanished(if_name.clone()))?.index;
    if link.name != if_name.as_str() {
        // Who looks into the pod finds which of the node's interfaces this is.
        pod.add_alt_name(index, &link.name)?;
        cni::mutated("alternative name");
    }
    Ok((pod, index))
}

/// The one interface of the result, and the addresses that belong to it.
fn describe(ground: &Ground, addresses: Success, mac: Option<Mac>) -> Success {
    let interface = Interface {
        name: ground.if_name.to_string(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: ground.namespace.path().display().to_string(),
        pci_id: ground.entry.address.to_string(),
        ..Interface::default()
    };
    let ips = addresses.ips.into_iter().map(|ip| Ip { interface: Some(0), ..ip }).collect();
    Success { interfaces: vec![interface], ips, ..addresses }
}

/// Gives the pod's interface its addresses and routes, sets it up and tells the neighbours.
fn set_up(
    ground: &Ground,
    pod: &Netlink,
    index: u32,
    success: &Success,
    mac: Option<Mac>,
) -> Result<Link, SriovError> {
    for ip in &success.ips {
        pod.add_address(index, ip.address)?;
        cni::mutated("address");
    }
    let events = ground.namespace.run(Events::of_links).map_err(SriovError::Netns)??;
    pod.set_up(index)?;
    cni::mutated("interface up");
    for route in &success.routes {
        pod.add_route(index, &with_gateway(success, route))?;
        cni::mutated("route");
    }
    let vanished = || SriovError::Vanished(ground.if_name.clone());
    let now = || pod.link_by_index(index)?.ok_or_else(vanished);
    if !success.ips.is_empty() {
        let running =
            events.until(CARRIER, || Ok::<_, SriovError>(Some(now()?).filter(|link| link.running)))?;
        match running.as_ref().and_then(|link| link.mac) {
            Some(mac) => announce::announce(&ground.namespace, &ground.if_name, mac, &success.ips),
            None => tracing::warn!("{} has no carrier: its neighbours are not told of it", ground.if_name),
        }
    }
    let link = now()?;
    match (mac, link.mac) {
        (Some(wanted), found) if found != Some(wanted) => {
            let found = found.unwrap_or(Mac::ZERO);
            Err(SriovError::MacNotTaken { link: link.name, wanted, found })
        }
        _ => Ok(link),
    }
}

/// One of the routes of `success`.
fn with_gateway(success: &Success, route: &cni::Route) -> Route {
    let cni::Route { dst, gw: _, mtu, advmss, priority, table, scope } = *route;
    let options = RouteOptions { table, priority, mtu, advmss, scope };
    Route { destination: dst, gateway: success.next_hop(route), options }
}
