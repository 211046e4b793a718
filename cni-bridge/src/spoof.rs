//! The spoof check: what a port may claim to be.
//!
//! Each guarded port has a chain of its own on the ingress of its host side, in the table `netdev cnv-bridge`. A
//! packet meets only the chain of the port it came in by, so its cost does not grow with the number of ports, and a
//! chain is made and removed without looking at any other. `nft list table netdev cnv-bridge` shows all of it, with
//! a counter of what was dropped.

use net_types::{IfName, Mac};

use crate::nf_tables::{
    Base, Chain, Compare, Expression, Family, Field, Hook, Meta, NfTables, NfTablesError, Rule, Table,
    Transaction, compared, same,
};

const TABLE: Table = Table { family: Family::Netdev, name: "cnv-bridge" };
/// Before everything else that might look at the packet (`NF_IP_PRI_RAW`, as the reference plugin has it).
const PRIORITY: i32 = -300;

/// `ARPHRD_ETHER`: with it in front, nft(8) shows what follows in words.
const ETHER: u16 = 1;
/// The source address of an Ethernet header.
const ETHER_SADDR: Field = Field { base: Base::Link, offset: 6, length: 6 };

/// Lets only `mac` send through `port`; replaces what was there for the port.
pub(crate) fn install(
    nf_tables: &NfTables,
    port: &IfName,
    mac: Mac,
    comment: &str,
) -> Result<(), NfTablesError> {
    let chain = chain(port);
    let rule = Rule { expressions: drop_other_sources(mac), comment };
    let transaction =
        Transaction::default().add_table(TABLE).add_chain(&chain).flush_chain(&chain).add_rule(&chain, &rule);
    nf_tables.commit(&transaction)
}

/// Takes the check of `port` away, and with the last one the table. Absent is fine.
pub(crate) fn remove(nf_tables: &NfTables, port: &IfName) -> Result<(), NfTablesError> {
    match nf_tables.commit(&Transaction::default().delete_chain(&chain(port))) {
        Err(error) if !error.is_not_found() => return Err(error),
        _ => {}
    }
    // Asked first, because a transaction that fails waits until no packet is in the rules any more.
    if nf_tables.holds(TABLE)? != Some(0) {
        return Ok(());
    }
    match nf_tables.commit(&Transaction::default().delete_empty_table(TABLE)) {
        Err(error) if !error.is_not_found() && !error.is_in_use() => Err(error),
        _ => Ok(()),
    }
}

/// What stands in the chain of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Only this address may send.
    Allows(Mac),
    /// There is no chain, or nothing in it.
    Absent,
    /// Something that [`install`] did not write.
    Foreign,
}

/// Reads back what [`install`] wrote.
pub(crate) fn state(nf_tables: &NfTables, port: &IfName) -> Result<State, NfTablesError> {
    let rules = nf_tables.rules(&chain(port))?;
    Ok(match &rules[..] {
        [] => State::Absent,
        [rule] => allowed_source(&rule.expressions).map_or(State::Foreign, State::Allows),
        _ => State::Foreign,
    })
}

fn chain(port: &IfName) -> Chain<'_> {
    let hook = Hook::Ingress { device: port.as_str(), priority: PRIORITY };
    Chain { table: TABLE, name: port.as_str(), hook: Some(hook) }
}

/// `meta iiftype ether ether saddr != MAC counter drop`.
fn drop_other_sources(mac: Mac) -> Vec<Expression> {
    vec![
        Expression::meta(Meta::InputType),
        Expression::compare(Compare::Equal, &ETHER.to_ne_bytes()),
        Expression::load(ETHER_SADDR),
        Expression::compare(Compare::Differs, &mac.octets()),
        Expression::counter(),
        Expression::drop(),
    ]
}

/// The address that a rule as [`drop_other_sources`] writes it lets pass.
fn allowed_source(rule: &[u8]) -> Option<Mac> {
    let value = compared(rule, ETHER_SADDR, Compare::Differs).into_iter().next()?;
    let mac = Mac::try_from(&value[..]).ok()?;
    same(rule, &drop_other_sources(mac)).then_some(mac)
}
