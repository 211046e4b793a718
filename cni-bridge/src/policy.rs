//! `cnv-bridge policy apply`: the bridges of a NodeNetworkConfigurationPolicy, on a node without nmstate.
//!
//! [`desired`] reads what is wanted, [`plan`] compares it with what is there and lists the changes, and here they are
//! made. What is as wanted already is left alone, so a policy can be applied again and again. Only Linux bridges are
//! done: anything else in a policy is refused, and nothing is changed then.

mod desired;
mod plan;

use std::fmt::Write as _;

use net_types::IfName;
use netlink::{Netlink, NewBridge};

pub(crate) use desired::PolicyError;

use crate::bridge::{BridgeError, BridgeLock};
use desired::Desired;
use plan::{Change, PlanError};

/// Why a policy could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// It says what is not understood.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It must not be done.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refused a change; those before it were made.
    #[error("cannot {change}")]
    Change {
        /// Which.
        change: String,
        /// Why.
        source: netlink::Error,
    },
    /// Others could not be waited for.
    #[error("cannot wait for calls that make or use bridges")]
    Lock(#[source] BridgeError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// Reads the policies in `yaml`.
pub(crate) fn read(yaml: &str) -> Result<(), PolicyError> {
    desired::read(yaml).map(drop)
}

/// Applies the policies in `yaml`, and says what was done, or would be. A port through which the node's default route
/// goes is refused unless `take_default_route`.
pub(crate) fn apply(yaml: &str, dry_run: bool, take_default_route: bool) -> Result<String, ApplyError> {
    let mut report = String::new();
    // All of them are read before the first is applied.
    for Desired { policy, bridges, absent } in desired::read(yaml)? {
        let host = Netlink::open()?;
        // From the look at what is there to the last change nobody makes or removes a bridge or attaches a pod.
        let _lock = BridgeLock::take().map_err(ApplyError::Lock)?;
        let changes = plan::plan(&host, &bridges, &absent, take_default_route)?;
        if changes.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(report, "{policy}: nothing to do");
        }
        for change in changes {
            if !dry_run {
                make(&host, &change)
                    .map_err(|source| ApplyError::Change { change: change.to_string(), source })?;
            }
            let _ = writeln!(report, "{policy}: {}{change}", if dry_run { "would " } else { "" });
        }
    }
    Ok(report)
}

fn make(host: &Netlink, change: &Change) -> Result<(), netlink::Error> {
    match change {
        Change::Create { name, vlan_filtering } => host.create_bridge(&NewBridge {
            name,
            mac: None,
            mtu: None,
            vlan_filtering: *vlan_filtering,
            multicast_snooping: true,
        }),
        Change::Delete(link) => host.delete_link(index(host, link)?),
        Change::FilterVlans(bridge) => host.set_vlan_filtering(bridge, true),
        Change::Stp(bridge, on) => host.set_stp(bridge, *on),
        Change::Mtu(link, mtu) => host.set_mtu(index(host, link)?, *mtu),
        Change::Attach { port, bridge } => host.set_master(index(host, port)?, Some(index(host, bridge)?)),
        Change::Detach { port, .. } => host.set_master(index(host, port)?, None),
        Change::AddVlan { port, vlan } => host.add_port_vlan(index(host, port)?, *vlan),
        Change::DeleteVlans { port, range } => host.delete_port_vlans(index(host, port)?, *range),
        Change::Up(link) => host.set_up(index(host, link)?),
    }
}

/// 0, which no link has and the kernel refuses, for one that has gone meanwhile.
fn index(host: &Netlink, name: &IfName) -> Result<u32, netlink::Error> {
    Ok(host.link_by_name(name.as_str())?.map_or(0, |link| link.index))
}
