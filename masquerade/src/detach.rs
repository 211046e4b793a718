//! DEL.
//!
//! The pod's own settings (forwarding, what bridges hand to the packet filter) stay as ADD made them: other interfaces
//! may rely on them by now, and the pod is going anyway.

use kubevirt_names::Names;
use net_types::IfName;

use crate::attach::{BRIDGE, TAP, remove_table};
use crate::config::Config;
use crate::error::MasqueradeError;
use crate::pod::{Ownership, Pod};

/// Takes away what was made for this attachment: links first, so that nothing is forwarded unfiltered. Goes on past
/// failures; what is gone already is fine.
pub(crate) fn del(config: &Config, pod: &Pod) -> Result<(), MasqueradeError> {
    let mut failures = Vec::new();
    for name in &config.candidates {
        failures.extend(del_around(pod, name)?);
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(only) if count == 1 => Err(only),
        Some(first) => Err(MasqueradeError::Several { count, first: Box::new(first) }),
    }
}

fn del_around(pod: &Pod, name: &IfName) -> Result<Vec<MasqueradeError>, MasqueradeError> {
    let names = Names::around(name)?;
    let links = [(&names.tap, TAP), (&names.bridge, BRIDGE)];
    for (link_name, kind) in links {
        let Some(link) = pod.netlink.link_by_name(link_name.as_str())? else { continue };
        if pod.ownership(&link, kind, name) != Ownership::Own {
            tracing::warn!("{link_name} is left alone, with its rules: it belongs to {:?}", link.alias);
            return Ok(Vec::new());
        }
    }
    let mut failures = Vec::new();
    for (link_name, _) in links {
        failures.extend(delete(pod, link_name).err());
    }
    failures.extend(remove_table(pod, name).err());
    cni::mutated("rules removed");
    Ok(failures)
}

fn delete(pod: &Pod, name: &IfName) -> Result<(), MasqueradeError> {
    let Some(link) = pod.netlink.link_by_name(name.as_str())? else { return Ok(()) };
    match pod.netlink.delete_link(link.index) {
        Err(error) if error.is_not_found() => {}
        other => other?,
    }
    cni::mutated("link removed");
    Ok(())
}
