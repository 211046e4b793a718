//! The packet filter rules of one masqueraded interface, as values: what ADD installs is what CHECK expects.
//!
//! Each interface has a table of its own, `inet guestwire-masquerade-<pod interface>`, replaced as a whole in one
//! transaction, both address families at once. Nothing outside that table is touched or read. In words, for `eth0`:
//!
//! ```text
//! unforgeable  what comes from the guest for 127.0.0.0/8 is dropped: route_localnet would deliver it
//! prerouting   new connections to the pod, from outside or from the guest itself   → inbound
//! output       new connections of the pod to its own loopback                      → local
//! inbound      reserved ports stay the pod's; forwarded ones                       → guest
//! local        the same for connections from the pod itself
//! guest        destination NAT
//! forward      only what was translated reaches the guest; only its own subnet's addresses leave it
//! postrouting  what leaves gets the pod's address; loopback sources become the gateway
//! ```
//!
//! No rule names an address of the pod, so the pod may get another without a new ADD. The chains with NAT see the
//! first packet of a connection only; of the others a packet of a known connection meets one rule each.

mod parts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net_types::IfName;
use nf_tables::{Chain, Family, Hook, NfTables, NfTablesError, Place, Table, Transaction};

use crate::config::{Forwarded, PortRange, PortSet, Protocol, Rules, Subnet};
use parts::Addresses;
pub(crate) use parts::Part;
use parts::Part::{
    Accept, ArrivingBy, Counter, Destination, Dnat, Drop, IsFamily, IsKnown, IsLocal, IsTranslated, Jump,
    Leave, LeavingBy, Masquerade, NotDestination, NotSource, Ports, Snat, Source, ToThisHost,
};

/// What every table's name begins with; the pod interface's name follows.
const TABLE: &str = "guestwire-masquerade-";

/// The chains, and where packets enter them by themselves. Priorities (`linux/netfilter_ipv4.h`): raw, destination NAT,
/// filter, source NAT.
pub(crate) const CHAINS: [(&str, Option<Hook>); 8] = [
    ("unforgeable", Some(Hook::Filter { place: Place::Prerouting, priority: -300 })),
    ("prerouting", Some(Hook::Nat { place: Place::Prerouting, priority: -100 })),
    ("output", Some(Hook::Nat { place: Place::Output, priority: -100 })),
    ("forward", Some(Hook::Filter { place: Place::Forward, priority: 0 })),
    ("postrouting", Some(Hook::Nat { place: Place::Postrouting, priority: 100 })),
    ("inbound", None),
    ("local", None),
    ("guest", None),
];

/// Envoy's address for connections it hands on to the pod (`InboundPassthroughBindIpv4`, `…Ipv6`).
const ENVOY_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const ENVOY_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Istio's own ports (its "Ports used by Istio" page, and those KubeVirt leaves to it).
const ENVOY_PORTS: [u16; 10] = [15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090];
/// Beside an Istio proxy only this port is forwarded straight from outside.
const SSH: u16 = 22;

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan<'a> {
    /// The pod interface.
    pub(crate) pod: &'a IfName,
    /// The bridge to the guest.
    pub(crate) bridge: &'a IfName,
    /// The guest's subnets, one for each address family the pod has.
    pub(crate) subnets: &'a [Subnet],
    /// What is forwarded.
    pub(crate) rules: &'a Rules,
    /// Loopback connections of the pod are the guest's: true for one interface of a pod, since it has one loopback.
    pub(crate) takes_loopback: bool,
}

/// A rule, what it is for, and the chain it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) chain: &'static str,
    pub(crate) comment: &'static str,
    pub(crate) parts: Vec<Part>,
}

/// A table with all its rules, in order; the chains are always the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ruleset {
    name: String,
    pub(crate) rules: Vec<Rule>,
}

impl Rule {
    /// What the kernel is told.
    pub(crate) fn to_kernel(&self) -> nf_tables::Rule<'_> {
        let expressions = self.parts.iter().flat_map(Part::expressions).collect();
        nf_tables::Rule { expressions, comment: self.comment }
    }
}

impl Ruleset {
    /// The rules of a plan.
    pub(crate) fn new(plan: &Plan<'_>) -> Self {
        let mut table = Self { name: name_of(plan.pod), rules: Vec::new() };
        unforgeable(&mut table, plan);
        prerouting(&mut table, plan);
        output(&mut table, plan);
        forward(&mut table, plan);
        postrouting(&mut table, plan);
        inbound(&mut table, plan);
        local(&mut table, plan);
        guest(&mut table, plan);
        table
    }

