//! The spoof check: what a port may claim to be.
//!
//! All of it is in the table `bridge cnv-bridge`. Its rules ([`rules`]) stand for any number of ports; sets say which ports
//! are checked, and what each of them may claim. So a frame, an ADD and a DEL cost the same however many ports there
//! are: a frame is looked up by the port it came in by, and a port is a few elements of sets. `nft list table bridge
//! cnv-bridge` shows all of it. The table comes with the first port and goes with the last.
//!
//! A port's record is a counter of what was refused it, which has the port's name, and its owner as comment. The element
//! that leads from the port to that counter has as comment what the port may claim, so that DEL finds the other elements
//! without looking through the sets.

mod rules;

use std::fmt;
use std::net::IpAddr;

use net_types::{IfName, Mac};

use nf_tables::{
    Chain, Counter, Element, Expression, Family, FoundRule, Holds, Hook, NfTables, NfTablesError, Part,
    Place, Rule, Set, Table, Transaction, same,
};

const TABLE: Table<'static> = Table { family: Family::Bridge, name: "cnv-bridge" };
/// Before everything else that looks at frames on their way in (`NF_BR_PRI_NAT_DST_BRIDGED`, as the reference plugin has it).
const EARLY: Hook = Hook::Filter { place: Place::Prerouting, priority: -300 };
const PREROUTING: Chain<'static> = Chain { table: TABLE, name: "prerouting", hook: Some(EARLY) };
const MAC_CHAIN: Chain<'static> = Chain { table: TABLE, name: "mac-check", hook: None };
const IP_CHAIN: Chain<'static> = Chain { table: TABLE, name: "ip-check", hook: None };
/// Counts a frame for the port it came in by, and drops it.
const REFUSED: Chain<'static> = Chain { table: TABLE, name: "refused", hook: None };

/// From a port to its counter.
const PORTS: Set = set("ports", &[Part::Name], Holds::Counters);
/// The ports that may claim only the MAC addresses that [`MACS`] has for them.
const MAC_CHECKED: Set = set("mac-checked", &[Part::Name], Holds::Keys);
const MACS: Set = set("macs", &[Part::Name, Part::Mac], Holds::Keys);
/// The ports that may claim only the IP addresses that [`V4`] and [`V6`] have for them.
const IP_CHECKED: Set = set("ip-checked", &[Part::Name], Holds::Keys);
const V4: Set = set("addresses4", &[Part::Name, Part::V4], Holds::Keys);
const V6: Set = set("addresses6", &[Part::Name, Part::V6], Holds::Keys);
const SETS: [Set; 6] = [PORTS, MAC_CHECKED, MACS, IP_CHECKED, V4, V6];
/// What the table holds besides the ports' counters: sets, and the chains of [`rules::all`].
const OF_ALL_PORTS: u32 = 6 + 4;

/// Bytes of a port's name in a key.
const NAME: usize = 16;
/// The comment of a port that may claim nothing.
const NOTHING: &str = "nothing";
/// Longest comment, in bytes, that nf_tables keeps.
const MAX_COMMENT: usize = 253;

const fn set(name: &'static str, key: &'static [Part], holds: Holds) -> Set {
    Set { table: TABLE, name, key, holds }
}

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
    let install = |ground| {
        let replaced = present(nf_tables, port)?.iter().fold(ground, Own::delete);
        nf_tables.commit(&with(replaced, port, guard, comment))
    };
    if stands(nf_tables)? {
        match install(Transaction::default()) {
            // The node's last port went meanwhile, and the table with it.
            Err(error) if error.is_not_found() => {}
            other => return other,
        }
    }
    install(ground())
}

/// Has the kernel look at what [`install`] would do.
pub(crate) fn try_out(nf_tables: &NfTables, port: &IfName) -> Result<(), NfTablesError> {
    let addresses = vec![IpAddr::from([0; 4]), IpAddr::from([0; 16])];
    nf_tables.try_out(&with(ground(), port, &Guard::new(Some(Mac::ZERO), Some(addresses)), "any"))
}

/// Takes the check of `port` away, and the table if it was the last port's. Absent is fine.
pub(crate) fn remove(nf_tables: &NfTables, port: &IfName) -> Result<(), NfTablesError> {
    let Some(table) = nf_tables.table(TABLE)? else { return Ok(()) };
    let counter = counter(port);
    let is_checked = nf_tables.has_counter(&counter)?;
    let elements = if is_checked { present(nf_tables, port)? } else { Vec::new() };
    let own = || {
        let own = elements.iter().fold(Transaction::default(), Own::delete);
        if is_checked { own.delete_counter(&counter) } else { own }
    };
    // In one, because the kernel waits after each until no packet is in what was removed; and asked first, because it does
    // so after one that fails, too.
    let is_last = table.holds <= OF_ALL_PORTS + u32::from(is_checked);
    if is_last && remove_with_table(nf_tables, own)? {
        return Ok(());
    }
    match nf_tables.commit(&own()) {
        // Another DEL of the same port was faster.
        Err(error) if error.is_not_found() => {}
        other => other?,
    }
    // The last ports may go at once; each was there for the other when it was asked.
    if nf_tables.table(TABLE)?.is_some_and(|table| table.holds <= OF_ALL_PORTS) {
        remove_with_table(nf_tables, Transaction::default)?;
    }
    Ok(())
}

