//! The steps of a rule: load something, compare it, decide. Names as nft(8) has them.

use std::net::IpAddr;

use super::message::{
    NFT_JUMP, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_LIST_ELEM,
    NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};
use super::object::Set;
use super::{Attributes, Writer};

// linux/netfilter/nf_tables.h
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
/// 16 bytes behind the first.
const NFT_REG_2: u32 = 2;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_OBJREF_SET_SREG: u16 = 3;
const NFTA_OBJREF_SET_NAME: u16 = 4;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_RANGE_SREG: u16 = 1;
const NFTA_RANGE_OP: u16 = 2;
const NFTA_RANGE_FROM_DATA: u16 = 3;
const NFTA_RANGE_TO_DATA: u16 = 4;
const NFT_RANGE_EQ: u32 = 0;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR`
const OF_DESTINATION: u32 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
/// `NFT_RETURN`, -5.
const NFT_RETURN: u32 = u32::MAX - 4;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// One expression of a rule: the kernel's name for it and its attributes. All use the first register; a key of two
/// parts, the first of 16 bytes, has the second part in the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    pub(super) name: &'static str,
    pub(super) data: Writer,
}

/// A field of a packet: which header, offset and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Which header.
    pub base: Base,
    /// Where in it, in bytes.
    pub offset: u32,
    /// How long it is, in bytes.
    pub length: u32,
}

/// Where offsets are counted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The Ethernet header.
    Link = 0,
    /// The header behind it: ARP, IPv4, IPv6.
    Network = 1,
    /// The one behind that and any IPv6 extension headers: UDP, ICMPv6. Later fragments have none.
    Transport = 2,
}

/// Something known of a packet besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// The EtherType behind the outermost VLAN tag.
    EtherType = 1,
    /// The name of the device it came in by, 16 bytes.
    InputName = 6,
    /// The name of the device it leaves by, 16 bytes.
    OutputName = 7,
    /// `ARPHRD_*` of the device it came in by, in the machine's byte order.
    InputType = 8,
    /// `NFPROTO_*`, one byte.
    Family = 15,
    /// `IPPROTO_*` behind any IPv6 extension headers, one byte.
    Transport = 16,
    /// `PACKET_*` of `linux/if_packet.h`, one byte.
    PacketType = 19,
}

/// Something known of a packet's connection, four bytes in the machine's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conntrack {
    /// A bit for what the packet is to its connection (`NF_CT_STATE_BIT`).
    State = 0,
    /// `IPS_*` of `linux/netfilter/nf_conntrack_common.h`.
    Status = 2,
}

/// Which address of a connection is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translated {
    /// The one it comes from.
    Source = 0,
    /// The one it goes to.
    Destination = 1,
}

/// How a loaded value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// The same.
    Equal = 0,
    /// Not the same.
    Differs = 1,
    /// Greater.
    Above = 4,
}

impl Expression {
    /// Loads a field; a packet without it leaves the rule.
    pub fn load(field: Field) -> Self {
        Self::load_into(NFT_REG_1, field)
    }

    /// Loads a field as the second part of a key, behind a name.
    pub fn load_second(field: Field) -> Self {
        Self::load_into(NFT_REG_2, field)
    }

    fn load_into(register: u32, field: Field) -> Self {
        let data = Writer::default()
            .number(NFTA_PAYLOAD_DREG, register)
            .number(NFTA_PAYLOAD_BASE, field.base as u32)
            .number(NFTA_PAYLOAD_OFFSET, field.offset)
            .number(NFTA_PAYLOAD_LEN, field.length);
        Self { name: "payload", data }
    }

    /// Loads something known of the packet.
    pub fn meta(key: Meta) -> Self {
        let data = Writer::default().number(NFTA_META_DREG, NFT_REG_1).number(NFTA_META_KEY, key as u32);
        Self { name: "meta", data }
    }

    /// Loads something known of the packet's connection.
    pub fn conntrack(key: Conntrack) -> Self {
        let data = Writer::default().number(NFTA_CT_DREG, NFT_REG_1).number(NFTA_CT_KEY, key as u32);
        Self { name: "ct", data }
    }

    /// Loads what the destination is to this node: `RTN_*` of `linux/rtnetlink.h`, four bytes in the machine's order.
    pub fn destination_type() -> Self {
        let data = Writer::default()
            .number(NFTA_FIB_DREG, NFT_REG_1)
            .number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .number(NFTA_FIB_FLAGS, OF_DESTINATION);
        Self { name: "fib", data }
    }

    /// Goes on only if what is loaded compares so.
    pub fn compare(operator: Compare, value: &[u8]) -> Self {
        let data = Writer::default()
            .number(NFTA_CMP_SREG, NFT_REG_1)
            .number(NFTA_CMP_OP, operator as u32)
            .nested(NFTA_CMP_DATA, value_of(value));
        Self { name: "cmp", data }
    }

    /// Goes on only if what is loaded is one of `first` to `last`.
    pub fn within(first: &[u8], last: &[u8]) -> Self {
        let data = Writer::default()
            .number(NFTA_RANGE_SREG, NFT_REG_1)
            .number(NFTA_RANGE_OP, NFT_RANGE_EQ)
            .nested(NFTA_RANGE_FROM_DATA, value_of(first))
            .nested(NFTA_RANGE_TO_DATA, value_of(last));
        Self { name: "range", data }
    }

    /// Keeps of what is loaded only the bits of `mask`.
    pub fn mask(mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Writer::default()
            .number(NFTA_BITWISE_SREG, NFT_REG_1)
            .number(NFTA_BITWISE_DREG, NFT_REG_1)
            .number(NFTA_BITWISE_LEN, length)
            .nested(NFTA_BITWISE_MASK, value_of(mask))
            .nested(NFTA_BITWISE_XOR, value_of(&vec![0; mask.len()]));
        Self { name: "bitwise", data }
    }

    /// Goes on only if what is loaded is in `set`.
    pub fn in_set(set: &Set) -> Self {
        Self { name: "lookup", data: look_up(set) }
    }

    /// Goes on only if what is loaded is not in `set`.
    pub fn not_in_set(set: &Set) -> Self {
        Self { name: "lookup", data: look_up(set).number(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV) }
    }

    /// Jumps where `set` leads for what is loaded; goes on if it leads nowhere.
    pub fn jump_by(set: &Set) -> Self {
        Self { name: "lookup", data: look_up(set).number(NFTA_LOOKUP_DREG, NFT_REG_VERDICT) }
    }

    /// Counts by the counter to which `set` leads for what is loaded.
    pub fn count_by(set: &Set) -> Self {
        let data =
            Writer::default().number(NFTA_OBJREF_SET_SREG, NFT_REG_1).text(NFTA_OBJREF_SET_NAME, set.name);
        Self { name: "objref", data }
    }

    /// Counts what comes so far.
    pub fn counter() -> Self {
        Self { name: "counter", data: Writer::default() }
    }

    /// Drops the packet.
    pub fn drop() -> Self {
        Self::verdict(NF_DROP)
    }

    /// Lets the packet pass without a look at the rules behind.
    pub fn accept() -> Self {
        Self::verdict(NF_ACCEPT)
    }

    /// Ends this chain; the one that jumped to it goes on.
    pub fn leave() -> Self {
        Self::verdict(NFT_RETURN)
    }

    /// Goes on in the chain `name` of the same table, and here after it.
    pub fn jump(name: &str) -> Self {
        Self::decide(Writer::default().number(NFTA_VERDICT_CODE, NFT_JUMP).text(NFTA_VERDICT_CHAIN, name))
    }

    fn verdict(code: u32) -> Self {
        Self::decide(Writer::default().number(NFTA_VERDICT_CODE, code))
    }

    fn decide(verdict: Writer) -> Self {
        let data = Writer::default()
            .number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
            .nested(NFTA_IMMEDIATE_DATA, Writer::default().nested(NFTA_DATA_VERDICT, verdict));
        Self { name: "immediate", data }
    }

    /// Gives the connection `address` on one side; two expressions, of which the first loads the address.
    pub fn translate(which: Translated, address: IpAddr) -> [Self; 2] {
        let (family, octets) = match address {
            IpAddr::V4(v4) => (NFPROTO_IPV4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (NFPROTO_IPV6, v6.octets().to_vec()),
        };
        let load = Writer::default()
            .number(NFTA_IMMEDIATE_DREG, NFT_REG_1)
            .nested(NFTA_IMMEDIATE_DATA, value_of(&octets));
        let nat = Writer::default()
            .number(NFTA_NAT_TYPE, which as u32)
            .number(NFTA_NAT_FAMILY, family)
            .number(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1);
        [Self { name: "immediate", data: load }, Self { name: "nat", data: nat }]
    }

    /// Gives the connection the address of the interface it leaves by as its source.
    pub fn masquerade() -> Self {
        Self { name: "masq", data: Writer::default() }
    }
}

fn look_up(set: &Set) -> Writer {
    Writer::default().text(NFTA_LOOKUP_SET, set.name).number(NFTA_LOOKUP_SREG, NFT_REG_1)
}

fn value_of(bytes: &[u8]) -> Writer {
    Writer::default().bytes(NFTA_DATA_VALUE, bytes)
}

/// True if the rule `found` has exactly these expressions. The kernel adds attributes of its own, counts for instance;
/// those written must all be there unchanged.
pub fn same(found: &[u8], written: &[Expression]) -> bool {
    let mut list = expressions(found);
    written.iter().all(|Expression { name, data }| {
        list.next().is_some_and(|(found, attributes)| found == *name && attributes.contain(data))
    }) && list.next().is_none()
}

/// What a rule compares a field with so: each value of each comparison that follows the load of it.
pub fn compared(found: &[u8], field: Field, operator: Compare) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    let mut loaded = false;
    for (name, attributes) in expressions(found) {
        match name {
            "payload" => loaded = attributes.contain(&Expression::load(field).data),
            "cmp" if loaded && attributes.number(NFTA_CMP_OP) == Some(operator as u32) => {
                let data = attributes.get(NFTA_CMP_DATA).map(Attributes::new);
                values.extend(data.and_then(|data| data.get(NFTA_DATA_VALUE)).map(<[u8]>::to_vec));
            }
            "cmp" => {}
            _ => loaded = false,
        }
    }
    values
}

/// The expressions of a rule: name and attributes of each.
fn expressions(list: &[u8]) -> impl Iterator<Item = (&str, Attributes<'_>)> {
    Attributes::new(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM).filter_map(|(_, element)| {
        let element = Attributes::new(element);
        let name = element.get(NFTA_EXPR_NAME)?.strip_suffix(&[0])?;
        Some((
            std::str::from_utf8(name).ok()?,
            Attributes::new(element.get(NFTA_EXPR_DATA).unwrap_or_default()),
        ))
    })
}
