//! The spoof check: what a port may claim to be.
//!
//! Each guarded port has a chain of its own on the ingress of its host side, in the table `netdev cnv-bridge`. A
//! packet meets only the chain of the port it came in by, so its cost does not grow with the number of ports, and a
//! chain is made and removed without looking at any other. `nft list table netdev cnv-bridge` shows all of it, with
//! a counter of what was dropped.

use net_types::{IfName, Mac};

use crate::nf_tables::{
    Attributes, Chain, Expression, NfTables, NfTablesError, Rule, Transaction, Writer, expressions,
};

const TABLE: &str = "cnv-bridge";
/// Before everything else that might look at the packet (`NF_IP_PRI_RAW`, as the reference plugin has it).
const PRIORITY: i32 = -300;

// linux/netfilter/nf_tables.h
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFT_PAYLOAD_LL_HEADER: u32 = 0;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_META_IIFTYPE: u32 = 8;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NF_DROP: u32 = 0;

/// `ARPHRD_ETHER`: with it in front, nft(8) shows what follows in words.
const ETHER: u16 = 1;
/// Offset and length of the source address in an Ethernet header.
const ETHER_SADDR: (u32, u32) = (6, 6);

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
    // A transaction of its own: that other ports still have chains must not bring ours back.
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
        [rule] => allowed_source(rule).map_or(State::Foreign, State::Allows),
        _ => State::Foreign,
    })
}

fn chain(port: &IfName) -> Chain<'_> {
    Chain { table: TABLE, name: port.as_str(), device: port.as_str(), priority: PRIORITY }
}

/// `meta iiftype ether ether saddr != MAC counter drop`.
fn drop_other_sources(mac: Mac) -> Vec<Expression> {
    let (offset, length) = ETHER_SADDR;
    let kind = Writer::default().number(NFTA_META_DREG, NFT_REG_1).number(NFTA_META_KEY, NFT_META_IIFTYPE);
    let load = Writer::default()
        .number(NFTA_PAYLOAD_DREG, NFT_REG_1)
        .number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_LL_HEADER)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, length);
    let compare = |operator: u32, value: &[u8]| {
        Writer::default()
            .number(NFTA_CMP_SREG, NFT_REG_1)
            .number(NFTA_CMP_OP, operator)
            .nested(NFTA_CMP_DATA, Writer::default().bytes(NFTA_DATA_VALUE, value))
    };
    let drop =
        Writer::default().nested(NFTA_DATA_VERDICT, Writer::default().number(NFTA_VERDICT_CODE, NF_DROP));
    let verdict =
        Writer::default().number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT).nested(NFTA_IMMEDIATE_DATA, drop);
    vec![
        Expression { name: "meta", data: kind },
        Expression { name: "cmp", data: compare(NFT_CMP_EQ, &ETHER.to_ne_bytes()) },
        Expression { name: "payload", data: load },
        Expression { name: "cmp", data: compare(NFT_CMP_NEQ, &mac.octets()) },
        Expression { name: "counter", data: Writer::default() },
        Expression { name: "immediate", data: verdict },
    ]
}

/// The address that a rule as [`drop_other_sources`] writes it lets pass.
fn allowed_source<'a>(rule: &'a [u8]) -> Option<Mac> {
    let mut list = expressions(rule);
    let mut next = |name: &str| list.next().filter(|(found, _)| *found == name).map(|(_, data)| data);
    let kind = next("meta")?;
    let is_ether = next("cmp")?;
    let load = next("payload")?;
    let compare = next("cmp")?;
    next("counter")?;
    let verdict = next("immediate")?;
    let (offset, length) = ETHER_SADDR;
    let loads_source = load.number(NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_LL_HEADER)
        && load.number(NFTA_PAYLOAD_OFFSET) == Some(offset)
        && load.number(NFTA_PAYLOAD_LEN) == Some(length);
    let value = |compare: &Attributes<'a>| Attributes::new(compare.get(NFTA_CMP_DATA)?).get(NFTA_DATA_VALUE);
    let of_ethernet = kind.number(NFTA_META_KEY) == Some(NFT_META_IIFTYPE)
        && is_ether.number(NFTA_CMP_OP) == Some(NFT_CMP_EQ)
        && value(&is_ether) == Some(&ETHER.to_ne_bytes());
    let verdict = Attributes::new(verdict.get(NFTA_IMMEDIATE_DATA)?);
    let drops = Attributes::new(verdict.get(NFTA_DATA_VERDICT)?).number(NFTA_VERDICT_CODE) == Some(NF_DROP);
    let differs = compare.number(NFTA_CMP_OP) == Some(NFT_CMP_NEQ);
    let mac = value(&compare)?;
    let is_ours = of_ethernet && loads_source && differs && drops && list.next().is_none();
    Mac::try_from(mac).ok().filter(|_| is_ours)
}
