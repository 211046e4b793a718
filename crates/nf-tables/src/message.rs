//! Changes, as nf_tables is told of them.

use super::object::{Chain, Counter, Element, Family, Holds, Hook, Part, Rule, Set, Table};
use super::{Expression, Writer};

// linux/netlink.h
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_NONREC: u16 = 0x100;

// linux/netfilter/nf_tables.h
pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_DELSET: u16 = 11;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
pub(super) const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_DELOBJ: u16 = 20;
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USE: u16 = 3;
pub(super) const NFT_TABLE_F_DORMANT: u32 = 0x1;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_USE: u16 = 6;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
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
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_SET_OBJ_TYPE: u16 = 15;
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(super) const NFTA_SET_ELEM_OBJREF: u16 = 9;
pub(super) const NFTA_OBJ_TABLE: u16 = 1;
pub(super) const NFTA_OBJ_NAME: u16 = 2;
pub(super) const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
pub(super) const NFTA_OBJ_USERDATA: u16 = 8;
pub(super) const NFT_OBJECT_COUNTER: u32 = 1;
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_OBJECT: u32 = 0x40;
/// The data type of a verdict.
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
/// `NFT_JUMP`, -3.
pub(super) const NFT_JUMP: u32 = u32::MAX - 2;
const NF_ACCEPT: u32 = 1;
/// `NFT_USERDATA_MAXLEN`, 256, less type, length and NUL.
const MAX_COMMENT: usize = 253;

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
    NewSet,
    DeleteSet,
    NewElement,
    DeleteElement,
    NewObject,
    DeleteObject,
}

impl Kind {
    fn verb(self) -> &'static str {
        match self {
            Self::NewTable
            | Self::NewTableOnly
            | Self::NewChain
            | Self::NewRule
            | Self::NewSet
            | Self::NewElement
            | Self::NewObject => "add",
            Self::DeleteTable
            | Self::DeleteEmptyTable
            | Self::DeleteChain
            | Self::DeleteSet
            | Self::DeleteElement
            | Self::DeleteObject => "delete",
            Self::Flush => "flush",
        }
    }

    pub(super) fn type_and_flags(self) -> (u16, u16) {
        match self {
            Self::NewTable => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
            Self::NewTableOnly => (NFT_MSG_NEWTABLE, NLM_F_CREATE | NLM_F_EXCL),
            Self::DeleteTable => (NFT_MSG_DELTABLE, 0),
            Self::DeleteEmptyTable => (NFT_MSG_DELTABLE, NLM_F_NONREC),
            Self::NewChain => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
            Self::DeleteChain => (NFT_MSG_DELCHAIN, 0),
            Self::Flush => (NFT_MSG_DELRULE, 0),
            Self::NewRule => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
            Self::NewSet => (NFT_MSG_NEWSET, NLM_F_CREATE),
            Self::DeleteSet => (NFT_MSG_DELSET, 0),
            Self::NewElement => (NFT_MSG_NEWSETELEM, NLM_F_CREATE),
            Self::DeleteElement => (NFT_MSG_DELSETELEM, 0),
            Self::NewObject => (NFT_MSG_NEWOBJ, NLM_F_CREATE),
            Self::DeleteObject => (NFT_MSG_DELOBJ, 0),
        }
    }
}

