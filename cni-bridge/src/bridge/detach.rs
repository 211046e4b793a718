//! DEL and GC.

use cni::{ContainerId, Ipam};
use netlink::{Link, Netlink};

use super::config::Config;
use super::device::{self, BridgeLock};
use super::error::BridgeError;
use super::port::{self, Port};
use crate::nf_tables::NfTables;
use crate::spoof;

/// Removes the port, releases its addresses, and removes the bridge if the port was the last on one of ours. Every
/// part is tried even if one fails; the first failure is returned. Works without the namespace, and again.
pub(super) fn del(config: &Config, port: &Port, ipam: Option<&Ipam<'_>>) -> Result<(), BridgeError> {
    let released = ipam.map_or(Ok(()), |ipam| ipam.del().map_err(BridgeError::Ipam));
    let host = Netlink::open()?;
    let _lock = if config.makes_bridge() { Some(BridgeLock::take()?) } else { None };
    let removed = remove_port(config, port, &host);
    let unused = if config.makes_bridge() { device::remove_if_unused(&host, &config.bridge) } else { Ok(()) };
    released.and(removed).and(unused)
}

/// Removes the port and its check, whatever its network's configuration was.
pub(super) fn remove_known_port(port: &Port) -> Result<(), BridgeError> {
    remove_link_and_check(port, &Netlink::open()?, true)
}

/// Everything of a port hangs on the host end: the pod's end goes with it, wherever it is and whatever it is called
/// by now.
pub(super) fn remove_port(config: &Config, port: &Port, host: &Netlink) -> Result<(), BridgeError> {
    remove_link_and_check(port, host, config.mac_spoof_check)
}

fn remove_link_and_check(port: &Port, host: &Netlink, has_check: bool) -> Result<(), BridgeError> {
    if let Some(link) = host.link_by_name(port.host_name.as_str())?
        && is_ours(&link, port)
    {
        delete_link(host, &link)?;
    }
    if has_check {
        spoof::remove(&NfTables::open()?, &port.host_name)?;
        cni::mutated("spoof check removed");
    }
    Ok(())
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

/// Removes every port of `network` that belongs to none of the `valid` attachments. Goes on past failures.
pub(super) fn gc(
    config: &Config,
    network: &str,
    valid: &[(ContainerId, String)],
    ipam: Option<&Ipam<'_>>,
) -> Result<(), BridgeError> {
    let host = Netlink::open()?;
    let mut failures: Vec<_> =
        ipam.and_then(|ipam| ipam.gc().err()).map(BridgeError::Ipam).into_iter().collect();
    for link in host.links()? {
        let Some(owner) = port::owner(&link.alias) else { continue };
        let is_valid = valid
            .iter()
            .any(|(container, if_name)| container.as_str() == owner.container && if_name == owner.if_name);
        if owner.network != network || is_valid {
            continue;
        }
        tracing::info!("removing {}: its container {} is gone", link.name, owner.container);
        let removed = delete_link(&host, &link).and_then(|()| remove_check(config, &link));
        failures.extend(removed.err());
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(only) if count == 1 => Err(only),
        Some(first) => Err(BridgeError::Several { count, first: Box::new(first) }),
    }
}

fn remove_check(config: &Config, link: &Link) -> Result<(), BridgeError> {
    // Links come from the kernel with names it accepts.
    if let (true, Ok(name)) = (config.mac_spoof_check, link.name.parse()) {
        spoof::remove(&NfTables::open()?, &name)?;
    }
    Ok(())
}