    /// The table.
    pub(crate) fn table(&self) -> Table<'_> {
        table(&self.name)
    }

    /// The chains, with where they are.
    pub(crate) fn chains(&self) -> impl Iterator<Item = Chain<'_>> {
        CHAINS.iter().map(|(name, hook)| Chain { table: self.table(), name, hook: *hook })
    }

    /// Puts the rules in place, all at once, instead of those that an earlier ADD may have left. Only where there are
    /// some are they deleted: the kernel waits for the last packet in what is deleted, some 10 ms.
    pub(crate) fn install(&self, nf_tables: &NfTables) -> Result<(), NfTablesError> {
        if nf_tables.table(self.table())?.is_none() {
            match nf_tables.commit(&self.fill(Transaction::default().create_table(self.table()))) {
                // Somebody was faster.
                Err(error) if error.already_exists() => {}
                other => return other,
            }
        }
        nf_tables.commit(&self.replacement())
    }

    /// One transaction that replaces the table, whatever was in it before; also if there was none.
    pub(crate) fn replacement(&self) -> Transaction {
        let table = self.table();
        self.fill(Transaction::default().add_table(table).delete_table(table).create_table(table))
    }

    fn fill(&self, mut transaction: Transaction) -> Transaction {
        for chain in self.chains() {
            transaction = transaction.add_chain(&chain);
        }
        for rule in &self.rules {
            let chain = Chain { table: self.table(), name: rule.chain, hook: None };
            transaction = transaction.add_rule(&chain, &rule.to_kernel());
        }
        transaction
    }

    fn rule(&mut self, chain: &'static str, comment: &'static str, parts: impl IntoIterator<Item = Part>) {
        self.rules.push(Rule { chain, comment, parts: parts.into_iter().collect() });
    }

    /// A rule for each range of ports.
    fn rules_by_port(&mut self, chain: &'static str, comment: &'static str, ports: &PortSet, then: &Part) {
        for (protocol, ranges) in ports.iter() {
            for range in ranges {
                self.rule(chain, comment, [Ports(protocol, *range), Counter, then.clone()]);
            }
        }
    }
}

/// Removes the rules of `pod`; absent is fine.
pub(crate) fn remove(nf_tables: &NfTables, pod: &IfName) -> Result<(), NfTablesError> {
    let name = name_of(pod);
    // Asked first, because a transaction that fails waits until no packet is in any rule.
    if nf_tables.table(table(&name))?.is_none() {
        return Ok(());
    }
    match nf_tables.commit(&Transaction::default().delete_table(table(&name))) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn name_of(pod: &IfName) -> String {
    format!("{TABLE}{pod}")
}

fn table(name: &str) -> Table<'_> {
    Table { family: Family::Inet, name }
}

fn unforgeable(table: &mut Ruleset, plan: &Plan<'_>) {
    // IPv6 needs no such rule: the kernel itself drops what arrives for ::1.
    if plan.subnets.iter().any(|subnet| !subnet.is_v6()) {
        let to_loopback = [ArrivingBy(plan.bridge.clone()), Destination(all_loopback(false)), Counter, Drop];
        table.rule("unforgeable", "the guest has no part in the pod's loopback", to_loopback);
    }
}

fn prerouting(table: &mut Ruleset, plan: &Plan<'_>) {
    let arriving = [ArrivingBy(plan.pod.clone()), ToThisHost, Counter, Jump("inbound")];
    table.rule("prerouting", "what arrives at the pod", arriving);
    if plan.rules.istio {
        // The proxy takes the guest's own connections.
        return;
    }
    for subnet in plan.subnets {
        let not_gateway = NotDestination(subnet.gateway.ip().into());
        let hairpin = [ArrivingBy(plan.bridge.clone()), not_gateway, IsLocal, Counter, Jump("inbound")];
        table.rule("prerouting", "the guest's connections to its own pod", hairpin);
    }
}

