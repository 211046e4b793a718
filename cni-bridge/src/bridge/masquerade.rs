//! Masquerading (`ipMasq`): what leaves the network goes by the node's address.
//!
//! All of it is in the table `inet cnv-bridge`, and most of that stands for any number of pods: two maps that send a
//! pod's address to the chain of its port, and a chain behind routing that looks into them. The kernel walks it for
//! the first packet of a connection only, and finds a pod among thousands with one look-up. `nft list table inet
//! cnv-bridge` shows it.
//!
//! A port's chain has the name of its host end and its owner as comment, so DEL finds it without knowing addresses,
//! and GC without a link.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use net_types::IfName;

use super::error::BridgeError;
use super::port::Port;
use crate::compare::{Difference, difference};
use nf_tables::{
    Base, Chain, Compare, Element, Expression, Family, Field, Holds, Hook, Meta, NfTables, NfTablesError,
    Part, Place, Rule, Set, Table, Transaction, compared, same,
};

const TABLE: Table<'_> = Table { family: Family::Inet, name: "cnv-bridge" };
const SOURCE_NAT: Hook = Hook::Nat { place: Place::Postrouting, priority: 100 };
const POSTROUTING: Chain<'_> = Chain { table: TABLE, name: "postrouting", hook: Some(SOURCE_NAT) };

/// What the table holds besides the ports' chains: that chain and two maps.
const OF_ALL_PORTS: u32 = 3;

