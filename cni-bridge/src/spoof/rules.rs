//! The rules of the spoof check, in the order a frame meets them. They are the same for every port: what a port may claim
//! is looked up in a set, by the port's name and the claim.
//!
//! Each rule drops a lie and lets the rest go on; what meets none of them passes. Lies are told in the Ethernet header, in
//! ARP (RFC 826), in neighbour discovery (RFC 4861) and in the IP header.
//!
//! Neighbour discovery carries addresses in options that may stand anywhere, and nf_tables cannot walk a list. So a
//! message may have two options, one more than hosts send, of eight bytes each, and both places are looked at; and none
//! may hide behind extension headers. A redirect is held to the same: it may send others to nobody but its sender, and
//! what a longer one would redirect goes on by way of the router. Router advertisements have many options, so all the
//! places where one can begin are looked at, for the two bytes that a link-layer address begins with.
//!
//! A frame with a second VLAN tag is not looked into. It passes the check for MAC addresses (its own are in front of
//! the tags), and is dropped where IP addresses are checked.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{IP_CHAIN, IP_CHECKED, MAC_CHAIN, MAC_CHECKED, MACS, PORTS, PREROUTING, REFUSED, V4, V6};
use nf_tables::{Base, Chain, Compare, Expression, Field, Meta, Set};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// UDP source port 68, destination port 67: a DHCP client's.
const DHCP_CLIENT: [u8; 4] = [0, 68, 0, 67];

// ICMPv6 types: RFC 4861, RFC 2710, RFC 3810.
const LISTENER_REPORT: u8 = 131;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;
/// Option types: source and target link-layer address (RFC 4861, section 4.6.1).
const LINK_LAYER_OPTIONS: (u8, u8) = (1, 2);
const OPTION_LENGTH: u32 = 8;
/// Options that a message may have.
const OPTIONS: u32 = 2;
/// A router advertisement's bytes before its options, and how many times [`OPTION_LENGTH`] these may be long: room for
/// the addresses of four prefixes, MTU, name servers and search list.
const ADVERTISEMENT_FIXED: u32 = 16;
const ADVERTISEMENT_PLACES: u32 = 24;
/// Type and length of a source link-layer address on Ethernet.
const SOURCE_LINK_LAYER: [u8; 2] = [1, 1];

const IPV6_HEADER: u32 = 40;
/// The addresses that are a bridge's own business: spanning tree, link aggregation, 802.1X, LLDP (IEEE 802.1Q, table 8-1).
const RESERVED: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
const RESERVED_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];
const ETHER_DADDR: Field = Field { base: Base::Link, offset: 0, length: 6 };
const ETHER_SADDR: Field = Field { base: Base::Link, offset: 6, length: 6 };
const ARP_SENDER_MAC: Field = network(8, 6);
const ARP_SENDER_IP: Field = network(14, 4);
const IPV4_SADDR: Field = network(12, 4);
const IPV6_LENGTH: Field = network(4, 2);
const IPV6_NEXT_HEADER: Field = network(6, 1);
const IPV6_SADDR: Field = network(8, 16);
/// Where an ICMPv6 type is without extension headers, and with any.
const ICMPV6_TYPE: Field = network(IPV6_HEADER, 1);
const ICMPV6_TYPE_ANYWHERE: Field = Field { base: Base::Transport, offset: 0, length: 1 };
const ND_TARGET: Field = network(IPV6_HEADER + 8, 16);
const PORTS_OF_UDP: Field = Field { base: Base::Transport, offset: 0, length: 4 };

/// fe80::/10.
const LINK_LOCAL: [u8; 2] = [0xfe, 0x80];
const LINK_LOCAL_MASK: [u8; 2] = [0xff, 0xc0];

/// Messages of neighbour discovery of one layout.
struct Discovery {
    types: (u8, u8),
    /// Bytes before the options.
    fixed: u32,
}

const DISCOVERY: [Discovery; 3] = [
    Discovery { types: (ROUTER_SOLICITATION, ROUTER_SOLICITATION), fixed: 8 },
    Discovery { types: (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT), fixed: 24 },
    Discovery { types: (REDIRECT, REDIRECT), fixed: 40 },
];

const fn network(offset: u32, length: u32) -> Field {
    Field { base: Base::Network, offset, length }
}

