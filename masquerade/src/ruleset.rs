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
use nftables::schema::{Chain, NfCmd, NfListObject, NfObject, Nftables, Rule, Table};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use crate::config::{Forwarded, PortRange, Protocol, Rules, Subnet};
use parts::{
    Addresses, accept, arriving_by, counter, destination, dnat, drop_it, has_state, is_family, is_local,
    is_translated, jump, leave, leaving_by, masquerade, not_destination, not_source, one_of, ports_of, snat,
    source, to_this_host,
};

/// What every table's name begins with; the pod interface's name follows.
const TABLE: &str = "guestwire-masquerade-";

/// Where chains sit in a hook (`linux/netfilter_ipv4.h`): raw, destination NAT, filter, source NAT.
const RAW: i32 = -300;
const DNAT: i32 = -100;
const FILTER: i32 = 0;
const SNAT: i32 = 100;

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

/// The table of a pod interface.
pub(crate) fn table(pod: &IfName) -> Table<'static> {
    Table { family: NfFamily::INet, name: format!("{TABLE}{pod}").into(), handle: None }
}

/// The table with everything in it, in the order nft(8) lists it: table, chains, rules by chain.
pub(crate) fn objects(plan: &Plan<'_>) -> Vec<NfListObject<'static>> {
    let mut table = Content::new(table(plan.pod));
    table.hooked("unforgeable", NfChainType::Filter, NfHook::Prerouting, RAW);
    table.hooked("prerouting", NfChainType::NAT, NfHook::Prerouting, DNAT);
    table.hooked("output", NfChainType::NAT, NfHook::Output, DNAT);
    table.hooked("forward", NfChainType::Filter, NfHook::Forward, FILTER);
    table.hooked("postrouting", NfChainType::NAT, NfHook::Postrouting, SNAT);
    for name in ["inbound", "local", "guest"] {
        table.chain(name);
    }
    unforgeable(&mut table, plan);
    prerouting(&mut table, plan);
    output(&mut table, plan);
    forward(&mut table, plan);
    postrouting(&mut table, plan);
    inbound(&mut table, plan);
    local(&mut table, plan);
    guest(&mut table, plan);
    table.into_objects()
}

/// One transaction that replaces the table of `pod` by `objects`, whatever was in it before.
pub(crate) fn replacement(pod: &IfName, objects: Vec<NfListObject<'static>>) -> Nftables<'static> {
    // Adding first makes deleting safe where there is none.
    let cleared =
        [NfCmd::Add(NfListObject::Table(table(pod))), NfCmd::Delete(NfListObject::Table(table(pod)))];
    let made = objects.into_iter().map(NfCmd::Add);
    Nftables { objects: cleared.into_iter().chain(made).map(NfObject::CmdObject).collect() }
}

/// One transaction that removes the table of `pod`; absent is fine.
pub(crate) fn removal(pod: &IfName) -> Nftables<'static> {
    replacement(pod, Vec::new())
}

fn unforgeable(table: &mut Content, plan: &Plan<'_>) {
    // IPv6 needs no such rule: the kernel itself drops what arrives for ::1.
    if plan.subnets.iter().any(|subnet| !subnet.is_v6()) {
        let to_loopback =
            [arriving_by(plan.bridge), destination(false, all_loopback(false)), counter(), drop_it()];
        table.rule("unforgeable", "the guest has no part in the pod's loopback", to_loopback);
    }
}

fn prerouting(table: &mut Content, plan: &Plan<'_>) {
    let arriving = [arriving_by(plan.pod), to_this_host(), counter(), jump("inbound")];
    table.rule("prerouting", "what arrives at the pod", arriving);
    if plan.rules.istio {
        // The proxy takes the guest's own connections.
        return;
    }
    for subnet in plan.subnets {
        let not_gateway = not_destination(subnet.is_v6(), subnet.gateway.ip().into());
        let hairpin = [arriving_by(plan.bridge), not_gateway, is_local(), counter(), jump("inbound")];
        table.rule("prerouting", "the guest's connections to its own pod", hairpin);
    }
}

fn output(table: &mut Content, plan: &Plan<'_>) {
    if !plan.takes_loopback {
        return;
    }
    for subnet in plan.subnets {
        let is_v6 = subnet.is_v6();
        let to_loopback = [destination(is_v6, loopback(is_v6).into()), counter(), jump("local")];
        table.rule("output", "the pod's own connections to its loopback", to_loopback);
        if plan.rules.istio {
            let to_itself = [
                not_destination(is_v6, subnet.gateway.ip().into()),
                not_destination(is_v6, all_loopback(is_v6)),
                is_local(),
                counter(),
                jump("local"),
            ];
            table.rule("output", "what the proxy hands on to the pod's address", to_itself);
        }
    }
}

fn forward(table: &mut Content, plan: &Plan<'_>) {
    let known = [has_state(&["established", "related"]), counter(), accept()];
    table.rule("forward", "known connections", known);
    for is_v6 in [false, true] {
        let forged = match plan.subnets.iter().find(|subnet| subnet.is_v6() == is_v6) {
            Some(subnet) => not_source(is_v6, subnet.network.into()),
            // A family that is off here may be on for another interface of the pod.
            None => is_family(is_v6),
        };
        table.rule("forward", "forged sources", [arriving_by(plan.bridge), forged, counter(), drop_it()]);
    }
    let translated = [leaving_by(plan.bridge), is_translated(), counter(), accept()];
    table.rule("forward", "what was forwarded to the guest", translated);
    table.rule("forward", "nothing else reaches the guest", [leaving_by(plan.bridge), counter(), drop_it()]);
}

fn postrouting(table: &mut Content, plan: &Plan<'_>) {
    for subnet in plan.subnets {
        let from_guest = [source(subnet.is_v6(), subnet.network.into()), counter(), masquerade()];
        table.rule("postrouting", "what the guest sends", from_guest);
    }
    for subnet in plan.subnets {
        let is_v6 = subnet.is_v6();
        let mut sources = vec![loopback(is_v6)];
        if plan.rules.istio {
            sources.push(if is_v6 { ENVOY_V6.into() } else { ENVOY_V4.into() });
        }
        let from_loopback =
            [leaving_by(plan.bridge), source(is_v6, one_of(sources)), counter(), snat(subnet.gateway.ip())];
        table.rule("postrouting", "loopback sources, which mean nothing to the guest", from_loopback);
    }
}

fn inbound(table: &mut Content, plan: &Plan<'_>) {
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
        table.rule("inbound", "past the proxy", [ports_of(Protocol::Tcp, &[ssh]), counter(), jump("guest")]);
    }
}