/// A change and its attributes.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) family: Family,
    object: String,
    pub(super) attributes: Vec<u8>,
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

    pub(super) fn set(kind: Kind, set: &Set) -> Self {
        let mut attributes =
            Writer::default().text(NFTA_SET_TABLE, set.table.name).text(NFTA_SET_NAME, set.name);
        if kind == Kind::NewSet {
            attributes = attributes
                .number(NFTA_SET_KEY_TYPE, set.datatype())
                .number(NFTA_SET_KEY_LEN, set.key_length())
                // Told apart within a transaction by it; ours is found by name.
                .number(NFTA_SET_ID, set.datatype());
            if set.key == [Part::Name] {
                attributes = attributes.bytes(NFTA_SET_USERDATA, &text_key());
            }
            attributes = match set.holds {
                Holds::Keys => attributes.number(NFTA_SET_FLAGS, 0),
                Holds::Chains => attributes
                    .number(NFTA_SET_FLAGS, NFT_SET_MAP)
                    .number(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT),
                Holds::Counters => attributes
                    .number(NFTA_SET_FLAGS, NFT_SET_OBJECT)
                    .number(NFTA_SET_OBJ_TYPE, NFT_OBJECT_COUNTER),
            };
        }
        Self { kind, family: set.table.family, object: set.to_string(), attributes: attributes.finish() }
    }

    /// An element; with what it leads to if it is to be made and its set leads somewhere.
    pub(super) fn element(kind: Kind, element: &Element<'_>, target: Option<&str>, comment: &str) -> Self {
        let set = element.set;
        let attributes = element_of(element, target, comment);
        Self { kind, family: set.table.family, object: format!("element of {set}"), attributes }
    }

    pub(super) fn counter(kind: Kind, counter: &Counter<'_>, comment: &str) -> Self {
        let mut attributes = named_counter(counter);
        if kind == Kind::NewObject {
            attributes = attributes.nested(NFTA_OBJ_DATA, Writer::default());
            if !comment.is_empty() {
                attributes = attributes.bytes(NFTA_OBJ_USERDATA, &self::comment(comment));
            }
        }
        let object = counter.to_string();
        Self { kind, family: counter.table.family, object, attributes: attributes.finish() }
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
        Hook::Filter { place, priority } => ("filter", hook_at(place as u32, priority)),
        Hook::Nat { place, priority } => ("nat", hook_at(place as u32, priority)),
    };
    named_chain(chain)
        .nested(NFTA_CHAIN_HOOK, hook)
        .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, kind)
}

pub(super) fn named_chain(chain: &Chain<'_>) -> Writer {
    Writer::default().text(NFTA_CHAIN_TABLE, chain.table.name).text(NFTA_CHAIN_NAME, chain.name)
}

fn hook_at(number: u32, priority: i32) -> Writer {
    Writer::default().number(NFTA_HOOK_HOOKNUM, number).bytes(NFTA_HOOK_PRIORITY, &priority.to_be_bytes())
}

pub(super) fn chain_of_rule(chain: &Chain<'_>) -> Writer {
    Writer::default().text(NFTA_RULE_TABLE, chain.table.name).text(NFTA_RULE_CHAIN, chain.name)
}

pub(super) fn element_of(element: &Element<'_>, target: Option<&str>, comment: &str) -> Vec<u8> {
    let set = element.set;
    let mut attributes =
        Writer::default().nested(NFTA_SET_ELEM_KEY, Writer::default().bytes(NFTA_DATA_VALUE, element.key));
    if let Some(target) = target {
        attributes = if set.holds == Holds::Counters {
            attributes.text(NFTA_SET_ELEM_OBJREF, target)
        } else {
            let verdict =
                Writer::default().number(NFTA_VERDICT_CODE, NFT_JUMP).text(NFTA_VERDICT_CHAIN, target);
            attributes.nested(NFTA_SET_ELEM_DATA, Writer::default().nested(NFTA_DATA_VERDICT, verdict))
        };
    }
    if !comment.is_empty() {
        attributes = attributes.bytes(NFTA_SET_ELEM_USERDATA, &self::comment(comment));
    }
    Writer::default()
        .text(NFTA_SET_ELEM_LIST_TABLE, set.table.name)
        .text(NFTA_SET_ELEM_LIST_SET, set.name)
        .nested(NFTA_SET_ELEM_LIST_ELEMENTS, Writer::default().nested(NFTA_LIST_ELEM, attributes))
        .finish()
}

pub(super) fn named_counter(counter: &Counter<'_>) -> Writer {
    Writer::default()
        .text(NFTA_OBJ_TABLE, counter.table.name)
        .text(NFTA_OBJ_NAME, counter.name)
        .number(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER)
}

/// User data that has nft(8) show keys as text: type 0 for their byte order, length, that of the machine
/// (`libnftnl/udata.h`, `enum byteorder`).
fn text_key() -> [u8; 6] {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
}

/// User data as libnftnl writes a comment: type 0, length, text with NUL (`libnftnl/udata.h`).
fn comment(text: &str) -> Vec<u8> {
    let longest = text.len().min(MAX_COMMENT);
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default().as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text, &[0]].concat()
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
