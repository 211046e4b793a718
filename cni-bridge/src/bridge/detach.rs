//! DEL and GC.

use cni::ContainerId;
use netlink::{Link, Netlink};

use super::config::Config;
use super::error::BridgeError;
use super::port::{self, Port};
use crate::nf_tables::NfTables;
use crate::spoof;

/// Removes the port, all of which hangs on the host end: the pod's end goes with it, wherever it is and whatever it
/// is called by now. Works without the namespace, and again.
pub(super) fn del(config: &Config, port: &Port) -> Result<(), BridgeError> {
    let host = Netlink::open()?;
    if let Some(link) = host.link_by_name(port.host_name.as_str())?
        && is_ours(&link, port)
    {
        delete_link(&host, &link)?;
    }
    if config.mac_spoof_check {
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
pub(super) fn gc(config: &Config, network: &str, valid: &[(ContainerId, String)]) -> Result<(), BridgeError> {
    let host = Netlink::open()?;
    let mut failures = Vec::new();
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
