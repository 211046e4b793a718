//! ADD.
//!
//! What is there already and was made for the same attachment is kept, so an ADD may be repeated under a running
//! guest; the rules are replaced in one transaction in any case. The bridge goes up last: until then the guest is
//! alone. What a failed ADD made or changed itself is undone in reverse.

use std::net::Ipv6Addr;

use cni::{Interface, Success};
use ipnetwork::{IpNetwork, Ipv6Network};
use net_types::{IfName, Mac};
use netlink::{Link, NewBridge};
use tap::NewTap;

use crate::config::Config;
use crate::error::MasqueradeError;
use crate::pod::{Ownership, Pod, Target};
use crate::ruleset::{self, Ruleset};
use crate::settings::{self, Changed, Setting};

/// The bridge's address, the same for all guests, as KubeVirt has it: to a guest that moves, its gateway stays the same.
pub(crate) const BRIDGE_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0]);
/// The bridge's link-local address, which [`BRIDGE_MAC`] gives it anyway once there is a carrier (RFC 4291, appendix A):
/// routers announce themselves from it.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0);
/// The kinds of our links, as the kernel calls them.
pub(crate) const BRIDGE: &str = "bridge";
pub(crate) const TAP: &str = "tun";

/// One thing that was made or changed.
enum Step {
    Link(IfName),
    Table(IfName),
    Setting(Changed),
}

/// Connects the guest and adds its links to what the chain has so far.
pub(crate) fn add(config: &Config, pod: &Pod, mut result: Success) -> Result<Success, MasqueradeError> {
    let target = pod.target(config)?;
    let mut steps = Vec::new();
    if let Err(error) = build(config, pod, &target, &mut steps) {
        tracing::debug!("undoing ADD after: {error}");
        undo(pod, steps);
        return Err(error);
    }
    for name in [&target.names.bridge, &target.names.tap] {
        let link = pod.link(name)?;
        result.interfaces.push(Interface {
            name: link.name,
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(link.mtu),
            sandbox: pod.sandbox.clone(),
            ..Interface::default()
        });
    }
    Ok(result)
}

fn build(config: &Config, pod: &Pod, target: &Target, steps: &mut Vec<Step>) -> Result<(), MasqueradeError> {
    let tap = tap(config, pod, target, steps)?;
    let bridge = bridge(pod, target, steps)?;
    let (has_v4, has_v6) = (target.has(false), target.has(true));
    // These go with the links.
    let of_links = settings::of_links(&target.names.bridge, &target.names.tap, has_v4, has_v6);
    set(pod, &of_links, &mut Vec::new())?;
    address(pod, target, &bridge)?;
    if tap.master != Some(bridge.index) {
        pod.netlink.set_master(tap.index, Some(bridge.index))?;
        cni::mutated("bridge port");
    }
    rules(config, pod, target, steps)?;
    let name = target.names.pod.clone();
    let of_pod = pod.namespace.run(|| settings::of_pod(&name, has_v4, has_v6));
    set(pod, &of_pod.map_err(MasqueradeError::Netns)??, steps)?;
    for index in [tap.index, bridge.index] {
        pod.netlink.set_up(index)?;
        cni::mutated("link up");
    }
    accept_loopback(pod, target, &bridge)
}

/// The tap, made unless it is there just as asked for.
fn tap(config: &Config, pod: &Pod, target: &Target, steps: &mut Vec<Step>) -> Result<Link, MasqueradeError> {
    let name = &target.names.tap;
    let link = match keep(pod, target, name, TAP, &target.tap_alias)? {
        Some(link) => link,
        None => {
            let multi_queue = config.tap.queues > 1;
            let (owner, group) = (config.tap.owner, config.tap.group);
            let tap = NewTap { name: name.clone(), owner, group, multi_queue };
            let made = pod.namespace.run(|| tap::create(&tap)).map_err(MasqueradeError::Netns)?;
            made.map_err(|source| MasqueradeError::Tap { name: name.clone(), source })?;
            steps.push(Step::Link(name.clone()));
            cni::mutated("tap");
            let link = pod.link(name)?;
            pod.netlink.set_alias(link.index, &target.tap_alias)?;
            cni::mutated("alias of the tap");
            link
        }
    };
    set_mtu(pod, &link, target.mtu)?;
    Ok(link)
}

/// The bridge, made unless it is there.
fn bridge(pod: &Pod, target: &Target, steps: &mut Vec<Step>) -> Result<Link, MasqueradeError> {
    let name = &target.names.bridge;
    if let Some(link) = keep(pod, target, name, BRIDGE, &target.bridge_alias)? {
        set_mtu(pod, &link, target.mtu)?;
        return Ok(link);
    }
    let bridge = NewBridge {
        name,
        mac: Some(BRIDGE_MAC),
        // Only one that is set later does not follow the ports.
        mtu: None,
        vlan_filtering: false,
        // One guest: there is nobody to spare its multicast.
        multicast_snooping: false,
    };
    pod.netlink.create_bridge(&bridge)?;
    steps.push(Step::Link(name.clone()));
    cni::mutated("bridge");
    let link = pod.link(name)?;
    pod.netlink.set_alias(link.index, &target.bridge_alias)?;
    cni::mutated("alias of the bridge");
    set_mtu(pod, &link, target.mtu)?;
    Ok(link)
}