fn output(table: &mut Ruleset, plan: &Plan<'_>) {
    if !plan.takes_loopback {
        return;
    }
    for subnet in plan.subnets {
        let is_v6 = subnet.is_v6();
        let to_loopback = [Destination(loopback(is_v6).into()), Counter, Jump("local")];
        table.rule("output", "the pod's own connections to its loopback", to_loopback);
        if plan.rules.istio {
            let to_itself = [
                NotDestination(subnet.gateway.ip().into()),
                NotDestination(all_loopback(is_v6)),
                IsLocal,
                Counter,
                Jump("local"),
            ];
            table.rule("output", "what the proxy hands on to the pod's address", to_itself);
        }
    }
}

fn forward(table: &mut Ruleset, plan: &Plan<'_>) {
    let known = [IsKnown, Counter, Accept];
    table.rule("forward", "known connections", known);
    for is_v6 in [false, true] {
        let forged = match plan.subnets.iter().find(|subnet| subnet.is_v6() == is_v6) {
            Some(subnet) => NotSource(subnet.network.into()),
            // A family that is off here may be on for another interface of the pod.
            None => IsFamily { is_v6 },
        };
        table.rule("forward", "forged sources", [ArrivingBy(plan.bridge.clone()), forged, Counter, Drop]);
    }
    let translated = [LeavingBy(plan.bridge.clone()), IsTranslated, Counter, Accept];
    table.rule("forward", "what was forwarded to the guest", translated);
    table.rule("forward", "nothing else reaches the guest", [LeavingBy(plan.bridge.clone()), Counter, Drop]);
}

fn postrouting(table: &mut Ruleset, plan: &Plan<'_>) {
    for subnet in plan.subnets {
        let from_guest = [Source(subnet.network.into()), Counter, Masquerade];
        table.rule("postrouting", "what the guest sends", from_guest);
    }
    for subnet in plan.subnets {
        let is_v6 = subnet.is_v6();
        let mut sources = vec![loopback(is_v6)];
        if plan.rules.istio {
            sources.push(if is_v6 { ENVOY_V6.into() } else { ENVOY_V4.into() });
        }
        for address in sources {
            let from_loopback =
                [LeavingBy(plan.bridge.clone()), Source(address.into()), Counter, Snat(subnet.gateway.ip())];
            table.rule("postrouting", "loopback sources, which mean nothing to the guest", from_loopback);
        }
    }
}

fn inbound(table: &mut Ruleset, plan: &Plan<'_>) {
    keep_reserved(table, "inbound", plan);
    if !plan.rules.istio {
        return forward_ports(table, "inbound", &plan.rules.forwarded);
    }
    let takes_ssh = match &plan.rules.forwarded {
        Forwarded::All => true,
        Forwarded::Listed(ports) => ports.contains(Protocol::Tcp, SSH),
    };
    if takes_ssh {
        let ssh = PortRange { first: SSH, last: SSH };
        table.rule("inbound", "past the proxy", [Ports(Protocol::Tcp, ssh), Counter, Jump("guest")]);
    }
}

fn local(table: &mut Ruleset, plan: &Plan<'_>) {
    keep_reserved(table, "local", plan);
    if plan.rules.istio && plan.rules.forwarded == Forwarded::All {
        for port in ENVOY_PORTS {
            let port = PortRange { first: port, last: port };
            table.rule("local", "the proxy's own ports", [Ports(Protocol::Tcp, port), Counter, Leave]);
        }
    }
    forward_ports(table, "local", &plan.rules.forwarded);
}

fn guest(table: &mut Ruleset, plan: &Plan<'_>) {
    for subnet in plan.subnets {
        table.rule("guest", "to the guest", [Counter, Dnat(subnet.guest)]);
    }
}

fn keep_reserved(table: &mut Ruleset, chain: &'static str, plan: &Plan<'_>) {
    table.rules_by_port(chain, "reserved", &plan.rules.reserved, &Leave);
}

fn forward_ports(table: &mut Ruleset, chain: &'static str, forwarded: &Forwarded) {
    match forwarded {
        Forwarded::All => table.rule(chain, "everything", [Counter, Jump("guest")]),
        Forwarded::Listed(ports) => table.rules_by_port(chain, "listed ports", ports, &Jump("guest")),
    }
}

fn loopback(is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

fn all_loopback(is_v6: bool) -> Addresses {
    if is_v6 { loopback(is_v6).into() } else { Addresses::network(Ipv4Addr::new(127, 0, 0, 0).into(), 8) }
}

#[cfg(test)]
mod tests;