/// Does what `own` asks for and removes the table; neither, and false, if a port is left.
fn remove_with_table(nf_tables: &NfTables, own: impl Fn() -> Transaction) -> Result<bool, NfTablesError> {
    nf_tables.remove_unused(own, TABLE, &rules::all().map(|(chain, _)| chain), &SETS)
}

/// The ports that have a check, and whose they are. Its cost grows with the ports of the node: not for ADD or DEL.
pub(crate) fn owners(nf_tables: &NfTables) -> Result<Vec<(String, String)>, NfTablesError> {
    let counters = nf_tables.counters(TABLE)?;
    Ok(counters.into_iter().map(|counter| (counter.name, counter.comment)).collect())
}

/// What `port` may claim; none if it is not checked.
pub(crate) fn guard(nf_tables: &NfTables, port: &IfName) -> Result<Option<Guard>, NfTablesError> {
    let is_in = |set| Own::of(set, port, &[]).is_there(nf_tables);
    let (checks_mac, checks_ip) = (is_in(MAC_CHECKED)?, is_in(IP_CHECKED)?);
    if !checks_mac && !checks_ip {
        return Ok(None);
    }
    let claims = claims(nf_tables, port)?;
    let mac = claims.iter().find_map(Own::mac).filter(|_| checks_mac);
    let sources = checks_ip.then(|| claims.iter().filter_map(Own::address).collect());
    Ok(Some(Guard::new(mac, sources)))
}

/// What there is for a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// What [`install`] wrote of this.
    Allows(Guard),
    /// The port is not checked.
    Absent,
    /// What the sets say of the port does not matter: its frames do not meet the rules.
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

/// Reads back what [`install`] wrote. Looks at all rules, and through all sets: for CHECK.
pub(crate) fn state(nf_tables: &NfTables, port: &IfName) -> Result<State, NfTablesError> {
    let Some(guard) = guard(nf_tables, port)? else { return Ok(State::Absent) };
    if !nf_tables.is_in_force(&PREROUTING)? {
        return Ok(State::NotInForce);
    }
    for (chain, rules) in rules::all() {
        let found = nf_tables.rules(&chain)?;
        let as_written = |(found, written): (&FoundRule, &Vec<Expression>)| same(&found.expressions, written);
        if found.len() != rules.len() || !found.iter().zip(&rules).all(as_written) {
            return Ok(State::Foreign);
        }
    }
    let written = elements(port, &guard);
    // Each by itself: while other ports come and go, the kernel can leave some out of a long list.
    for own in &written {
        if !own.is_there(nf_tables)? {
            return Ok(State::Foreign);
        }
    }
    let found = look_through(nf_tables, port, &SETS)?;
    Ok(if found.iter().all(|own| written.contains(own)) { State::Allows(guard) } else { State::Foreign })
}

/// An element of a set that is about one port.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    set: Set,
    key: Vec<u8>,
}

impl Own {
    /// The element of `set` about `port` and, if the set is one of claims, `claim`.
    fn of(set: Set, port: &IfName, claim: &[u8]) -> Self {
        let mut key = port.as_str().as_bytes().to_vec();
        key.resize(NAME, 0);
        key.extend_from_slice(claim);
        // Parts of a key begin at multiples of four bytes.
        key.resize(key.len().next_multiple_of(4), 0);
        Self { set, key }
    }

    /// What lets `port` claim the address in `text`.
    fn claiming(port: &IfName, text: &str) -> Option<Self> {
        match text.parse() {
            Ok(mac) => Some(Self::claiming_mac(port, mac)),
            Err(_) => text.parse().ok().map(|address| Self::claiming_address(port, address)),
        }
    }

    fn claiming_mac(port: &IfName, mac: Mac) -> Self {
        Self::of(MACS, port, &mac.octets())
    }

    fn claiming_address(port: &IfName, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of(V4, port, &v4.octets()),
            IpAddr::V6(v6) => Self::of(V6, port, &v6.octets()),
        }
    }

    fn element(&self) -> Element<'_> {
        Element { set: &self.set, key: &self.key }
    }

    fn delete(transaction: Transaction, own: &Self) -> Transaction {
        transaction.delete_element(&own.element())
    }

    fn is_there(&self, nf_tables: &NfTables) -> Result<bool, NfTablesError> {
        Ok(nf_tables.element(&self.element())?.is_some())
    }

    /// The MAC address it lets the port claim.
    fn mac(&self) -> Option<Mac> {
        let claim = self.key.get(NAME..NAME + 6).filter(|_| self.set == MACS)?;
        claim.try_into().ok()
    }

    /// The IP address it lets the port claim.
    fn address(&self) -> Option<IpAddr> {
        let claim = self.key.get(NAME..)?;
        match self.set {
            V4 => <[u8; 4]>::try_from(claim).ok().map(IpAddr::from),
            V6 => <[u8; 16]>::try_from(claim).ok().map(IpAddr::from),
            _ => None,
        }
    }
}

