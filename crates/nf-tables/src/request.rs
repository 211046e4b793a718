//! What is sent to nf_tables: batches of changes, and questions.

use super::Writer;
use super::message::{
    Message, NFT_OBJECT_COUNTER, NFTA_OBJ_TABLE, NFTA_OBJ_TYPE, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_NAME, chain_of_rule, element_of, named_chain, named_counter,
};
use super::object::{Chain, Counter, Element, Family, Set, Table};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
pub(super) const NETLINK_HEADER: usize = 16;

// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFNETLINK_HEADER: usize = 4;

// linux/netfilter/nf_tables.h
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_GETOBJ: u16 = 19;

/// Sequence number of a batch's own messages; its changes are numbered from 1.
pub(super) const BATCH: u32 = 0;

/// `messages` between a batch's begin and end. Without its end the kernel looks at all of it and does nothing.
pub(super) fn batch(messages: &[Message], has_end: bool) -> Vec<u8> {
    let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let mut bytes =
        netlink(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, BATCH, [0, 0, subsystem[0], subsystem[1]], &[]);
    for (message, sequence) in messages.iter().zip(1..) {
        let (kind, flags) = message.kind.type_and_flags();
        // Refusals are told in any case, and before the last answer.
        let is_last = usize::try_from(sequence).is_ok_and(|sequence| sequence == messages.len());
        let flags = NLM_F_REQUEST | flags | if is_last { NLM_F_ACK } else { 0 };
        let family = [message.family.number(), 0, 0, 0];
        bytes.extend(netlink(own(kind), flags, sequence, family, &message.attributes));
    }
    if has_end {
        bytes.extend(netlink(
            NFNL_MSG_BATCH_END,
            NLM_F_REQUEST,
            BATCH,
            [0, 0, subsystem[0], subsystem[1]],
            &[],
        ));
    }
    bytes
}

/// Asks for the rules of `chain`.
pub(super) fn dump_chain(chain: &Chain<'_>) -> Vec<u8> {
    dump(chain.table.family, &chain_of_rule(chain).finish())
}

/// Asks for the chains of all tables of a family.
pub(super) fn dump_chains(family: Family) -> Vec<u8> {
    let family = [family.number(), 0, 0, 0];
    netlink(own(NFT_MSG_GETCHAIN), NLM_F_REQUEST | NLM_F_DUMP, 1, family, &[])
}

/// Asks for all rules of all tables of a family.
pub(super) fn dump_family(family: Family) -> Vec<u8> {
    dump(family, &[])
}

fn dump(family: Family, attributes: &[u8]) -> Vec<u8> {
    netlink(own(NFT_MSG_GETRULE), NLM_F_REQUEST | NLM_F_DUMP, 1, [family.number(), 0, 0, 0], attributes)
}

/// Asks for `element`.
pub(super) fn get_element(element: &Element<'_>) -> Vec<u8> {
    get(NFT_MSG_GETSETELEM, element.set.table.family, &element_of(element, None, ""))
}

/// Asks for all elements of `set`.
pub(super) fn dump_elements(set: &Set) -> Vec<u8> {
    let attributes = Writer::default()
        .text(NFTA_SET_ELEM_LIST_TABLE, set.table.name)
        .text(NFTA_SET_ELEM_LIST_SET, set.name)
        .finish();
    let family = [set.table.family.number(), 0, 0, 0];
    netlink(own(NFT_MSG_GETSETELEM), NLM_F_REQUEST | NLM_F_DUMP, 1, family, &attributes)
}

/// Asks for `counter` itself.
pub(super) fn get_counter(counter: &Counter<'_>) -> Vec<u8> {
    get(NFT_MSG_GETOBJ, counter.table.family, &named_counter(counter).finish())
}

/// Asks for the counters of `table`.
pub(super) fn dump_counters(table: Table<'_>) -> Vec<u8> {
    let attributes =
        Writer::default().text(NFTA_OBJ_TABLE, table.name).number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER).finish();
    let family = [table.family.number(), 0, 0, 0];
    netlink(own(NFT_MSG_GETOBJ), NLM_F_REQUEST | NLM_F_DUMP, 1, family, &attributes)
}

/// Asks for `table` itself.
pub(super) fn get_table(table: Table<'_>) -> Vec<u8> {
    get(NFT_MSG_GETTABLE, table.family, &Writer::default().text(NFTA_TABLE_NAME, table.name).finish())
}

/// Asks for `chain` itself.
pub(super) fn get_chain(chain: &Chain<'_>) -> Vec<u8> {
    get(NFT_MSG_GETCHAIN, chain.table.family, &named_chain(chain).finish())
}

fn get(kind: u16, family: Family, attributes: &[u8]) -> Vec<u8> {
    netlink(own(kind), NLM_F_REQUEST | NLM_F_ACK, 1, [family.number(), 0, 0, 0], attributes)
}

pub(super) const fn own(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

fn netlink(
    kind: u16,
    flags: u16,
    sequence: u32,
    nfnetlink: [u8; NFNETLINK_HEADER],
    attributes: &[u8],
) -> Vec<u8> {
    let length = NETLINK_HEADER + NFNETLINK_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // The kernel fills in the port.
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&nfnetlink);
    bytes.extend_from_slice(attributes);
    bytes
}