/// What differs between IPv4 and IPv6.
struct Version {
    /// From a pod's address to its port's chain.
    map: Set,
    /// `NFPROTO_*`
    family: u8,
    source: Field,
    destination: Field,
    /// The multicast addresses, and their mask: nobody can answer such a packet.
    multicast: [&'static [u8]; 2],
}

const V4: Version = Version {
    map: Set { table: TABLE, name: "masquerade4", key: &[Part::V4], holds: Holds::Chains },
    family: 2,
    source: Field { base: Base::Network, offset: 12, length: 4 },
    destination: Field { base: Base::Network, offset: 16, length: 4 },
    multicast: [&[224, 0, 0, 0], &[240, 0, 0, 0]],
};

const V6: Version = Version {
    map: Set { table: TABLE, name: "masquerade6", key: &[Part::V6], holds: Holds::Chains },
    family: 10,
    source: Field { base: Base::Network, offset: 8, length: 16 },
    destination: Field { base: Base::Network, offset: 24, length: 16 },
    multicast: [
        &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
};

impl Version {
    fn of(address: IpAddr) -> &'static Self {
        if address.is_ipv4() { &V4 } else { &V6 }
    }
}

/// Has what `addresses` send out of their own networks leave by the node's address. Replaces what was there for the
/// port; and an address that another port is still said to have is this one's from now on, since IPAM says so.
pub(super) fn install(
    nf_tables: &NfTables,
    port: &Port,
    addresses: &[IpNetwork],
) -> Result<(), NfTablesError> {
    if !nf_tables.rules(&chain(port.host_name.as_str()))?.is_empty() {
        remove_chain(nf_tables, port.host_name.as_str())?;
    }
    // What all ports share is left alone while it is whole: rewritten by each ADD, another port's CHECK could see it half.
    if stands(nf_tables)? {
        match install_on(nf_tables, Transaction::default, port, addresses) {
            // The node's last port went meanwhile, and the table with it.
            Err(error) if error.is_not_found() => {}
            other => return other,
        }
    }
    install_on(nf_tables, ground, port, addresses)
}

fn install_on(
    nf_tables: &NfTables,
    ground: impl Fn() -> Transaction,
    port: &Port,
    addresses: &[IpNetwork],
) -> Result<(), NfTablesError> {
    let install = || nf_tables.commit(&with(ground(), port.host_name.as_str(), &port.alias, addresses));
    match install() {
        Err(error) if error.already_exists() => {
            for address in addresses {
                dispossess(nf_tables, address.ip())?;
            }
            install()
        }
        other => other,
    }
}

/// Has the kernel look at what [`install`] would do for any port.
pub(super) fn try_out(nf_tables: &NfTables) -> Result<(), NfTablesError> {
    nf_tables.try_out(&with(ground(), "any", "", &[]))
}

/// True if packets meet what stands for any number of ports.
fn stands(nf_tables: &NfTables) -> Result<bool, NfTablesError> {
    let rules = nf_tables.rules(&POSTROUTING)?;
    let is_whole = rules.len() == 2
        && rules.iter().zip([&V4, &V6]).all(|(rule, version)| same(&rule.expressions, &look_up(version)));
    Ok(is_whole && nf_tables.is_in_force(&POSTROUTING)?)
}

/// Makes what stands for any number of ports; what is there of it is made anew, at no moment without effect.
fn ground() -> Transaction {
    let transaction = Transaction::default().add_table(TABLE).add_set(&V4.map).add_set(&V6.map);
    let transaction = transaction.add_chain(&POSTROUTING).flush_chain(&POSTROUTING);
    [&V4, &V6].into_iter().fold(transaction, |transaction, version| {
        transaction.add_rule(&POSTROUTING, &Rule { expressions: look_up(version), comment: "" })
    })
}

fn with(transaction: Transaction, host_name: &str, comment: &str, addresses: &[IpNetwork]) -> Transaction {
    let own = chain(host_name);
    addresses.iter().fold(transaction.add_chain(&own), |transaction, address| {
        let rule = Rule { expressions: masquerade(*address), comment };
        let (set, key) = (&Version::of(address.ip()).map, octets(address.ip()));
        transaction.add_rule(&own, &rule).add_element(&Element { set, key: &key }, own.name, "")
    })
}

/// Removes whichever port's chain has `address` in the map.
fn dispossess(nf_tables: &NfTables, address: IpAddr) -> Result<(), NfTablesError> {
    let Some(former) = target(nf_tables, &Version::of(address).map, &octets(address))? else { return Ok(()) };
    tracing::warn!("{former} is masqueraded as {address}, but was never deleted: removing that");
    remove_chain(nf_tables, &former)
}

/// Takes away what [`install`] made for the port, and with the last one the table. Absent is fine.
pub(super) fn remove(nf_tables: &NfTables, host_name: &IfName) -> Result<(), NfTablesError> {
    remove_chain(nf_tables, host_name.as_str())?;
    // Asked first, because a transaction that fails waits until no packet is in the rules any more.
    if nf_tables.table(TABLE)?.is_none_or(|table| table.holds > OF_ALL_PORTS) {
        return Ok(());
    }
    nf_tables.remove_unused(Transaction::default, TABLE, &[POSTROUTING], &[V4.map, V6.map])?;
    Ok(())
}

/// The chain to which `map` sends `key`.
fn target(nf_tables: &NfTables, map: &Set, key: &[u8]) -> Result<Option<String>, NfTablesError> {
    Ok(nf_tables.element(&Element { set: map, key })?.map(|element| element.target))
}

fn remove_chain(nf_tables: &NfTables, name: &str) -> Result<(), NfTablesError> {
    let own = chain(name);
    let mut transaction = Transaction::default();
    for rule in nf_tables.rules(&own)? {
        for version in [&V4, &V6] {
            for key in compared(&rule.expressions, version.source, Compare::Equal) {
                // By now the address may be another's.
                if target(nf_tables, &version.map, &key)?.as_deref() == Some(name) {
                    transaction = transaction.delete_element(&Element { set: &version.map, key: &key });
                }
            }
        }
    }
    match nf_tables.commit(&transaction.delete_chain(&own)) {
        Err(error) if error.is_in_use() => remove_chain_by_target(nf_tables, &own),
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The same where somebody has removed rules of the chain by hand, so that they do not tell its addresses any more.
fn remove_chain_by_target(nf_tables: &NfTables, own: &Chain<'_>) -> Result<(), NfTablesError> {
    let mut transaction = Transaction::default();
    for version in [&V4, &V6] {
        let elements = nf_tables.elements(&version.map)?;
        for element in elements.iter().filter(|element| element.target == own.name) {
            transaction = transaction.delete_element(&Element { set: &version.map, key: &element.key });
        }
    }
    match nf_tables.commit(&transaction.delete_chain(own)) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Compares with what [`install`] made of `addresses`.
pub(super) fn check(nf_tables: &NfTables, port: &Port, addresses: &[IpNetwork]) -> Result<(), BridgeError> {
    let what = || format!("masquerading of {}", port.host_name);
    if !stands(nf_tables)? {
        return Err(difference(what(), "not looked up", "looked up in chain postrouting").into());
    }
    let rules = nf_tables.rules(&chain(port.host_name.as_str()))?;
    let wanted =
        |address: &IpNetwork| rules.iter().any(|rule| same(&rule.expressions, &masquerade(*address)));
    match addresses.iter().find(|address| !wanted(address)) {
        _ if rules.is_empty() => return Err(difference(what(), "absent", "present").into()),
        Some(address) => return Err(absent(&what(), *address).into()),
        None if rules.len() != addresses.len() => return Err(difference(what(), "not ours", "ours").into()),
        None => {}
    }
    for address in addresses {
        let target = target(nf_tables, &Version::of(address.ip()).map, &octets(address.ip()))?;
        if target.as_deref() != Some(port.host_name.as_str()) {
            return Err(absent(&what(), *address).into());
        }
    }
    Ok(())
}

fn absent(what: &str, address: IpNetwork) -> Difference {
    difference(what, format!("without {address}"), format!("with {address}"))
}

fn chain(host_name: &str) -> Chain<'_> {
    Chain { table: TABLE, name: host_name, hook: None }
}

/// `ip saddr vmap @masquerade4`, or the same for IPv6.
fn look_up(version: &Version) -> Vec<Expression> {
    vec![
        Expression::meta(Meta::Family),
        Expression::compare(Compare::Equal, &[version.family]),
        Expression::load(version.source),
        Expression::jump_by(&version.map),
    ]
}

/// `ip saddr ADDRESS ip daddr != NETWORK ip daddr != 224.0.0.0/4 counter masquerade`, or the same for IPv6.
fn masquerade(address: IpNetwork) -> Vec<Expression> {
    let version = Version::of(address.ip());
    let outside = |network: &[u8], mask: &[u8]| {
        [
            Expression::load(version.destination),
            Expression::mask(mask),
            Expression::compare(Compare::Differs, network),
        ]
    };
    let mut expressions = vec![
        Expression::meta(Meta::Family),
        Expression::compare(Compare::Equal, &[version.family]),
        Expression::load(version.source),
        Expression::compare(Compare::Equal, &octets(address.ip())),
    ];
    expressions.extend(outside(&octets(address.network()), &octets(address.mask())));
    let [multicast, mask] = version.multicast;
    expressions.extend(outside(multicast, mask));
    expressions.extend([Expression::counter(), Expression::masquerade()]);
    expressions
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
