//! The rules of the spoof check, in the order a packet meets them.
//!
//! Each drops a lie and lets the rest go on; what meets none of them passes. Lies are told in the Ethernet header, in
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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net_types::Mac;

use super::Guard;
use nf_tables::{Base, Compare, Expression, Field, FoundRule, Meta, compared};

/// `ARPHRD_ETHER`: with it in front, nft(8) shows what follows in words.
const ETHER: u16 = 1;
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
const PORTS: Field = Field { base: Base::Transport, offset: 0, length: 4 };

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

/// The rules that enforce `guard`.
pub(super) fn of(guard: &Guard) -> Vec<Vec<Expression>> {
    let mut rules = Vec::new();
    if let Some(mac) = guard.mac {
        rules.push(dropping([
            vec![Expression::meta(Meta::InputType), equal(&ETHER.to_ne_bytes())],
            differs(ETHER_SADDR, &mac.octets()),
        ]));
        rules.push(dropping([ether_type(ETHERTYPE_ARP), differs(ARP_SENDER_MAC, &mac.octets())]));
    }
    if let Some(sources) = &guard.sources {
        rules.extend([ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN].map(|tag| dropping([ether_type(tag)])));
        rules.extend(ipv4_sources(&of_family(sources, false)));
    }
    // Most packets are done here.
    rules.push(vec![
        Expression::meta(Meta::EtherType),
        Expression::compare(Compare::Differs, &ETHERTYPE_IPV6.to_be_bytes()),
        Expression::accept(),
    ]);
    rules.push(dropping([
        differs(IPV6_NEXT_HEADER, &[ICMPV6]),
        vec![Expression::meta(Meta::Transport), equal(&[ICMPV6])],
        within(ICMPV6_TYPE_ANYWHERE, (ROUTER_SOLICITATION, REDIRECT)),
    ]));
    if let Some(mac) = guard.mac {
        rules.extend(DISCOVERY.iter().flat_map(|discovery| link_layer_options(discovery, mac)));
    }
    if let Some(sources) = &guard.sources {
        rules.extend(ipv6_sources(&of_family(sources, true)));
    }
    if let Some(mac) = guard.mac {
        rules.extend(router_advertisements(mac));
    }
    rules
}

/// What the rules that were found may have been made of; whether they were, [`of`] tells.
pub(super) fn read(found: &[FoundRule]) -> Guard {
    let values =
        |field| found.iter().flat_map(move |rule| compared(&rule.expressions, field, Compare::Differs));
    let mac = values(ETHER_SADDR).find_map(|value| Mac::try_from(&value[..]).ok());
    let checks_sources = values(ARP_SENDER_IP).next().is_some();
    let v4 = values(IPV4_SADDR).filter_map(|value| <[u8; 4]>::try_from(value).ok()).map(IpAddr::from);
    let v6 = values(IPV6_SADDR).filter_map(|value| <[u8; 16]>::try_from(value).ok()).map(IpAddr::from);
    Guard::new(mac, checks_sources.then(|| v4.chain(v6).collect()))
}

/// ARP and IPv4. Who has no address yet sends from 0.0.0.0: probes by ARP (RFC 5227), and DHCP.
fn ipv4_sources(allowed: &[Vec<u8>]) -> [Vec<Expression>; 3] {
    let nobody = Ipv4Addr::UNSPECIFIED.octets();
    let with_nobody: Vec<_> = [&[nobody.to_vec()], allowed].concat();
    let dhcp = [
        ether_type(ETHERTYPE_IPV4),
        vec![Expression::load(IPV4_SADDR), equal(&nobody)],
        vec![Expression::meta(Meta::Transport), equal(&[UDP])],
        vec![Expression::load(PORTS), equal(&DHCP_CLIENT), Expression::accept()],
    ];
    [
        dropping([ether_type(ETHERTYPE_ARP), none_of(ARP_SENDER_IP, &with_nobody)]),
        dhcp.concat(),
        dropping([ether_type(ETHERTYPE_IPV4), none_of(IPV4_SADDR, allowed)]),
    ]
}

