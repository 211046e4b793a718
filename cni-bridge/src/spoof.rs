//! The spoof check: what a port may claim to be.
//!
//! Each guarded port has a chain of its own on the ingress of its host side, with the host side's name. A packet meets
//! only the chain of the port it came in by, so its cost does not grow with the number of ports. For that of ADD and DEL
//! chains are spread over tables, by the last two digits of the port's name: the kernel walks all chains of a table that
//! changes, and the list of all tables for each rule. A table goes with its last chain. `nft list ruleset netdev` shows
//! all of it, with counters of what was dropped. What the rules say is in [`rules`].

mod rules;

use std::fmt;
use std::net::IpAddr;

use net_types::{IfName, Mac};

use nf_tables::{Chain, Family, FoundTable, Hook, NfTables, NfTablesError, Rule, Table, Transaction, same};

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
    nf_tables.commit(&installation(&chain(&table(port.as_str()), port.as_str()), guard, comment))
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
    let loopback = "lo";
    let guard = Guard::new(Some(Mac::ZERO), Some(Vec::new()));
    nf_tables.try_out(&installation(&chain(&table(loopback), loopback), &guard, ""))
}

/// Takes the check of `port` away. Absent is fine.
pub(crate) fn remove(nf_tables: &NfTables, port: &IfName) -> Result<(), NfTablesError> {
    let table = table(port.as_str());
    let chain = chain(&table, port.as_str());
    let Some(FoundTable { holds, .. }) = nf_tables.table(chain.table)? else { return Ok(()) };
    let own = u32::from(nf_tables.has_chain(&chain)?);
    let without_chain = || {
        let transaction = Transaction::default();
        if own == 1 { transaction.delete_chain(&chain) } else { transaction }
    };
    let removed = if holds > own {
        nf_tables.commit(&without_chain())
    } else {
        match nf_tables.commit(&without_chain().delete_empty_table(chain.table)) {
            // Another port's chain came meanwhile.
            Err(error) if error.is_in_use() => nf_tables.commit(&without_chain()),
            other => other,
        }
    };
    match removed {
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
    let table = table(port.as_str());
    let chain = chain(&table, port.as_str());
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

/// The table that holds the chain of the port with that name.
fn table(port: &str) -> String {
    let end = port.len().checked_sub(2).and_then(|start| port.get(start..)).unwrap_or(port);
    format!("cnv-bridge-{end}")
}

fn chain<'a>(table: &'a str, port: &'a str) -> Chain<'a> {
    let hook = Hook::Ingress { device: port, priority: PRIORITY };
    Chain { table: Table { family: Family::Netdev, name: table }, name: port, hook: Some(hook) }
}
