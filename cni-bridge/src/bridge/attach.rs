//! ADD.
//!
//! Everything is checked before anything is made. The port is closed (down, spoof check in place, VLAN set) until
//! the last two steps set both ends up, so nothing leaks into the wrong VLAN meanwhile.

use std::net::IpAddr;

use cni::{Interface, Ipam, Success};
use ipnetwork::IpNetwork;
use netlink::{ALL_GROUPS, Link, Netlink, NewVeth, Peer, PortFlag};
use netns::NetNs;

use super::config::{Config, Gateway, SourceCheck};
use super::detach;
use super::device::{self, BridgeLock};
use super::error::BridgeError;
use super::gateway;
use super::layer3::{self, PodEnd};
use super::masquerade;
use super::port::Port;
use super::uplink;
use super::vlans::Vlans;
use crate::spoof;
use nf_tables::NfTables;

/// What is there before a port is made.
struct Ground {
    host: Netlink,
    pod: Netlink,
    namespace: NetNs,
}

/// Makes the port and describes it.
pub(super) fn add(config: &Config, port: &Port, ipam: Option<&Ipam<'_>>) -> Result<Success, BridgeError> {
    let ground = survey(config, port)?;
    build(config, port, ipam, &ground).inspect_err(|error| {
        tracing::debug!("undoing ADD after: {error}");
        if let Err(undo) = detach::del(config, port, ipam) {
            tracing::error!("not all of the failed ADD could be taken back: {}", telemetry::chain(&undo));
        }
    })
}

/// Looks at everything the port needs, and clears away what a missed DEL of the same port left.
fn survey(config: &Config, port: &Port) -> Result<Ground, BridgeError> {
    let path = port.netns.clone().ok_or(BridgeError::NoNetns)?;
    let namespace = NetNs::open(path.clone()).map_err(BridgeError::Netns)?;
    let host = Netlink::open()?;
    device::survey(&host, config)?;
    let pod = Netlink::open_in(&namespace)?;
    if pod.link_by_name(port.if_name.as_str())?.is_some() {
        return Err(BridgeError::InterfaceExists { if_name: port.if_name.clone(), netns: path });
    }
    if let Some(link) = detach::find(port, &host)? {
        tracing::warn!("{} is left over from an attachment that was never deleted: removing it", link.name);
        detach::remove_port(Some(config), port, &host)?;
    }
    Ok(Ground { host, pod, namespace })
}

fn build(
    config: &Config,
    port: &Port,
    ipam: Option<&Ipam<'_>>,
    ground: &Ground,
) -> Result<Success, BridgeError> {
    let Ground { host, pod, namespace } = ground;
    let (bridge, host_end, pod_end) = {
        // Until the port is on the bridge, another's DEL or a policy would find the bridge unused.
        let _lock = if config.makes_bridge() { BridgeLock::take() } else { BridgeLock::share() }?;
        let bridge = device::ensure(host, config)?;
        let (host_end, pod_end) = make_veth(config, port, ground, bridge.mtu)?;
        host.set_master(host_end.index, Some(bridge.index))?;
        cni::mutated("bridge port");
        // Its address may have followed the new port's.
        let bridge = host.link_by_index(bridge.index)?.unwrap_or(bridge);
        if config.gateway > Gateway::No {
            gateway::keep_address(host, &bridge)?;
        }
        (bridge, host_end, pod_end)
    };
    {
        let _lock = if config.uplink.is_some() { Some(BridgeLock::take()?) } else { None };
        set_port(config, host, host_end.index, &bridge)?;
        uplink::join(host, config, &bridge)?;
    }
    if ipam.is_none_or(Ipam::needs_port) && !config.keep_pod_end_down {
        // First, so that the port's carrier comes once and nothing here waits for what the bridge makes of it. `dhcp` would set
        // it up itself, find it not to be up yet, and try again seconds later.
        pod.set_up(pod_end.index)?;
        cni::mutated("pod end up");
    }
    host.set_up(host_end.index)?;
    cni::mutated("host end up");
    let mut success = describe(config, port, &bridge, &host_end, &pod_end);
    if let Some(ipam) = ipam {
        let position = success.interfaces.len() - 1;
        let pod_end = PodEnd { namespace, netlink: pod, link: &pod_end, position };
        let (assigned, gateway) = address(config, port, ipam, host, &bridge, &pod_end)?;
        success = Success { interfaces: success.interfaces, ..assigned };
        success.interfaces.extend(gateway.and_then(|link| gateway::describe(&link, &bridge)));
    }
    if !config.dns.is_empty() {
        success.dns = config.dns.clone();
    }
    Ok(success)
}