/// IPv6, and the addresses a node says are its own. Link-local addresses are free, since every node makes its own. Who
/// has no address yet sends from `::`: duplicate address detection, router solicitations, listener reports.
fn ipv6_sources(allowed: &[Vec<u8>]) -> [Vec<Expression>; 6] {
    let nobody = || vec![Expression::load(IPV6_SADDR), equal(&Ipv6Addr::UNSPECIFIED.octets())];
    let foreign = |field: Field| {
        let prefix = Field { length: 2, ..field };
        [none_of(field, allowed), vec![Expression::load(prefix), Expression::mask(&LINK_LOCAL_MASK)]].concat()
    };
    let not_link_local = || vec![Expression::compare(Compare::Differs, &LINK_LOCAL)];
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
        [nobody(), icmpv6, within(ICMPV6_TYPE_ANYWHERE, types), vec![Expression::accept()]].concat()
    };
    [
        dropping([nobody(), discovery(NEIGHBOUR_SOLICITATION), foreign(ND_TARGET), not_link_local()]),
        dropping([discovery(NEIGHBOUR_ADVERTISEMENT), foreign(ND_TARGET), not_link_local()]),
        from_nobody((LISTENER_REPORT, ROUTER_SOLICITATION)),
        from_nobody((NEIGHBOUR_SOLICITATION, NEIGHBOUR_SOLICITATION)),
        from_nobody((LISTENER_REPORT_2, LISTENER_REPORT_2)),
        dropping([foreign(IPV6_SADDR), not_link_local()]),
    ]
}

/// No more options than are looked at; and in each place no other's link-layer address.
fn link_layer_options(discovery: &Discovery, mac: Mac) -> Vec<Vec<Expression>> {
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
        let forged =
            [within(network(option, 1), LINK_LAYER_OPTIONS), differs(network(option + 2, 6), &mac.octets())];
        rules.push(dropping([message(), forged.concat()]));
    }
    rules
}

/// The last rules, met by router advertisements only: no more places for options than are looked at, and in none of them
/// another's link-layer address.
fn router_advertisements(mac: Mac) -> Vec<Vec<Expression>> {
    let passing = |condition: Vec<Expression>| [condition, vec![Expression::accept()]].concat();
    let longest =
        u16::try_from(ADVERTISEMENT_FIXED + ADVERTISEMENT_PLACES * OPTION_LENGTH).unwrap_or(u16::MAX);
    let mut rules = vec![
        passing(differs(IPV6_NEXT_HEADER, &[ICMPV6])),
        passing(differs(ICMPV6_TYPE, &[ROUTER_ADVERTISEMENT])),
        dropping([vec![
            Expression::load(IPV6_LENGTH),
            Expression::compare(Compare::Above, &longest.to_be_bytes()),
        ]]),
    ];
    rules.extend((0..ADVERTISEMENT_PLACES).map(|number| {
        let option = IPV6_HEADER + ADVERTISEMENT_FIXED + number * OPTION_LENGTH;
        let is_address = vec![Expression::load(network(option, 2)), equal(&SOURCE_LINK_LAYER)];
        dropping([is_address, differs(network(option + 2, 6), &mac.octets())])
    }));
    rules
}

/// The rule that counts and drops what meets all `conditions`.
fn dropping<const N: usize>(conditions: [Vec<Expression>; N]) -> Vec<Expression> {
    let mut rule = conditions.concat();
    rule.extend([Expression::counter(), Expression::drop()]);
    rule
}

fn ether_type(kind: u16) -> Vec<Expression> {
    vec![Expression::meta(Meta::EtherType), equal(&kind.to_be_bytes())]
}

fn equal(value: &[u8]) -> Expression {
    Expression::compare(Compare::Equal, value)
}

fn differs(field: Field, value: &[u8]) -> Vec<Expression> {
    vec![Expression::load(field), Expression::compare(Compare::Differs, value)]
}

fn none_of(field: Field, values: &[Vec<u8>]) -> Vec<Expression> {
    let compare = |value: &Vec<u8>| Expression::compare(Compare::Differs, value);
    std::iter::once(Expression::load(field)).chain(values.iter().map(compare)).collect()
}

fn within(field: Field, (first, last): (u8, u8)) -> Vec<Expression> {
    vec![Expression::load(field), Expression::within(&[first], &[last])]
}

fn of_family(addresses: &[IpAddr], v6: bool) -> Vec<Vec<u8>> {
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    addresses.iter().filter(|address| address.is_ipv6() == v6).map(octets).collect()
}