/// Every chain with its rules, those in front that others jump to.
pub(super) fn all() -> [(Chain<'static>, Vec<Vec<Expression>>); 4] {
    [(REFUSED, refused()), (MAC_CHAIN, link_layer()), (IP_CHAIN, network_layer()), (PREROUTING, checked())]
}

/// Which ports are checked for what.
fn checked() -> Vec<Vec<Expression>> {
    let check = |(set, chain): (Set, Chain<'_>)| {
        vec![Expression::meta(Meta::InputName), Expression::in_set(&set), Expression::jump(chain.name)]
    };
    [(MAC_CHECKED, MAC_CHAIN), (IP_CHECKED, IP_CHAIN)].map(check).to_vec()
}

/// Counts for the port, and drops: two rules, so that a lie of a port without counter is dropped all the same.
fn refused() -> Vec<Vec<Expression>> {
    vec![vec![Expression::meta(Meta::InputName), Expression::count_by(&PORTS)], vec![Expression::drop()]]
}

/// MAC addresses.
fn link_layer() -> Vec<Vec<Expression>> {
    let mut rules = vec![
        dropping([vec![Expression::load(ETHER_DADDR), Expression::mask(&RESERVED_MASK), equal(&RESERVED)]]),
        dropping([foreign(ETHER_SADDR, &MACS)]),
        dropping([ether_type(ETHERTYPE_ARP), foreign(ARP_SENDER_MAC, &MACS)]),
        // Most packets are done here.
        unless_ipv6(),
        dropping([hidden_discovery()]),
    ];
    rules.extend(DISCOVERY.iter().flat_map(link_layer_options));
    rules.extend(router_advertisements());
    rules
}

/// IP addresses.
fn network_layer() -> Vec<Vec<Expression>> {
    let mut rules: Vec<_> =
        [ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN].map(|tag| dropping([ether_type(tag)])).to_vec();
    rules.extend(ipv4_sources());
    rules.extend([unless_ipv6(), dropping([hidden_discovery()])]);
    rules.extend(ipv6_sources());
    rules
}

fn unless_ipv6() -> Vec<Expression> {
    vec![
        Expression::meta(Meta::EtherType),
        Expression::compare(Compare::Differs, &ETHERTYPE_IPV6.to_be_bytes()),
        Expression::leave(),
    ]
}

/// Neighbour discovery behind extension headers.
fn hidden_discovery() -> Vec<Expression> {
    [
        vec![
            Expression::load(IPV6_NEXT_HEADER),
            Expression::compare(Compare::Differs, &[ICMPV6]),
            Expression::meta(Meta::Transport),
            equal(&[ICMPV6]),
        ],
        within(ICMPV6_TYPE_ANYWHERE, (ROUTER_SOLICITATION, REDIRECT)),
    ]
    .concat()
}

/// ARP and IPv4. Who has no address yet sends from 0.0.0.0: probes by ARP (RFC 5227), and DHCP.
fn ipv4_sources() -> [Vec<Expression>; 3] {
    let nobody = Ipv4Addr::UNSPECIFIED.octets();
    let somebody = vec![Expression::load(ARP_SENDER_IP), Expression::compare(Compare::Differs, &nobody)];
    let dhcp = [
        ether_type(ETHERTYPE_IPV4),
        vec![Expression::load(IPV4_SADDR), equal(&nobody)],
        vec![Expression::meta(Meta::Transport), equal(&[UDP])],
        vec![Expression::load(PORTS_OF_UDP), equal(&DHCP_CLIENT), Expression::leave()],
    ];
    [
        dropping([ether_type(ETHERTYPE_ARP), somebody, foreign(ARP_SENDER_IP, &V4)]),
        dhcp.concat(),
        dropping([ether_type(ETHERTYPE_IPV4), foreign(IPV4_SADDR, &V4)]),
    ]
}

/// IPv6, and the addresses a node says are its own. Link-local addresses are free, since every node makes its own. Who
/// has no address yet sends from `::`: duplicate address detection, router solicitations, listener reports.
fn ipv6_sources() -> [Vec<Expression>; 6] {
    let nobody = || vec![Expression::load(IPV6_SADDR), equal(&Ipv6Addr::UNSPECIFIED.octets())];
    let not_own = |field: Field| {
        let prefix = vec![Expression::load(Field { length: 2, ..field }), Expression::mask(&LINK_LOCAL_MASK)];
        [foreign(field, &V6), prefix, vec![Expression::compare(Compare::Differs, &LINK_LOCAL)]].concat()
    };
    let discovery = |kind: u8| {
        vec![
            Expression::load(IPV6_NEXT_HEADER),
            equal(&[ICMPV6]),
            Expression::load(ICMPV6_TYPE),
            equal(&[kind]),
        ]
    };
    let from_nobody = |types: (u8, u8)| {
        let icmpv6 = vec![Expression::meta(Meta::Transport), equal(&[ICMPV6])];
        [nobody(), icmpv6, within(ICMPV6_TYPE_ANYWHERE, types), vec![Expression::leave()]].concat()
    };
    [
        dropping([nobody(), discovery(NEIGHBOUR_SOLICITATION), not_own(ND_TARGET)]),
        dropping([discovery(NEIGHBOUR_ADVERTISEMENT), not_own(ND_TARGET)]),
        from_nobody((LISTENER_REPORT, ROUTER_SOLICITATION)),
        from_nobody((NEIGHBOUR_SOLICITATION, NEIGHBOUR_SOLICITATION)),
        from_nobody((LISTENER_REPORT_2, LISTENER_REPORT_2)),
        dropping([not_own(IPV6_SADDR)]),
    ]
}

/// No more options than are looked at; and in each place no other's link-layer address.
fn link_layer_options(discovery: &Discovery) -> Vec<Vec<Expression>> {
    let &Discovery { types, fixed } = discovery;
    let message = || {
        let icmpv6 = vec![Expression::load(IPV6_NEXT_HEADER), equal(&[ICMPV6])];
        [icmpv6, within(ICMPV6_TYPE, types)].concat()
    };
    let longest = u16::try_from(fixed + OPTIONS * OPTION_LENGTH).unwrap_or(u16::MAX);
    let too_long =
        vec![Expression::load(IPV6_LENGTH), Expression::compare(Compare::Above, &longest.to_be_bytes())];
    let mut rules = vec![dropping([message(), too_long])];
    for option in (0..OPTIONS).map(|number| IPV6_HEADER + fixed + number * OPTION_LENGTH) {
        let is_address = within(network(option, 1), LINK_LAYER_OPTIONS);
        rules.push(dropping([message(), is_address, foreign(network(option + 2, 6), &MACS)]));
    }
    rules
}

/// The last rules, met by router advertisements only: no more places for options than are looked at, and in none of them
/// another's link-layer address.
fn router_advertisements() -> Vec<Vec<Expression>> {
    let leaving = |field: Field, other: u8| {
        vec![Expression::load(field), Expression::compare(Compare::Differs, &[other]), Expression::leave()]
    };
    let longest =
        u16::try_from(ADVERTISEMENT_FIXED + ADVERTISEMENT_PLACES * OPTION_LENGTH).unwrap_or(u16::MAX);
    let mut rules = vec![
        leaving(IPV6_NEXT_HEADER, ICMPV6),
        leaving(ICMPV6_TYPE, ROUTER_ADVERTISEMENT),
        dropping([vec![
            Expression::load(IPV6_LENGTH),
            Expression::compare(Compare::Above, &longest.to_be_bytes()),
        ]]),
    ];
    rules.extend((0..ADVERTISEMENT_PLACES).map(|number| {
        let option = IPV6_HEADER + ADVERTISEMENT_FIXED + number * OPTION_LENGTH;
        let is_address = vec![Expression::load(network(option, 2)), equal(&SOURCE_LINK_LAYER)];
        dropping([is_address, foreign(network(option + 2, 6), &MACS)])
    }));
    rules
}

/// The rule that counts and drops what meets all `conditions`.
fn dropping<const N: usize>(conditions: [Vec<Expression>; N]) -> Vec<Expression> {
    let mut rule = conditions.concat();
    rule.extend([Expression::counter(), Expression::jump(REFUSED.name)]);
    rule
}

fn ether_type(kind: u16) -> Vec<Expression> {
    vec![Expression::meta(Meta::EtherType), equal(&kind.to_be_bytes())]
}

fn equal(value: &[u8]) -> Expression {
    Expression::compare(Compare::Equal, value)
}

/// What `field` holds is nothing that the port may claim by `own`.
fn foreign(field: Field, own: &Set) -> Vec<Expression> {
    vec![Expression::meta(Meta::InputName), Expression::load_second(field), Expression::not_in_set(own)]
}

fn within(field: Field, (first, last): (u8, u8)) -> Vec<Expression> {
    vec![Expression::load(field), Expression::within(&[first], &[last])]
}
