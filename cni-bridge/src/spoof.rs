//! The spoof check: what a port may claim to be.
//!
//! Each guarded port has a chain of its own on the ingress of its host side, in a table of its own, both with the host
//! side's name. A packet meets only the chain of the port it came in by, so its cost does not grow with the number of
//! ports; and since the kernel walks a table whenever it changes, neither does that of ADD and DEL. `nft list ruleset
//! netdev` shows all of it, with counters of what was dropped. What the rules say is in [`rules`].

mod rules;

use std::fmt;
use std::net::IpAddr;

use net_types::{IfName, Mac};

use nf_tables::{Chain, Family, Hook, NfTables, NfTablesError, Rule, Table, Transaction, same};

/// Before everything else that might look at the packet (`NF_IP_PRI_RAW`, as the reference plugin has it).
const PRIORITY: i32 = -300;

/// What a port may claim to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guard {
    /// The only Ethernet address it has; none leaves that open.
    mac: Option<Mac>,
    /// The only IP addresses it has, sorted, beside IPv6 link-local ones; none leaves that open.
    sources: Option<Vec<IpAddr>>,
}

impl Guard {
    /// A guard; the order of `sources` does not matter.
    pub(crate) fn new(mac: Option<Mac>, mut sources: Option<Vec<IpAddr>>) -> Self {
        if let Some(sources) = &mut sources {
            sources.sort_unstable();
            sources.dedup();
        }
        Self { mac, sources }
    }

    /// The same for an interface whose address is `mac` by now; none if that is not checked.
    pub(crate) fn moved_to(self, mac: Mac) -> Option<Self> {
        let checked = self.mac.is_some();
        checked.then_some(Self { mac: Some(mac), ..self })
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "{mac}")?,
            None => f.write_str("any MAC address")?,
        }
        match &self.sources {
            None => f.write_str(" with any IP address"),
            Some(sources) if sources.is_empty() => f.write_str(" without IP addresses"),
            Some(sources) => {
                let list: Vec<_> = sources.iter().map(IpAddr::to_string).collect();
                write!(f, " with {}", list.join(", "))
            }
        }
    }
}

/// Lets `port` send only what `guard` allows; replaces what was there for the port.
pub(crate) fn install(
    nf_tables: &NfTables,
    port: &IfName,
    guard: &Guard,
    comment: &str,
) -> Result<(), NfTablesError> {
    nf_tables.commit(&installation(&chain(port), guard, comment))
}

fn installation(chain: &Chain<'_>, guard: &Guard, comment: &str) -> Transaction {
    let mut transaction = Transaction::default().add_table(chain.table).add_chain(chain).flush_chain(chain);
    for expressions in rules::of(guard) {
        transaction = transaction.add_rule(chain, &Rule { expressions, comment });
    }
    transaction
}

/// Has the kernel look at what [`install`] would do, by the one device that is always there.
pub(crate) fn try_out(nf_tables: &NfTables) -> Result<(), NfTablesError> {
    let loopback = chain_of("lo");
    let guard = Guard::new(Some(Mac::ZERO), Some(Vec::new()));
    nf_tables.try_out(&installation(&loopback, &guard, ""))
}

/// Takes the check of `port` away. Absent is fine.
pub(crate) fn remove(nf_tables: &NfTables, port: &IfName) -> Result<(), NfTablesError> {
    match nf_tables.commit(&Transaction::default().delete_table(chain(port).table)) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// What stands in the chain of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// What [`install`] wrote of this.
    Allows(Guard),
    /// There is no chain, or nothing in it.
    Absent,
    /// What is in the chain does not matter: the port's packets do not meet it.
    NotInForce,
    /// Something that [`install`] did not write.
    Foreign,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allows(guard) => guard.fmt(f),
            Self::Absent => f.write_str("absent"),
            Self::NotInForce => f.write_str("not in force"),
            Self::Foreign => f.write_str("not ours"),
        }
    }
}

/// Reads back what [`install`] wrote.
pub(crate) fn state(nf_tables: &NfTables, port: &IfName) -> Result<State, NfTablesError> {
    let chain = chain(port);
    let found = nf_tables.rules(&chain)?;
    if found.is_empty() {
        return Ok(State::Absent);
    }
    if !nf_tables.is_in_force(&chain)? {
        return Ok(State::NotInForce);
    }
    let guard = rules::read(&found);
    let written = rules::of(&guard);
    let ours = found.len() == written.len()
        && found.iter().zip(&written).all(|(found, written)| same(&found.expressions, written));
    Ok(if ours { State::Allows(guard) } else { State::Foreign })
}

fn chain(port: &IfName) -> Chain<'_> {
    chain_of(port.as_str())
}

fn chain_of(device: &str) -> Chain<'_> {
    let hook = Hook::Ingress { device, priority: PRIORITY };
    Chain { table: Table { family: Family::Netdev, name: device }, name: device, hook: Some(hook) }
}
