//! DEL and GC.

use std::collections::BTreeMap;

use cni::{Attachment, ContainerId, Error, Ipam};
use net_types::IfName;
use netlink::{Link, Netlink};

use super::config::Config;
use super::device::{self, BridgeLock};
use super::error::BridgeError;
use super::gateway;
use super::masquerade;
use super::port::{self, Port};
use super::uplink;
use crate::spoof;
use nf_tables::{Family, NfTables, NfTablesError};

/// Removes the port and releases its addresses; lets the uplink leave its VLANs, and removes the VLAN's gateway and the bridge
/// if they are ours and the port was their last. Every part is tried even if one fails; the first failure is returned. Works
/// without the namespace, and again.
pub(super) fn del(config: &Config, port: &Port, ipam: Option<&Ipam<'_>>) -> Result<(), BridgeError> {
    in_order(ipam, |ipam| ipam.del(), || remove(config, port))
}

/// Removes a port and has its addresses released, each even if the other fails. The addresses come last: once they are
/// released another pod may have them, and this one must not send by them any more.
fn in_order(
    ipam: Option<&Ipam<'_>>,
    release: impl FnOnce(&Ipam<'_>) -> Result<(), Error>,
    remove: impl FnOnce() -> Result<(), BridgeError>,
) -> Result<(), BridgeError> {
    let release = || ipam.map_or(Ok(()), |ipam| release(ipam).map_err(BridgeError::Ipam));
    if ipam.is_some_and(Ipam::needs_port) {
        let released = release();
        return released.and(remove());
    }
    let removed = remove();
    removed.and(release())
}

/// All but the addresses.
fn remove(config: &Config, port: &Port) -> Result<(), BridgeError> {
    let host = Netlink::open()?;
    let removed = remove_port(Some(config), port, &host);
    removed.and(leave(&host, config))
}

/// Does without what only ports need that are gone: the uplink's VLANs, the VLAN's gateway, the bridge if it is ours.
fn leave(host: &Netlink, config: &Config) -> Result<(), BridgeError> {
    if !config.needs_lock() {
        return Ok(());
    }
    // From the look at the ports that are left to what is done without them.
    let _lock = BridgeLock::take()?;
    let left = uplink::leave(host, config).and(gateway::leave(host, config));
    let unused = if config.makes_bridge() { device::remove_if_unused(host, &config.bridge) } else { Ok(()) };
    left.and(unused)
}

/// Removes the port and all that may be around it, whatever its network's configuration was.
pub(super) fn remove_known_port(port: &Port) -> Result<(), BridgeError> {
    remove_port(None, port, &Netlink::open()?)
}

/// Removes the port, its check and its masquerading; those its network does not have (`config`, if known) are not
/// looked for. The pod's end goes with the host's, wherever it is and whatever it is called by now.
pub(super) fn remove_port(config: Option<&Config>, port: &Port, host: &Netlink) -> Result<(), BridgeError> {
    let removed = match find(port, host)? {
        Some(link) => delete_link(host, &link),
        None => Ok(()),
    };
    removed.and(remove_rules(config, &port.host_name))
}

/// The port's host end. Its name finds it; its alternative name does if somebody has renamed it.
pub(super) fn find(port: &Port, host: &Netlink) -> Result<Option<Link>, BridgeError> {
    for name in [&port.host_name, &port.alt_name] {
        if let Some(link) = host.link_by_name(name.as_str())?.filter(|link| is_ours(link, port)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// Removes what the packet filter knows of the port with that host end.
fn remove_rules(config: Option<&Config>, host_name: &IfName) -> Result<(), BridgeError> {
    let has_check = config.is_none_or(Config::has_spoof_check);
    let has_masquerading = config.is_none_or(|config| config.masquerade);
    if !has_check && !has_masquerading {
        return Ok(());
    }
    match remove_from_filter(has_check, has_masquerading, host_name) {
        Err(error) if error.is_unsupported() => {
            tracing::debug!("there can be no rules: {}", telemetry::chain(&error));
            Ok(())
        }
        other => Ok(other?),
    }
}

fn remove_from_filter(
    has_check: bool,
    has_masquerading: bool,
    host_name: &IfName,
) -> Result<(), NfTablesError> {
    let nf_tables = NfTables::open()?;
    let mut removed = Ok(());
    if has_check {
        removed = spoof::remove(&nf_tables, host_name);
        cni::mutated("spoof check removed");
    }
    if has_masquerading {
        removed = removed.and(masquerade::remove(&nf_tables, host_name));
        cni::mutated("masquerading removed");
    }
    removed
}

/// A link by our name without an alias is one whose ADD was cut off before it wrote it.
fn is_ours(link: &Link, port: &Port) -> bool {
    let ours = link.kind == "veth" && (link.alias.is_empty() || link.alias == port.alias);
    if !ours {
        tracing::warn!(
            "{} is left alone: it belongs to {:?}, not to {:?}",
            link.name,
            link.alias,
            port.alias
        );
    }
    ours
}

fn delete_link(host: &Netlink, link: &Link) -> Result<(), BridgeError> {
    match host.delete_link(link.index) {
        // The kernel deletes it by itself when the pod's namespace goes, which may be now.
        Err(error) if error.is_not_found() => {}
        other => other?,
    }
    cni::mutated("veth pair removed");
    Ok(())
}

/// What is left of an attachment.
#[derive(Default)]
struct Leftovers {
    links: Vec<Link>,
    /// Host ends that the packet filter has something of.
    ruled: Vec<String>,
}

/// Removes every port of `network` that belongs to none of the `valid` attachments, and has its addresses released. Goes on
/// past failures.
pub(super) fn gc(
    config: &Config,
    network: &str,
    valid: &[(ContainerId, String)],
    ipam: Option<&Ipam<'_>>,
) -> Result<(), BridgeError> {
    let host = Netlink::open()?;
    let mut failures = Vec::new();
    let mut stale = BTreeMap::<String, Leftovers>::new();
    for link in host.links()?.into_iter().filter(|link| is_stale(&link.alias, network, valid)) {
        stale.entry(link.alias.clone()).or_default().links.push(link);
    }
    // Without a DEL, rules stay when the pod's namespace goes and takes the link with it.
    let (ruled, unread) = ruled(config);
    failures.extend(unread);
    for (host_name, owner) in ruled.into_iter().filter(|(_, owner)| is_stale(owner, network, valid)) {
        stale.entry(owner).or_default().ruled.push(host_name);
    }
    for (owner, left) in stale {
        tracing::info!("removing what is left of {owner:?}");
        let removed = in_order(ipam, |ipam| release_of(ipam, &owner), || remove_leftovers(&host, &left));
        failures.extend(removed.err());
    }
    failures.extend(leave(&host, config).err());
    // Last, as in DEL: of those that have left nothing but their addresses.
    failures.extend(ipam.and_then(|ipam| ipam.gc().err()).map(BridgeError::Ipam));
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(only) if count == 1 => Err(only),
        Some(first) => Err(BridgeError::Several { count, first: Box::new(first) }),
    }
}

/// True if `alias` names an attachment of `network` that is not `valid`.
fn is_stale(alias: &str, network: &str, valid: &[(ContainerId, String)]) -> bool {
    port::owner(alias).is_some_and(|owner| {
        let is_own = |(container, if_name): &(ContainerId, String)| {
            container.as_str() == owner.container && if_name == owner.if_name
        };
        owner.network == network && !valid.iter().any(is_own)
    })
}

fn remove_leftovers(host: &Netlink, left: &Leftovers) -> Result<(), BridgeError> {
    let mut removed = Ok(());
    for link in &left.links {
        removed = removed.and(delete_link(host, link));
    }
    for host_name in &left.ruled {
        removed = removed.and(match host_name.parse() {
            Ok(name) => remove_rules(None, &name),
            // What we made has a name that can be an interface's.
            Err(error) => {
                tracing::warn!("{host_name:?} is left alone: {error}");
                Ok(())
            }
        });
    }
    removed
}

/// Has the addresses released of the attachment that the alias of its port names.
fn release_of(ipam: &Ipam<'_>, alias: &str) -> Result<(), Error> {
    let Some(owner) = port::owner(alias) else { return Ok(()) };
    let (Ok(container), Ok(if_name)) = (owner.container.parse(), owner.if_name.parse()) else {
        tracing::warn!("{alias:?} names no attachment: no address of it is released");
        return Ok(());
    };
    ipam.del_stale(&Attachment { container, if_name, netns: None })
}

/// The host ends that the packet filter has something of, and whose they are; and what of it could not be read. A network
/// that uses none of it now may have done so before.
fn ruled(config: &Config) -> (Vec<(String, String)>, Vec<BridgeError>) {
    let listed = [
        (config.has_spoof_check(), NfTables::open().and_then(|nf_tables| spoof::owners(&nf_tables))),
        (config.masquerade, NfTables::open().and_then(|nf_tables| nf_tables.owned_chains(Family::Inet))),
    ];
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for (is_used, listed) in listed {
        match listed {
            Ok(owned) => found.extend(owned),
            Err(error) if is_used && !error.is_unsupported() => failures.push(error.into()),
            Err(error) => tracing::debug!("not looked at: {}", telemetry::chain(&error)),
        }
    }
    (found, failures)
}
