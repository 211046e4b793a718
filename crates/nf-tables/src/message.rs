//! Messages to nf_tables.

use super::object::{Chain, Family, Hook, Rule, Table, VerdictMap};
use super::{Expression, Writer};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_NONREC: u16 = 0x100;
pub(super) const NETLINK_HEADER: usize = 16;

// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFNETLINK_HEADER: usize = 4;

// linux/netfilter/nf_tables.h
pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_DELSET: u16 = 11;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USE: u16 = 3;
pub(super) const NFT_TABLE_F_DORMANT: u32 = 0x1;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
const NFT_SET_MAP: u32 = 0x8;
/// The data type of a verdict.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// `NFT_JUMP`, -3.
pub(super) const NFT_JUMP: u32 = u32::MAX - 2;
const NF_ACCEPT: u32 = 1;
const NF_NETDEV_INGRESS: u32 = 0;
/// `NFT_USERDATA_MAXLEN`, 256, less type, length and NUL.
const MAX_COMMENT: usize = 253;

/// Sequence number of a batch's own messages; its changes are numbered from 1.
pub(super) const BATCH: u32 = 0;

/// The changes a message can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable,
    NewTableOnly,
    DeleteTable,
    DeleteEmptyTable,
    NewChain,
    DeleteChain,
    Flush,
    NewRule,
    NewMap,
    DeleteEmptyMap,
    NewElement,
    DeleteElement,
}

impl Kind {
    fn verb(self) -> &'static str {
        match self {
            Self::NewTable
            | Self::NewTableOnly
            | Self::NewChain
            | Self::NewRule
            | Self::NewMap
            | Self::NewElement => "add",
            Self::DeleteTable
            | Self::DeleteEmptyTable
            | Self::DeleteChain
            | Self::DeleteEmptyMap
            | Self::DeleteElement => "delete",
            Self::Flush => "flush",
        }
    }

    fn type_and_flags(self) -> (u16, u16) {
        match self {
            Self::NewTable => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
            Self::NewTableOnly => (NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL),
            Self::DeleteTable => (NFT_MSG_DELTABLE, 0),
            Self::DeleteEmptyTable => (NFT_MSG_DELTABLE, NLM_F_NONREC),
            Self::NewChain => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
            Self::DeleteChain => (NFT_MSG_DELCHAIN, 0),
            Self::Flush => (NFT_MSG_DELRULE, 0),
            Self::NewRule => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
            Self::NewMap => (NFT_MSG_NEWSET, NLM_F_CREATE),
            Self::DeleteEmptyMap => (NFT_MSG_DELSET, NLM_F_NONREC),
            Self::NewElement => (NFT_MSG_NEWSETELEM, NLM_F_CREATE),
            Self::DeleteElement => (NFT_MSG_DELSETELEM, 0),
        }
    }
}

/// A change and its attributes.
#[derive(Debug)]
pub(super) struct Message {
    kind: Kind,
    family: Family,
    object: String,
    attributes: Vec<u8>,
}

impl Message {
    pub(super) fn table(kind: Kind, table: Table<'_>) -> Self {
        let mut attributes = Writer::default().text(NFTA_TABLE_NAME, table.name);
        if kind == Kind::NewTable {
            // Without flags one that is there and dormant stays so.
            attributes = attributes.number(NFTA_TABLE_FLAGS, 0);
        }
        let object = format!("table {table}");
        Self { kind, family: table.family, object, attributes: attributes.finish() }
    }

    pub(super) fn chain(kind: Kind, chain: &Chain<'_>) -> Self {
        let attributes = if kind == Kind::NewChain { new_chain(chain) } else { named_chain(chain) };
        Self { kind, family: chain.table.family, object: chain.to_string(), attributes: attributes.finish() }
    }

    pub(super) fn flush(chain: &Chain<'_>) -> Self {
        let attributes = chain_of_rule(chain).finish();
        Self { kind: Kind::Flush, family: chain.table.family, object: chain.to_string(), attributes }
    }

