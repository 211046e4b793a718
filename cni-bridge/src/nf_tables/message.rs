//! Messages to and from nf_tables.

use std::fmt;

use super::{Attributes, NfTablesError, Writer};

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLM_F_NONREC: u16 = 0x100;
const NETLINK_HEADER: usize = 16;

// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNETLINK_HEADER: usize = 4;

// linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NF_NETDEV_INGRESS: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// The netdev family: chains bound to one device.
const NFPROTO_NETDEV: u8 = 5;

/// Sequence number of a batch's own messages; its changes are numbered from 1.
pub(super) const BATCH: u32 = 0;

/// A base chain on the ingress of a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chain<'a> {
    /// The table it is in.
    pub(crate) table: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
    /// The device it sees the packets of.
    pub(crate) device: &'a str,
    /// When it sees them: lower is earlier.
    pub(crate) priority: i32,
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain netdev {} {}", self.table, self.name)
    }
}

/// A rule.
#[derive(Debug)]
pub(crate) struct Rule<'a> {
    /// What it does, in order.
    pub(crate) expressions: Vec<Expression>,
    /// What nft(8) shows as its comment; at most 127 bytes are kept.
    pub(crate) comment: &'a str,
}

/// One expression of a rule: the kernel's name for it and its attributes.
#[derive(Debug)]
pub(crate) struct Expression {
    /// Such as `payload`.
    pub(crate) name: &'static str,
    /// Its attributes.
    pub(crate) data: Writer,
}

/// The changes a message can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable,
    DeleteEmptyTable,
    NewChain,
    DeleteChain,
    Flush,
    NewRule,
}

/// A change and its attributes.
#[derive(Debug)]
pub(super) struct Message {
    kind: Kind,
    object: String,
    attributes: Vec<u8>,
}

impl Message {
    pub(super) fn table(kind: Kind, table: &str) -> Self {
        let attributes = Writer::default().text(NFTA_TABLE_NAME, table).finish();
        Self { kind, object: format!("table netdev {table}"), attributes }
    }

    pub(super) fn chain(kind: Kind, chain: &Chain<'_>) -> Self {
        let mut attributes =
            Writer::default().text(NFTA_CHAIN_TABLE, chain.table).text(NFTA_CHAIN_NAME, chain.name);
        if kind == Kind::NewChain {
            let hook = Writer::default()
                .number(NFTA_HOOK_HOOKNUM, NF_NETDEV_INGRESS)
                .bytes(NFTA_HOOK_PRIORITY, &chain.priority.to_be_bytes())
                .text(NFTA_HOOK_DEV, chain.device);
            attributes = attributes
                .nested(NFTA_CHAIN_HOOK, hook)
                .number(NFTA_CHAIN_POLICY, NF_ACCEPT)
                .text(NFTA_CHAIN_TYPE, "filter");
        }
        Self { kind, object: chain.to_string(), attributes: attributes.finish() }
    }

    pub(super) fn flush(chain: &Chain<'_>) -> Self {
        Self { kind: Kind::Flush, object: chain.to_string(), attributes: chain_of_rule(chain).finish() }
    }

    pub(super) fn rule(chain: &Chain<'_>, rule: &Rule<'_>) -> Self {
        let mut list = Writer::default();
        for Expression { name, data } in &rule.expressions {
            let expression =
                Writer::default().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data.clone());
            list = list.nested(NFTA_LIST_ELEM, expression);
        }
        let attributes = chain_of_rule(chain)
            .nested(NFTA_RULE_EXPRESSIONS, list)
            .bytes(NFTA_RULE_USERDATA, &comment(rule.comment))
            .finish();
        Self { kind: Kind::NewRule, object: format!("rule in {chain}"), attributes }
    }

    pub(super) fn verb(&self) -> &'static str {
        match self.kind {
            Kind::NewTable | Kind::NewChain | Kind::NewRule => "add",
            Kind::DeleteEmptyTable | Kind::DeleteChain => "delete",
            Kind::Flush => "flush",
        }
    }

    pub(super) fn object(&self) -> &str {
        &self.object
    }

    fn type_and_flags(&self) -> (u16, u16) {
        match self.kind {
            Kind::NewTable => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
            Kind::DeleteEmptyTable => (NFT_MSG_DELTABLE, NLM_F_NONREC),
            Kind::NewChain => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
            Kind::DeleteChain => (NFT_MSG_DELCHAIN, 0),
            Kind::Flush => (NFT_MSG_DELRULE, 0),
            Kind::NewRule => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
        }
    }
}