fn local(table: &mut Content, plan: &Plan<'_>) {
    keep_reserved(table, "local", plan);
    if plan.rules.istio && plan.rules.forwarded == Forwarded::All {
        let ports = ENVOY_PORTS.map(|port| PortRange { first: port, last: port });
        table.rule("local", "the proxy's own ports", [ports_of(Protocol::Tcp, &ports), counter(), leave()]);
    }
    forward_ports(table, "local", &plan.rules.forwarded);
}

fn guest(table: &mut Content, plan: &Plan<'_>) {
    for subnet in plan.subnets {
        table.rule("guest", "to the guest", [counter(), dnat(subnet.guest)]);
    }
}

fn keep_reserved(table: &mut Content, chain: &'static str, plan: &Plan<'_>) {
    for (protocol, ports) in plan.rules.reserved.iter() {
        table.rule(chain, "reserved", [ports_of(protocol, ports), counter(), leave()]);
    }
}

fn forward_ports(table: &mut Content, chain: &'static str, forwarded: &Forwarded) {
    match forwarded {
        Forwarded::All => table.rule(chain, "everything", [counter(), jump("guest")]),
        Forwarded::Listed(ports) => {
            for (protocol, ports) in ports.iter() {
                table.rule(chain, "listed ports", [ports_of(protocol, ports), counter(), jump("guest")]);
            }
        }
    }
}

fn loopback(is_v6: bool) -> IpAddr {
    if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

fn all_loopback(is_v6: bool) -> Addresses {
    if is_v6 { loopback(is_v6).into() } else { Addresses::network(Ipv4Addr::new(127, 0, 0, 0).into(), 8) }
}

/// A table being filled.
struct Content {
    table: Table<'static>,
    chains: Vec<Chain<'static>>,
    rules: Vec<Rule<'static>>,
}

impl Content {
    fn new(table: Table<'static>) -> Self {
        Self { table, chains: Vec::new(), rules: Vec::new() }
    }

    fn chain(&mut self, name: &'static str) {
        let Table { family, name: table, .. } = self.table.clone();
        self.chains.push(Chain { family, table, name: name.into(), ..Chain::default() });
    }

    fn hooked(&mut self, name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) {
        let Table { family, name: table, .. } = self.table.clone();
        self.chains.push(Chain {
            family,
            table,
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        });
    }

    fn rule(
        &mut self,
        chain: &'static str,
        comment: &'static str,
        statements: impl IntoIterator<Item = Statement<'static>>,
    ) {
        let Table { family, name: table, .. } = self.table.clone();
        self.rules.push(Rule {
            family,
            table,
            chain: chain.into(),
            expr: statements.into_iter().collect(),
            comment: Some(comment.into()),
            ..Rule::default()
        });
    }

    fn into_objects(self) -> Vec<NfListObject<'static>> {
        let Self { table, chains, rules } = self;
        let table = [NfListObject::Table(table)].into_iter();
        table
            .chain(chains.into_iter().map(NfListObject::Chain))
            .chain(rules.into_iter().map(NfListObject::Rule))
            .collect()
    }
}

#[cfg(test)]
mod tests;
