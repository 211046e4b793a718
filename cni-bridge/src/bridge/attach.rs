//! ADD.
//!
//! Everything is checked before anything is made. The port is closed (down, spoof check in place, VLAN set) until
//! the last two steps set both ends up, so nothing leaks into the wrong VLAN meanwhile.

use cni::{Interface, Success};
use netlink::{Link, Netlink, NewVeth, Peer, PortVlan};
use netns::NetNs;

use super::config::Config;
use super::detach;
use super::error::BridgeError;
use super::port::Port;
use crate::nf_tables::NfTables;
use crate::spoof;

/// What is there before a port is made.
struct Ground {
    host: Netlink,
    pod: Netlink,
    namespace: NetNs,
    bridge: Link,
}

/// Makes the port and describes it.
pub(super) fn add(config: &Config, port: &Port) -> Result<Success, BridgeError> {
    let ground = survey(config, port)?;
    build(config, port, &ground).inspect_err(|error| {
        tracing::debug!("undoing ADD after: {error}");
        if let Err(undo) = detach::del(config, port) {
            tracing::error!("after a failed ADD, {} is left behind: {undo}", port.host_name);
        }
    })
}

/// Looks at everything the port needs, and clears away what a missed DEL of the same port left.
fn survey(config: &Config, port: &Port) -> Result<Ground, BridgeError> {
    let path = port.netns.clone().ok_or(BridgeError::NoNetns)?;
    let namespace = NetNs::open(path.clone()).map_err(BridgeError::Netns)?;
    let host = Netlink::open()?;
    let bridge = find_bridge(&host, config)?;
    let pod = Netlink::open_in(&namespace)?;
    if pod.link_by_name(port.if_name.as_str())?.is_some() {
        return Err(BridgeError::InterfaceExists { if_name: port.if_name.clone(), netns: path });
    }
    if host.link_by_name(port.host_name.as_str())?.is_some() {
        tracing::warn!(
            "{} is left over from an attachment that was never deleted: removing it",
            port.host_name
        );
        detach::del(config, port)?;
    }
    Ok(Ground { host, pod, namespace, bridge })
}

/// The bridge, if it can do what the network asks.
pub(super) fn find_bridge(host: &Netlink, config: &Config) -> Result<Link, BridgeError> {
    let name = &config.bridge;
    let link = host.link_by_name(name.as_str())?.ok_or_else(|| BridgeError::NoBridge(name.clone()))?;
    let Some(bridge) = link.bridge else {
        return Err(BridgeError::NotABridge { name: name.clone(), kind: link.kind });
    };
    match config.vlan {
        Some(vlan) if !bridge.vlan_filtering => {
            Err(BridgeError::NoVlanFiltering { bridge: name.clone(), vlan })
        }
        _ => Ok(link),
    }
}

fn build(config: &Config, port: &Port, ground: &Ground) -> Result<Success, BridgeError> {
    let Ground { host, pod, namespace, bridge } = ground;
    // A port with a smaller MTU than its bridge would shrink a bridge whose MTU follows its ports.
    let mtu = config.mtu.unwrap_or(bridge.mtu);
    host.create_veth(&NewVeth {
        name: &port.host_name,
        peer: Peer { name: &port.if_name, mac: config.mac, namespace },
        mtu: Some(mtu),
    })?;
    cni::mutated("veth pair");
    let vanished = || BridgeError::Vanished(port.host_name.clone());
    let host_end = host.link_by_name(port.host_name.as_str())?.ok_or_else(vanished)?;
    host.set_alias(host_end.index, &port.alias)?;
    cni::mutated("alias");
    let pod_end = pod.link_by_name(port.if_name.as_str())?.ok_or_else(vanished)?;
    let pod_mac = pod_end.mac.ok_or_else(vanished)?;
    if config.mac_spoof_check {
        spoof::install(&NfTables::open()?, &port.host_name, pod_mac, &port.alias)?;
        cni::mutated("spoof check");
    }
    host.set_master(host_end.index, Some(bridge.index))?;
    cni::mutated("bridge port");
    set_vlans(config, host, host_end.index, bridge)?;
    host.set_up(host_end.index)?;
    cni::mutated("host end up");
    pod.set_up(pod_end.index)?;
    cni::mutated("pod end up");
    Ok(describe(config, port, bridge, &host_end, &pod_end, mtu))
}

fn set_vlans(config: &Config, host: &Netlink, index: u32, bridge: &Link) -> Result<(), BridgeError> {
    let Some(vlan) = config.vlan else { return Ok(()) };
    let default = bridge.bridge.and_then(|bridge| bridge.default_pvid);
    if let Some(default) = default
        && !config.preserve_default_vlan
        && default != vlan
    {
        host.delete_port_vlans(index, default.into())?;
        cni::mutated("default VLAN left");
    }
    host.add_port_vlan(index, PortVlan::access(vlan))?;
    cni::mutated("VLAN");
    Ok(())
}

/// The three interfaces in the order of the reference plugin: bridge, host end, pod end.
fn describe(
    config: &Config,
    port: &Port,
    bridge: &Link,
    host_end: &Link,
    pod_end: &Link,
    mtu: u32,
) -> Success {
    let interface = |name: &str, link: &Link, mtu: u32, sandbox: String| Interface {
        name: name.to_owned(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(mtu),
        sandbox,
        ..Interface::default()
    };
    let sandbox = port.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let interfaces = vec![
        interface(config.bridge.as_str(), bridge, bridge.mtu, String::new()),
        interface(port.host_name.as_str(), host_end, mtu, String::new()),
        interface(port.if_name.as_str(), pod_end, mtu, sandbox),
    ];
    Success { interfaces, ..Success::default() }
}