fn chain_of_rule(chain: &Chain<'_>) -> Writer {
    Writer::default().text(NFTA_RULE_TABLE, chain.table).text(NFTA_RULE_CHAIN, chain.name)
}

/// User data as libnftnl writes a comment: type 0, length, text with NUL (`libnftnl/udata.h`).
fn comment(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(127)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let text = text.get(..end).unwrap_or_default().as_bytes();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], text, &[0]].concat()
}

/// `messages` between a batch's begin and end.
pub(super) fn batch(messages: &[Message]) -> Vec<u8> {
    let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let mut bytes =
        netlink(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, BATCH, [0, 0, subsystem[0], subsystem[1]], &[]);
    for (message, sequence) in messages.iter().zip(1..) {
        let (kind, flags) = message.type_and_flags();
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        bytes.extend(netlink(own(kind), flags, sequence, [NFPROTO_NETDEV, 0, 0, 0], &message.attributes));
    }
    bytes.extend(netlink(NFNL_MSG_BATCH_END, NLM_F_REQUEST, BATCH, [0, 0, subsystem[0], subsystem[1]], &[]));
    bytes
}

/// Asks for the rules of `chain`.
pub(super) fn dump_rules(chain: &Chain<'_>) -> Vec<u8> {
    let attributes = chain_of_rule(chain).finish();
    netlink(own(NFT_MSG_GETRULE), NLM_F_REQUEST | NLM_F_DUMP, 1, [NFPROTO_NETDEV, 0, 0, 0], &attributes)
}

const fn own(kind: u16) -> u16 {
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

/// What the kernel sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Acknowledgement (0) or refusal of the message with that sequence number.
    Answer { sequence: u32, errno: i32 },
    /// One rule of a dump.
    Rule { expressions: Vec<u8> },
    /// End of a dump.
    Done,
}

/// The replies in one datagram.
pub(super) fn replies(datagram: Vec<u8>) -> impl Iterator<Item = Result<Reply, NfTablesError>> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = datagram.get(offset..).filter(|rest| !rest.is_empty())?;
        let parsed = parse(rest);
        // After a message that cannot be read there is no telling where the next begins.
        offset = parsed.as_ref().map_or(datagram.len(), |(_, length)| offset + length.next_multiple_of(4));
        Some(parsed.map(|(reply, _)| reply).ok_or(NfTablesError::Answer))
    })
}

fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let field = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let length = usize::try_from(field(0)?).ok()?;
    let body = bytes.get(NETLINK_HEADER..length)?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let reply = match kind {
        NLMSG_DONE => Reply::Done,
        NLMSG_ERROR => {
            let errno = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?).checked_neg()?;
            Reply::Answer { sequence: field(8)?, errno }
        }
        _ if kind == own(NFT_MSG_NEWRULE) => {
            let attributes = Attributes::new(body.get(NFNETLINK_HEADER..)?);
            Reply::Rule { expressions: attributes.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec() }
        }
        _ => return None,
    };
    Some((reply, length))
}

/// The expressions in what [`Reply::Rule`] carries: name and attributes of each.
pub(crate) fn expressions(list: &[u8]) -> impl Iterator<Item = (&str, Attributes<'_>)> {
    Attributes::new(list).filter(|(kind, _)| *kind == NFTA_LIST_ELEM).filter_map(|(_, element)| {
        let element = Attributes::new(element);
        let name = element.get(NFTA_EXPR_NAME)?.strip_suffix(&[0])?;
        Some((
            std::str::from_utf8(name).ok()?,
            Attributes::new(element.get(NFTA_EXPR_DATA).unwrap_or_default()),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_lie_about_their_length_are_refused() {
        for bytes in [vec![1], vec![0; 16], vec![255; 40], [&200u32.to_ne_bytes()[..], &[0; 36]].concat()] {
            let read: Vec<_> = replies(bytes).collect();
            assert!(matches!(read[..], [Err(NfTablesError::Answer)]), "{read:?}");
        }
    }

    #[test]
    fn a_comment_is_cut_between_characters() {
        let long = "é".repeat(100);
        let written = comment(&long);
        assert_eq!(written.len(), 2 + 126 + 1);
        assert_eq!(std::str::from_utf8(&written[2..written.len() - 1]).unwrap(), "é".repeat(63));
    }
}