/// Has addresses assigned, and sets up all that depends on them. Also tells the link that is the gateway.
fn address(
    config: &Config,
    port: &Port,
    ipam: &Ipam<'_>,
    host: &Netlink,
    bridge: &Link,
    pod_end: &PodEnd<'_>,
) -> Result<(Success, Option<Link>), BridgeError> {
    let assigned = layer3::assign(config, ipam, pod_end.position)?;
    let addresses: Vec<_> = assigned.ips.iter().map(|ip| ip.address).collect();
    if config.source_check == SourceCheck::Assigned {
        // Until now, for an IPAM plugin that speaks DHCP, there was a guard that allows none.
        guard(config, port, pod_end.link, &addresses.iter().map(IpNetwork::ip).collect::<Vec<_>>())?;
    }
    let gateway = layer3::configure(config, &assigned, host, bridge, pod_end)?;
    if config.masquerade {
        masquerade::install(&NfTables::open()?, port, &addresses)?;
        cni::mutated("masquerading");
    }
    Ok((assigned, gateway))
}

/// Lets the port send only what it may claim to be.
fn guard(config: &Config, port: &Port, pod_end: &Link, assigned: &[IpAddr]) -> Result<(), BridgeError> {
    let mac = pod_end.mac.ok_or_else(|| BridgeError::Vanished(port.if_name.clone()))?;
    spoof::install(&NfTables::open()?, &port.host_name, &config.guard(mac, assigned), &port.alias)?;
    cni::mutated("spoof check");
    Ok(())
}

/// Both ends, down, the host's guarded and with its owner written on it.
fn make_veth(
    config: &Config,
    port: &Port,
    ground: &Ground,
    bridge_mtu: u32,
) -> Result<(Link, Link), BridgeError> {
    let Ground { host, pod, namespace } = ground;
    host.create_veth(&NewVeth {
        name: &port.host_name,
        peer: Peer { name: &port.if_name, mac: config.mac, namespace },
        // A port with a smaller MTU than its bridge would shrink a bridge whose MTU follows its ports.
        mtu: Some(config.mtu.unwrap_or(bridge_mtu)),
    })?;
    cni::mutated("veth pair");
    let vanished = || BridgeError::Vanished(port.host_name.clone());
    let host_end = host.link_by_name(port.host_name.as_str())?.ok_or_else(vanished)?;
    host.set_alias(host_end.index, &port.alias)?;
    cni::mutated("alias");
    host.add_alt_name(host_end.index, port.alt_name.as_str())?;
    cni::mutated("alternative name");
    silence(port);
    let pod_end = pod.link_by_name(port.if_name.as_str())?.ok_or_else(vanished)?;
    if config.has_spoof_check() {
        guard(config, port, &pod_end, &[])?;
    }
    Ok((host_end, pod_end))
}

/// Keeps the kernel from giving the host end an IPv6 address. The bridge takes all its frames, so nobody could reach
/// one there; yet it would be announced to the pod, and add routes that every change of a link walks through.
fn silence(port: &Port) {
    let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", port.host_name);
    match device::write_setting(&path, "1") {
        Ok(()) => cni::mutated("host end's IPv6"),
        // As where /proc/sys may not be written to.
        Err(error) => tracing::warn!("the host end keeps an IPv6 address that is of no use: {error}"),
    }
}

/// What the port does on its bridge: flags and VLANs.
fn set_port(config: &Config, host: &Netlink, index: u32, bridge: &Link) -> Result<(), BridgeError> {
    for (flag, on) in [(PortFlag::Hairpin, config.hairpin), (PortFlag::Isolated, config.isolated)] {
        if on {
            host.set_port_flag(index, flag, true)?;
            cni::mutated("port flag");
        }
    }
    if config.mac_spoof_check {
        // Frames to a bridge's own addresses would otherwise be taken in before they are checked, and their source be learned.
        host.set_forwarded_groups(index, ALL_GROUPS)?;
        cni::mutated("forwarded groups");
    }
    let default = bridge.bridge.and_then(|bridge| bridge.default_pvid);
    let Some(wanted) = Vlans::wanted(config, default) else { return Ok(()) };
    if let Some(default) = default
        && !wanted.contains(default)
    {
        host.delete_port_vlans(index, default.into())?;
        cni::mutated("default VLAN left");
    }
    for range in wanted.ranges() {
        host.add_port_vlan(index, range)?;
        cni::mutated("VLAN");
    }
    Ok(())
}

/// The three interfaces in the order of the reference plugin: bridge, host end, pod end.
fn describe(config: &Config, port: &Port, bridge: &Link, host_end: &Link, pod_end: &Link) -> Success {
    let interface = |name: &str, link: &Link, sandbox: String| Interface {
        name: name.to_owned(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        sandbox,
        ..Interface::default()
    };
    let sandbox = port.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let interfaces = vec![
        interface(config.bridge.as_str(), bridge, String::new()),
        interface(port.host_name.as_str(), host_end, String::new()),
        interface(port.if_name.as_str(), pod_end, sandbox),
    ];
    Success { interfaces, ..Success::default() }
}
