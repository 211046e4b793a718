//! The vocabulary of the rules: conditions and verdicts as values, and what the kernel is told for each. The expressions
//! are those nft(8) writes, so that it lists them in its own words.

use std::iter;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use net_types::IfName;
use nf_tables::{Base, Compare, Conntrack, Expression, Field, Meta, Translated};

use crate::config::{PortRange, Protocol};

/// Length of a device's name in a rule (`IFNAMSIZ`), in bytes.
const NAME_LENGTH: usize = 16;
/// `PACKET_HOST` (`linux/if_packet.h`).
const TO_THIS_HOST: u8 = 0;
/// `RTN_LOCAL` (`linux/rtnetlink.h`).
const LOCAL: u32 = 2;
/// Bits of established and related (`NF_CT_STATE_BIT`), and `IPS_DST_NAT`.
const KNOWN: u32 = 2 | 4;
const DNAT: u32 = 1 << 5;

/// A network, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    first: IpAddr,
    length: u8,
}

/// A condition of a rule, or what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// Came in by that device.
    ArrivingBy(IfName),
    /// Leaves by that device.
    LeavingBy(IfName),
    /// Sent to this host's own link address: neither broadcast nor multicast.
    ToThisHost,
    /// Addressed to any address this host has.
    IsLocal,
    /// IPv6, or IPv4.
    IsFamily { is_v6: bool },
    /// From there.
    Source(Addresses),
    /// From elsewhere, in the same family.
    NotSource(Addresses),
    /// To there.
    Destination(Addresses),
    /// To elsewhere, in the same family.
    NotDestination(Addresses),
    /// To one of these ports.
    Ports(Protocol, PortRange),
    /// Of a known connection, or about one.
    IsKnown,
    /// Of a connection whose destination was translated.
    IsTranslated,
    /// Counts.
    Counter,
    /// Goes on in that chain, and then here.
    Jump(&'static str),
    /// Ends this chain; what called it goes on.
    Leave,
    /// Lets it pass.
    Accept,
    /// Lets it vanish.
    Drop,
    /// The source becomes the address of the interface it leaves by.
    Masquerade,
    /// The destination becomes this.
    Dnat(IpAddr),
    /// The source becomes this.
    Snat(IpAddr),
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        Self { first: address, length: if address.is_ipv6() { 128 } else { 32 } }
    }
}

impl From<IpNetwork> for Addresses {
    fn from(network: IpNetwork) -> Self {
        Self::network(network.network(), network.prefix())
    }
}

impl Addresses {
    /// The network of that first address and prefix length.
    pub(super) const fn network(first: IpAddr, length: u8) -> Self {
        Self { first, length }
    }

    /// Loads the field at one of two places, and compares it with the network.
    fn compared(self, operator: Compare, at_v4: u32, at_v6: u32) -> Vec<Expression> {
        let octets = octets(self.first);
        let (offset, is_v6) = if self.first.is_ipv6() { (at_v6, true) } else { (at_v4, false) };
        let length = if is_v6 { 16 } else { 4 };
        let mut expressions = family(is_v6);
        expressions.push(Expression::load(Field { base: Base::Network, offset, length }));
        let mask: Vec<u8> = (0..octets.len()).map(|octet| mask_of(octet, self.length)).collect();
        if mask.iter().any(|octet| *octet != u8::MAX) {
            expressions.push(Expression::mask(&mask));
        }
        expressions.push(Expression::compare(operator, &octets));
        expressions
    }
}

impl Part {
    /// What the kernel is told.
    pub(crate) fn expressions(&self) -> Vec<Expression> {
        let equal = |loaded, value: &[u8]| vec![loaded, Expression::compare(Compare::Equal, value)];
        match self {
            Self::ArrivingBy(device) => equal(Expression::meta(Meta::InputName), &name(device)),
            Self::LeavingBy(device) => equal(Expression::meta(Meta::OutputName), &name(device)),
            Self::ToThisHost => equal(Expression::meta(Meta::PacketType), &[TO_THIS_HOST]),
            Self::IsLocal => equal(Expression::destination_type(), &LOCAL.to_ne_bytes()),
            Self::IsFamily { is_v6 } => family(*is_v6),
            Self::Source(addresses) => addresses.compared(Compare::Equal, 12, 8),
            Self::NotSource(addresses) => addresses.compared(Compare::Differs, 12, 8),
            Self::Destination(addresses) => addresses.compared(Compare::Equal, 16, 24),
            Self::NotDestination(addresses) => addresses.compared(Compare::Differs, 16, 24),
            Self::Ports(protocol, range) => ports(*protocol, *range),
            Self::IsKnown => has_bits(Conntrack::State, KNOWN),
            Self::IsTranslated => has_bits(Conntrack::Status, DNAT),
            Self::Counter => vec![Expression::counter()],
            Self::Jump(chain) => vec![Expression::jump(chain)],
            Self::Leave => vec![Expression::leave()],
            Self::Accept => vec![Expression::accept()],
            Self::Drop => vec![Expression::drop()],
            Self::Masquerade => vec![Expression::masquerade()],
            Self::Dnat(to) => Expression::translate(Translated::Destination, *to).into(),
            Self::Snat(to) => Expression::translate(Translated::Source, *to).into(),
        }
    }
}

fn family(is_v6: bool) -> Vec<Expression> {
    // NFPROTO_IPV6, NFPROTO_IPV4
    let number = if is_v6 { 10 } else { 2 };
    vec![Expression::meta(Meta::Family), Expression::compare(Compare::Equal, &[number])]
}

fn ports(protocol: Protocol, PortRange { first, last }: PortRange) -> Vec<Expression> {
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let (low, high) = (first.to_be_bytes(), last.to_be_bytes());
    let compared = if first == last {
        Expression::compare(Compare::Equal, &low)
    } else {
        Expression::within(&low, &high)
    };
    // All three have the destination's port in the same place.
    let port = Field { base: Base::Transport, offset: 2, length: 2 };
    vec![
        Expression::meta(Meta::Transport),
        Expression::compare(Compare::Equal, &[number]),
        Expression::load(port),
        compared,
    ]
}

fn has_bits(key: Conntrack, bits: u32) -> Vec<Expression> {
    vec![
        Expression::conntrack(key),
        Expression::mask(&bits.to_ne_bytes()),
        Expression::compare(Compare::Differs, &[0; 4]),
    ]
}

fn name(device: &IfName) -> Vec<u8> {
    device.as_str().bytes().chain(iter::repeat(0)).take(NAME_LENGTH).collect()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Octet number `octet` of the mask of a prefix of `length` bits.
fn mask_of(octet: usize, length: u8) -> u8 {
    let bits = usize::from(length).saturating_sub(8 * octet).min(8);
    (0..8).filter(|bit| *bit < bits).fold(0, |mask, bit| mask | 0x80 >> bit)
}