/// What the sets have of a port with that guard.
fn elements(port: &IfName, guard: &Guard) -> Vec<Own> {
    let mut elements = vec![Own::of(PORTS, port, &[])];
    if let Some(mac) = guard.mac {
        elements.extend([Own::of(MAC_CHECKED, port, &[]), Own::claiming_mac(port, mac)]);
    }
    if let Some(sources) = &guard.sources {
        elements.push(Own::of(IP_CHECKED, port, &[]));
        elements.extend(sources.iter().map(|address| Own::claiming_address(port, *address)));
    }
    elements
}

/// What the sets have of `port` now.
fn present(nf_tables: &NfTables, port: &IfName) -> Result<Vec<Own>, NfTablesError> {
    let mut elements: Vec<_> = [PORTS, MAC_CHECKED, IP_CHECKED].map(|set| Own::of(set, port, &[])).into();
    elements.extend(claims(nf_tables, port)?);
    let mut present = Vec::new();
    for element in elements {
        if element.is_there(nf_tables)? {
            present.push(element);
        }
    }
    Ok(present)
}

/// What `port` may claim, by its record; by all there is in the sets if that does not say.
fn claims(nf_tables: &NfTables, port: &IfName) -> Result<Vec<Own>, NfTablesError> {
    let recorded = match nf_tables.element(&Own::of(PORTS, port, &[]).element())? {
        Some(record) if record.comment == NOTHING => Some(Vec::new()),
        Some(record) => record.comment.split(", ").map(|text| Own::claiming(port, text)).collect(),
        // A port that nothing is known of; or somebody has removed its element by hand.
        None if !nf_tables.has_counter(&counter(port))? => Some(Vec::new()),
        None => None,
    };
    match recorded {
        Some(claims) => Ok(claims),
        None => look_through(nf_tables, port, &[MACS, V4, V6]),
    }
}

fn look_through(nf_tables: &NfTables, port: &IfName, sets: &[Set]) -> Result<Vec<Own>, NfTablesError> {
    let mut found = Vec::new();
    for set in sets {
        let name = Own::of(*set, port, &[]).key;
        let keys = nf_tables.elements(set)?.into_iter().map(|element| element.key);
        found.extend(keys.filter(|key| key.starts_with(&name)).map(|key| Own { set: *set, key }));
    }
    Ok(found)
}

/// What is written beside the name of a port with that guard.
fn record(guard: &Guard) -> String {
    let mac = guard.mac.iter().map(Mac::to_string);
    let addresses = guard.sources.iter().flatten().map(IpAddr::to_string);
    let list = mac.chain(addresses).collect::<Vec<_>>().join(", ");
    match list.len() {
        0 => NOTHING.to_owned(),
        1..=MAX_COMMENT => list,
        // Found by looking through the sets.
        _ => String::new(),
    }
}

fn with(transaction: Transaction, port: &IfName, guard: &Guard, comment: &str) -> Transaction {
    let transaction = transaction.add_counter(&counter(port), comment);
    elements(port, guard).iter().fold(transaction, |transaction, own| match own.set {
        PORTS => transaction.add_element(&own.element(), port.as_str(), &record(guard)),
        _ => transaction.add_key(&own.element()),
    })
}

fn counter(port: &IfName) -> Counter<'_> {
    Counter { table: TABLE, name: port.as_str() }
}

/// True if frames meet all the rules: ADD looks at how many there are, not at each.
fn stands(nf_tables: &NfTables) -> Result<bool, NfTablesError> {
    if !nf_tables.is_in_force(&PREROUTING)? {
        return Ok(false);
    }
    let all = rules::all();
    for (chain, rules) in &all {
        let jump = Expression::jump(chain.name);
        let jumps = all.iter().flat_map(|(_, rules)| rules.iter().flatten()).filter(|one| **one == jump);
        let uses = rules.len() + jumps.count();
        let found = nf_tables.chain(chain)?.map(|found| found.uses);
        if found.and_then(|found| usize::try_from(found).ok()) != Some(uses) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes what stands for any number of ports; what is there of it is made anew, at no moment without effect.
fn ground() -> Transaction {
    let all = rules::all();
    let mut transaction = SETS.iter().fold(Transaction::default().add_table(TABLE), Transaction::add_set);
    for (chain, _) in &all {
        transaction = transaction.add_chain(chain).flush_chain(chain);
    }
    for (chain, rules) in all {
        for expressions in rules {
            transaction = transaction.add_rule(&chain, &Rule { expressions, comment: "" });
        }
    }
    transaction
}