/// The link of that name if it is as this ADD would make it; one of ours that is not is cleared away.
fn keep(
    pod: &Pod,
    target: &Target,
    name: &IfName,
    kind: &str,
    alias: &str,
) -> Result<Option<Link>, MasqueradeError> {
    let Some(link) = pod.netlink.link_by_name(name.as_str())? else { return Ok(None) };
    if pod.ownership(&link, kind, &target.names.pod) == Ownership::Foreign {
        return Err(MasqueradeError::NameTaken(name.clone()));
    }
    if link.alias == alias {
        return Ok(Some(link));
    }
    tracing::warn!("{name} is left over from another attachment or another configuration: making it anew");
    pod.netlink.delete_link(link.index)?;
    cni::mutated("old link removed");
    Ok(None)
}

fn set_mtu(pod: &Pod, link: &Link, mtu: u32) -> Result<(), MasqueradeError> {
    if link.mtu != mtu {
        pod.netlink.set_mtu(link.index, mtu)?;
        cni::mutated("MTU");
    }
    Ok(())
}

/// The bridge has the gateways' addresses and no others, the kernel's own aside.
fn address(pod: &Pod, target: &Target, bridge: &Link) -> Result<(), MasqueradeError> {
    let mut wanted: Vec<IpNetwork> = target.subnets.iter().map(|subnet| subnet.gateway).collect();
    if target.has(true) {
        wanted.extend(Ipv6Network::new(ROUTER, 64).map(IpNetwork::V6));
    }
    let is_kernel_made =
        |address: &IpNetwork| matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local());
    let found = pod.netlink.addresses(bridge.index)?;
    for old in found.iter().filter(|old| !wanted.contains(old) && !is_kernel_made(old)) {
        pod.netlink.delete_address(bridge.index, *old)?;
        cni::mutated("old address removed");
    }
    for new in wanted.into_iter().filter(|new| !found.contains(new)) {
        pod.netlink.add_sole_address(bridge.index, new)?;
        cni::mutated("address");
    }
    Ok(())
}

fn rules(config: &Config, pod: &Pod, target: &Target, steps: &mut Vec<Step>) -> Result<(), MasqueradeError> {
    let name = &target.names.pod;
    Ruleset::new(&target.plan(config)).install(&pod.nf_tables()?)?;
    steps.push(Step::Table(name.clone()));
    cni::mutated("rules");
    Ok(())
}

/// Answers to what the pod sent from ::1 come in by the bridge, where the kernel would not know that address.
fn accept_loopback(pod: &Pod, target: &Target, bridge: &Link) -> Result<(), MasqueradeError> {
    if !target.has(true) || !target.takes_loopback() {
        return Ok(());
    }
    match pod.netlink.add_local_route(bridge.index, Ipv6Addr::LOCALHOST) {
        Err(error) if error.already_exists() => Ok(()),
        other => {
            other?;
            cni::mutated("::1 taken from the bridge");
            Ok(())
        }
    }
}

fn set(pod: &Pod, settings: &[Setting], steps: &mut Vec<Step>) -> Result<(), MasqueradeError> {
    for setting in settings {
        let changed = pod.namespace.run(|| setting.apply()).map_err(MasqueradeError::Netns)??;
        if let Some(changed) = changed {
            steps.push(Step::Setting(changed));
            cni::mutated("setting");
        }
    }
    Ok(())
}

/// Goes on past failures: what cannot be undone is said.
fn undo(pod: &Pod, steps: Vec<Step>) {
    for step in steps.into_iter().rev() {
        let undone = match &step {
            Step::Link(name) => remove_link(pod, name),
            Step::Table(name) => remove_table(pod, name),
            Step::Setting(changed) => restore(pod, changed),
        };
        if let Err(error) = undone {
            tracing::error!("after a failed ADD, something is left behind: {}", telemetry::chain(&error));
        }
    }
}

fn remove_link(pod: &Pod, name: &IfName) -> Result<(), MasqueradeError> {
    match pod.netlink.link_by_name(name.as_str())? {
        Some(link) => Ok(pod.netlink.delete_link(link.index)?),
        None => Ok(()),
    }
}

/// Removes the rules of a pod interface; absent is fine.
pub(crate) fn remove_table(pod: &Pod, name: &IfName) -> Result<(), MasqueradeError> {
    Ok(ruleset::remove(&pod.nf_tables()?, name)?)
}

fn restore(pod: &Pod, changed: &Changed) -> Result<(), MasqueradeError> {
    Ok(pod.namespace.run(|| changed.undo()).map_err(MasqueradeError::Netns)??)
}