    pub(super) fn rule(chain: &Chain<'_>, rule: &Rule<'_>) -> Self {
        let mut list = Writer::default();
        for Expression { name, data } in &rule.expressions {
            let expression =
                Writer::default().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data.clone());
            list = list.nested(NFTA_LIST_ELEM, expression);
        }
        let mut attributes = chain_of_rule(chain).nested(NFTA_RULE_EXPRESSIONS, list);
        if !rule.comment.is_empty() {
            attributes = attributes.bytes(NFTA_RULE_USERDATA, &comment(rule.comment));
        }
        let object = format!("rule in {chain}");
        Self { kind: Kind::NewRule, family: chain.table.family, object, attributes: attributes.finish() }
    }

    pub(super) fn map(kind: Kind, map: &VerdictMap) -> Self {
        let mut attributes =
            Writer::default().text(NFTA_SET_TABLE, map.table.name).text(NFTA_SET_NAME, map.name);
        if kind == Kind::NewMap {
            attributes = attributes
                .number(NFTA_SET_FLAGS, NFT_SET_MAP)
                .number(NFTA_SET_KEY_TYPE, map.key.datatype())
                .number(NFTA_SET_KEY_LEN, map.key.length())
                .number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT)
                // Told apart within a transaction by it; ours is found by name.
                .number(NFTA_SET_ID, map.key.datatype());
        }
        Self { kind, family: map.table.family, object: map.to_string(), attributes: attributes.finish() }
    }

    /// An element of `map`; with a chain to jump to if it is to be made.
    pub(super) fn element(kind: Kind, map: &VerdictMap, key: &[u8], target: Option<&str>) -> Self {
        let attributes = element(map, key, target);
        Self { kind, family: map.table.family, object: format!("element of {map}"), attributes }
    }

    pub(super) fn verb(&self) -> &'static str {
        self.kind.verb()
    }

    pub(super) fn object(&self) -> &str {
        &self.object
    }
}

/// What makes a chain what it is.
pub(super) fn new_chain(chain: &Chain<'_>) -> Writer {
    let Some(hook) = chain.hook else { return named_chain(chain) };
    let (kind, hook) = match hook {
        Hook::Ingress { device, priority } => {
            ("filter", hook_at(NF_NETDEV_INGRESS, priority).text(NFTA_HOOK_DEV, device))
        }
        Hook::Filter { place, priority } => ("filter", hook_at(place as u32, priority)),
        Hook::Nat { place, priority } => ("nat", hook_at(place as u32, priority)),
    };
    named_chain(chain)
        .nested(NFTA_CHAIN_HOOK, hook)
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, kind)
}

fn named_chain(chain: &Chain<'_>) -> Writer {
    Writer::default().text(NFTA_CHAIN_TABLE, chain.table.name).text(NFTA_CHAIN_NAME, chain.name)
}

fn hook_at(number: u32, priority: i32) -> Writer {
    Writer::default().number(NFTA_HOOK_HOOKNUM, number).bytes(NFTA_HOOK_PRIORITY, &priority.to_be_bytes())
}

fn chain_of_rule(chain: &Chain<'_>) -> Writer {
    Writer::default().text(NFTA_RULE_TABLE, chain.table.name).text(NFTA_RULE_CHAIN, chain.name)
}

fn element(map: &VerdictMap, key: &[u8], target: Option<&str>) -> Vec<u8> {
    let mut element =
        Writer::default().nested(NFTA_SET_ELEM_KEY, Writer::default().bytes(NFTA_DATA_VALUE, key));
    if let Some(chain) = target {
        let verdict = Writer::default().number(NFTA_VERDICT_CODE, NFT_JUMP).text(NFTA_VERDICT_CHAIN, chain);
        element = element.nested(NFTA_SET_ELEM_DATA, Writer::default().nested(NFTA_DATA_VERDICT, verdict));
    }
    Writer::default()
        .text(NFTA_SET_ELEM_LIST_TABLE, map.table.name)
        .text(NFTA_SET_ELEM_LIST_SET, map.name)
        .nested(NFTA_SET_ELEM_LIST_ELEMENTS, Writer::default().nested(NFTA_LIST_ELEM, element))
        .finish()
}

/// User data as libnftnl writes a comment: type 0, length, text with NUL (`libnftnl/udata.h`).
fn comment(text: &str) -> Vec<u8> {
    let longest = text.len().min(MAX_COMMENT);
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default().as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text, &[0]].concat()
}

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

/// Asks for the element of `map` with that key.
pub(super) fn get_element(map: &VerdictMap, key: &[u8]) -> Vec<u8> {
    get(NFT_MSG_GETSETELEM, map.table.family, &element(map, key, None))
}

/// Asks for all elements of `map`.
pub(super) fn dump_elements(map: &VerdictMap) -> Vec<u8> {
    let attributes = Writer::default()
        .text(NFTA_SET_ELEM_LIST_TABLE, map.table.name)
        .text(NFTA_SET_ELEM_LIST_SET, map.name)
        .finish();
    let family = [map.table.family.number(), 0, 0, 0];
    netlink(own(NFT_MSG_GETSETELEM), NLM_F_REQUEST | NLM_F_DUMP, 1, family, &attributes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_cut_between_characters() {
        let long = "é".repeat(200);
        let written = comment(&long);
        assert_eq!(written.len(), 2 + 252 + 1);
        assert_eq!(std::str::from_utf8(&written[2..written.len() - 1]).unwrap(), "é".repeat(126));
    }
}
