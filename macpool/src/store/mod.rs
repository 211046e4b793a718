//! What stands behind the pool: who else gives addresses, and what survives this process.
//!
//! Two implementations: [`kube`] shares the range with other replicas through the API server, [`dir`] owns it alone and
//! keeps a journal. Admission knows only this trait.

pub mod dir;
pub mod kube;

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use net_types::Mac;

use crate::review::Want;

/// What a review asks for.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Whose NICs they are.
    pub owner: &'a Owner,
    /// What they want.
    pub wants: &'a [Want],
    /// True if the answer binds nobody.
    pub dry_run: bool,
}

/// What kind of object has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A VirtualMachine or its VirtualMachineInstance, which have one name.
    Vm,
    /// A pod.
    Pod,
}

/// An object that has addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// Its kind.
    pub kind: Kind,
    /// `namespace/name`. If the API server is to make the name up: its start, `*`, and the review's uid.
    pub key: Box<str>,
}

impl Owner {
    /// Is its name still to be made up?
    pub fn is_unnamed(&self) -> bool {
        self.key.contains('*')
    }
}

/// Can the object that was reviewed as `reviewed` be the one that is stored as `stored`? Both as an [`Owner`] prints.
pub(crate) fn may_be(reviewed: &str, stored: &str) -> bool {
    match reviewed.split_once('*') {
        Some((start, _uid)) => stored.starts_with(start),
        None => reviewed == stored,
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Vm => f.write_str(&self.key),
            Kind::Pod => write!(f, "pod {}", self.key),
        }
    }
}

/// An order fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Supplied {
    /// One address per want, in order.
    pub macs: Vec<Mac>,
    /// What the user should know although the request is allowed.
    pub warnings: Vec<String>,
}

/// Why an order is not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Nothing left to give.
    #[error("the range is full: all {size} addresses of {ranges} are taken")]
    Full {
        /// How many there are.
        size: u64,
        /// The range.
        ranges: String,
    },
    /// The address belongs to somebody else, and duplicates are to be rejected.
    #[error("macAddress {mac} is already used by {owner}")]
    Duplicate {
        /// The address.
        mac: Mac,
        /// Who has it.
        owner: String,
    },
    /// The store remembers by names.
    #[error("metadata.name is missing; without a cluster nobody makes one up")]
    NoName,
    /// This process cannot tell now; another, or this one later, can.
    #[error("{0}")]
    Unavailable(String),
}

/// How `--on-duplicate` treats an address that another VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnDuplicate {
    /// Allowed, with a warning, an event and a metric: restores and migrations make duplicates on purpose.
    #[default]
    Warn,
    /// Refused.
    Reject,
}

/// Gives addresses that nobody else gives.
pub trait Store: Send + Sync + 'static {
    /// Fulfils an order: one address per want, all reserved when this returns, or none. A dry run reserves nothing.
    fn order(&self, order: Order<'_>) -> impl Future<Output = Result<Supplied, OrderError>> + Send;

    /// The owner is gone for good, as a DELETE review says. Stores that see for themselves ignore it.
    fn forget(&self, owner: &Owner) -> impl Future<Output = Result<(), OrderError>> + Send;

    /// Adds what the store knows to the metrics page.
    fn render_metrics(&self, page: &mut String);

    /// May reviews be sent here? If not, why.
    fn ready(&self) -> Result<(), String>;
}

/// Locks; a panic elsewhere leaves data as it was between two statements, which these structures bear.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_was_made_up_begins_as_it_was_reviewed() {
        assert!(may_be("ns/vm", "ns/vm") && !may_be("ns/vm", "ns/vm-1"));
        assert!(may_be("ns/web-*u-1", "ns/web-x7k2p") && !may_be("ns/web-*u-1", "ns/db-x7k2p"));
    }
}
