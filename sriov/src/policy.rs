//! `sriov policy apply`: a node's physical functions as `SriovNetworkNodePolicy` objects want them.
//!
//! [`spec`] reads the policies, [`node`] looks at the node, [`plan`] compares the two without touching anything and
//! [`carry_out`] does what differs, so a second run finds nothing to do. A VF that a pod has is never touched.

mod carry_out;
mod node;
mod plan;
mod spec;

use std::fmt::Write as _;

use crate::journal::{Journal, JournalError, Owner};
use crate::sysfs::{Sysfs, SysfsError};
use net_types::PciAddress;
use spec::SpecError;

/// Why policies could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The policies.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// sysfs.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The kernel.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// More VFs than there can be.
    #[error("policy {policy} wants {wanted} VFs of {pf}, which can have {total}")]
    TooMany {
        /// The policy's name.
        policy: String,
        /// The physical function.
        pf: PciAddress,
        /// How many it wants.
        wanted: u32,
        /// How many there can be.
        total: u32,
    },
    /// Fewer VFs than wanted on a PF that is not ours to change.
    #[error("{pf} has {found} VFs, {wanted} are wanted, and it is externally managed")]
    TooFew {
        /// The physical function.
        pf: PciAddress,
        /// How many are wanted.
        wanted: u32,
        /// How many there are.
        found: u32,
    },
    /// A VF that would have to change belongs to a pod.
    #[error("virtual function {vf} would change, but belongs to {owner}")]
    InUse {
        /// The VF.
        vf: PciAddress,
        /// Who has it.
        owner: Owner,
    },
    /// A VF that would have to change is being attached or detached.
    #[error("virtual function {0} would change, but is being attached or detached; try again")]
    Busy(PciAddress),
    /// A driver did not come.
    #[error("virtual function {vf} is not driven by {wanted} but by {}", found.as_deref().unwrap_or("nothing"))]
    Driver {
        /// The VF.
        vf: PciAddress,
        /// The driver, or kind of driver.
        wanted: String,
        /// The driver it has.
        found: Option<String>,
    },
}

/// Applies the policies in `text` that are for a node with `labels`; says what was done, one line each.
pub(crate) fn apply(text: &str, labels: &[(String, String)], dry_run: bool) -> Result<String, PolicyError> {
    let policies = spec::policies(text)?;
    let mut report = String::new();
    let (ours, others): (Vec<_>, Vec<_>) = policies.into_iter().partition(|policy| policy.is_for(labels));
    // Writing to a String cannot fail.
    for policy in others {
        let _ = writeln!(report, "policy {}: not for this node", policy.name);
    }
    let (sysfs, journal) = (Sysfs::host(), Journal::host());
    let nics = node::nics(&sysfs)?;
    let desired = plan::merge(&ours, &nics)?;
    for policy in ours.iter().filter(|policy| !nics.iter().any(|nic| policy.selector.selects(nic))) {
        let _ = writeln!(report, "policy {}: selects no NIC of this node", policy.name);
    }
    for wanted in &desired {
        let hands = carry_out::Hands { sysfs: &sysfs, journal: &journal, dry_run };
        for line in carry_out::carry_out(&hands, wanted)? {
            let _ = writeln!(report, "{}{line}", if dry_run { "would: " } else { "" });
        }
    }
    if report.is_empty() {
        report.push_str("nothing to do\n");
    }
    Ok(report)
}
