//! The vocabulary of the rules: matches and verdicts as nft(8)'s JSON has them (libnftables-json(5)), written the way
//! nft lists them back, so that CHECK can compare.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use net_types::IfName;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix,
    Range, SetItem,
};
use nftables::stmt::{AnonymousCounter, Counter, JumpTarget, Match, NAT, NATFamily, Operator, Statement};

use crate::config::{PortRange, Protocol};

/// One address, several, or a network.
pub(super) struct Addresses(Expression<'static>);

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        Self(text(address.to_string()))
    }
}

impl From<IpNetwork> for Addresses {
    fn from(network: IpNetwork) -> Self {
        Self::network(network.network(), network.prefix())
    }
}

impl Addresses {
    /// The network of that first address and prefix length.
    pub(super) fn network(first: IpAddr, length: u8) -> Self {
        let prefix = Prefix { addr: Box::new(text(first.to_string())), len: length.into() };
        Self(Expression::Named(NamedExpression::Prefix(prefix)))
    }
}

/// One of several addresses, given in ascending order.
pub(super) fn one_of(addresses: Vec<IpAddr>) -> Addresses {
    Addresses(set(addresses.into_iter().map(|address| text(address.to_string())).collect()))
}

pub(super) fn arriving_by(link: &IfName) -> Statement<'static> {
    equal(meta(MetaKey::Iifname), text(link.to_string()))
}

pub(super) fn leaving_by(link: &IfName) -> Statement<'static> {
    equal(meta(MetaKey::Oifname), text(link.to_string()))
}

/// Sent to this host's own link address: neither broadcast nor multicast.
pub(super) fn to_this_host() -> Statement<'static> {
    equal(meta(MetaKey::Pkttype), text("host"))
}

/// Addressed to any address this host has.
pub(super) fn is_local() -> Statement<'static> {
    let fib = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Daddr]) };
    equal(Expression::Named(NamedExpression::Fib(fib)), text("local"))
}

/// Any packet of the family.
pub(super) fn is_family(is_v6: bool) -> Statement<'static> {
    equal(meta(MetaKey::Nfproto), text(if is_v6 { "ipv6" } else { "ipv4" }))
}

pub(super) fn source(is_v6: bool, addresses: Addresses) -> Statement<'static> {
    matching(address(is_v6, "saddr"), Operator::EQ, addresses.0)
}

pub(super) fn not_source(is_v6: bool, addresses: Addresses) -> Statement<'static> {
    matching(address(is_v6, "saddr"), Operator::NEQ, addresses.0)
}

pub(super) fn destination(is_v6: bool, addresses: Addresses) -> Statement<'static> {
    matching(address(is_v6, "daddr"), Operator::EQ, addresses.0)
}

pub(super) fn not_destination(is_v6: bool, addresses: Addresses) -> Statement<'static> {
    matching(address(is_v6, "daddr"), Operator::NEQ, addresses.0)
}

/// To one of these ports, given in ascending order.
pub(super) fn ports_of(protocol: Protocol, ports: &[PortRange]) -> Statement<'static> {
    let field = payload(protocol.to_string().into(), "dport");
    equal(field, set(ports.iter().map(|range| port(*range)).collect()))
}

/// A packet of a connection in one of these states.
pub(super) fn has_state(states: &[&'static str]) -> Statement<'static> {
    let states = Expression::List(states.iter().map(|state| text(*state)).collect());
    matching(conntrack("state"), Operator::IN, states)
}

/// A packet of a connection whose destination was translated.
pub(super) fn is_translated() -> Statement<'static> {
    matching(conntrack("status"), Operator::IN, text("dnat"))
}

pub(super) fn counter() -> Statement<'static> {
    let zero = AnonymousCounter { packets: Some(0), bytes: Some(0) };
    Statement::Counter(Counter::Anonymous(Some(zero)))
}

pub(super) fn jump(chain: &'static str) -> Statement<'static> {
    Statement::Jump(JumpTarget { target: chain.into() })
}

/// Ends this chain; what called it goes on.
pub(super) fn leave() -> Statement<'static> {
    Statement::Return(None)
}

pub(super) fn accept() -> Statement<'static> {
    Statement::Accept(None)
}

pub(super) fn drop_it() -> Statement<'static> {
    Statement::Drop(None)
}

/// The source becomes the address of the interface it leaves by.
pub(super) fn masquerade() -> Statement<'static> {
    Statement::Masquerade(None)
}

pub(super) fn dnat(to: IpAddr) -> Statement<'static> {
    Statement::DNAT(Some(translation(to)))
}

pub(super) fn snat(to: IpAddr) -> Statement<'static> {
    Statement::SNAT(Some(translation(to)))
}

fn translation(to: IpAddr) -> NAT<'static> {
    let family = if to.is_ipv6() { NATFamily::IP6 } else { NATFamily::IP };
    NAT { addr: Some(text(to.to_string())), family: Some(family), port: None, flags: None }
}

fn port(range: PortRange) -> Expression<'static> {
    let PortRange { first, last } = range;
    let number = |port: u16| Expression::Number(port.into());
    if first == last {
        return number(first);
    }
    Expression::Range(Box::new(Range { range: [number(first), number(last)] }))
}

/// nft lists a set of one as its element.
fn set(mut elements: Vec<Expression<'static>>) -> Expression<'static> {
    if elements.len() == 1 {
        return elements.remove(0);
    }
    Expression::Named(NamedExpression::Set(elements.into_iter().map(SetItem::Element).collect()))
}

fn address(is_v6: bool, field: &'static str) -> Expression<'static> {
    payload(if is_v6 { "ip6" } else { "ip" }.into(), field)
}

fn payload(protocol: Cow<'static, str>, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol, field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn conntrack(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn text(text: impl Into<Cow<'static, str>>) -> Expression<'static> {
    Expression::String(text.into())
}

fn equal(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    matching(left, Operator::EQ, right)
}

fn matching(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}
