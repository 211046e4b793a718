//! What nf_tables answers.

use super::message::{
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWOBJ, NFT_MSG_NEWRULE, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE,
    NFT_TABLE_F_DORMANT, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE, NFTA_CHAIN_USE, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_LIST_ELEM, NFTA_OBJ_NAME, NFTA_OBJ_USERDATA, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_OBJREF, NFTA_SET_ELEM_USERDATA, NFTA_TABLE_FLAGS,
    NFTA_TABLE_USE, NFTA_VERDICT_CHAIN, new_chain,
};
use super::object::Chain;
use super::request::{NETLINK_HEADER, NFNETLINK_HEADER, own};
use super::{Attributes, NfTablesError};

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// What the kernel sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Acknowledgement (0) or refusal of the message with that sequence number.
    Answer { sequence: u32, errno: i32 },
    /// One rule of a dump.
    Rule(FoundRule),
    /// One chain of a dump.
    Chain(FoundChain),
    /// Elements of a set.
    Elements(Vec<FoundElement>),
    /// A counter.
    Counter(FoundCounter),
    /// A table.
    Table(FoundTable),
    /// Some of a dump, where a transaction was carried out since the dump's previous part.
    Torn,
    /// End of a dump, and whether a transaction was carried out since its last part.
    Done { is_torn: bool },
}

/// A table that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundTable {
    /// How many chains, sets and counters it holds.
    pub holds: u32,
    /// Somebody has switched it off: no packet meets its chains.
    pub is_dormant: bool,
}

/// A rule that is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FoundRule {
    /// The chain it is in.
    pub chain: String,
    /// Its comment; empty if it has none.
    pub comment: String,
    /// Its expressions, for [`super::expression`].
    pub expressions: Vec<u8>,
}

/// A chain that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundChain {
    /// The table it is in.
    pub table: String,
    /// Its name.
    pub name: String,
    /// How many rules it has, and how many lead to it.
    pub uses: u32,
    attributes: Vec<u8>,
}

impl FoundChain {
    /// True if it is as [`super::Transaction::add_chain`] makes `chain`.
    pub fn is(&self, chain: &Chain<'_>) -> bool {
        let found = Attributes::new(&self.attributes);
        found.get(NFTA_CHAIN_HOOK).is_some() == chain.hook.is_some() && found.contain(&new_chain(chain))
    }
}

/// An element of a set that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundElement {
    /// What it is looked up by.
    pub key: Vec<u8>,
    /// The chain or counter it leads to; empty if it leads nowhere.
    pub target: String,
    /// Its comment; empty if it has none.
    pub comment: String,
}

/// A counter that is there.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundCounter {
    /// Its name.
    pub name: String,
    /// Its comment; empty if it has none.
    pub comment: String,
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
    let half = |at: usize| bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let (kind, flags) = (half(4)?, half(6)?);
    let is_torn = flags & NLM_F_DUMP_INTR != 0;
    let attributes = || Some(Attributes::new(body.get(NFNETLINK_HEADER..)?));
    let reply = match kind {
        NLMSG_DONE => Reply::Done { is_torn },
        NLMSG_ERROR => {
            let errno = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?).checked_neg()?;
            Reply::Answer { sequence: field(8)?, errno }
        }
        _ if is_torn => Reply::Torn,
        _ if kind == own(NFT_MSG_NEWRULE) => Reply::Rule(rule(&attributes()?)),
        _ if kind == own(NFT_MSG_NEWCHAIN) => Reply::Chain(chain(body.get(NFNETLINK_HEADER..)?)),
        _ if kind == own(NFT_MSG_NEWSETELEM) => Reply::Elements(elements(&attributes()?)),
        _ if kind == own(NFT_MSG_NEWOBJ) => Reply::Counter(counter(&attributes()?)),
        _ if kind == own(NFT_MSG_NEWTABLE) => Reply::Table(table(&attributes()?)?),
        _ => return None,
    };
    Some((reply, length))
}

fn table(attributes: &Attributes<'_>) -> Option<FoundTable> {
    let flags = attributes.number(NFTA_TABLE_FLAGS)?;
    Some(FoundTable {
        holds: attributes.number(NFTA_TABLE_USE)?,
        is_dormant: flags & NFT_TABLE_F_DORMANT != 0,
    })
}

fn chain(bytes: &[u8]) -> FoundChain {
    let attributes = Attributes::new(bytes);
    FoundChain {
        table: text(attributes.get(NFTA_CHAIN_TABLE)),
        name: text(attributes.get(NFTA_CHAIN_NAME)),
        uses: attributes.number(NFTA_CHAIN_USE).unwrap_or_default(),
        attributes: bytes.to_vec(),
    }
}

fn rule(attributes: &Attributes<'_>) -> FoundRule {
    FoundRule {
        chain: text(attributes.get(NFTA_RULE_CHAIN)),
        comment: comment(attributes.get(NFTA_RULE_USERDATA)),
        expressions: attributes.get(NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec(),
    }
}

fn counter(attributes: &Attributes<'_>) -> FoundCounter {
    FoundCounter {
        name: text(attributes.get(NFTA_OBJ_NAME)),
        comment: comment(attributes.get(NFTA_OBJ_USERDATA)),
    }
}

fn elements(attributes: &Attributes<'_>) -> Vec<FoundElement> {
    let list = Attributes::new(attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default());
    list.filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .filter_map(|(_, bytes)| element(&Attributes::new(bytes)))
        .collect()
}

fn element(attributes: &Attributes<'_>) -> Option<FoundElement> {
    let key = Attributes::new(attributes.get(NFTA_SET_ELEM_KEY)?);
    let chain = || {
        let data = Attributes::new(attributes.get(NFTA_SET_ELEM_DATA)?);
        Attributes::new(data.get(NFTA_DATA_VERDICT)?).get(NFTA_VERDICT_CHAIN)
    };
    Some(FoundElement {
        key: key.get(NFTA_DATA_VALUE)?.to_vec(),
        target: text(attributes.get(NFTA_SET_ELEM_OBJREF).or_else(chain)),
        comment: comment(attributes.get(NFTA_SET_ELEM_USERDATA)),
    })
}

/// The comment in user data.
fn comment(data: Option<&[u8]>) -> String {
    text(data.and_then(|data| match data {
        [0, length, text @ ..] => text.get(..usize::from(*length)),
        _ => None,
    }))
}

/// A text up to its NUL.
fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
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
}
