//! Reading a query: header, one question, at most one OPT record.

use super::{HEADER, TYPE_AXFR, TYPE_IXFR, TYPE_OPT, TYPE_TSIG, rcode};
use crate::name::NameBuf;

/// EDNS option NSID (RFC 5001).
const OPTION_NSID: u16 = 3;

/// An ordinary query.
#[derive(Debug, Clone)]
pub struct Query<'m> {
    /// The header's first four octets: identifier and flags.
    pub head: [u8; 4],
    /// The question as it was sent: 0x20 clients compare the case of every letter.
    pub question: &'m [u8],
    /// The name asked for, lower-cased.
    pub name: NameBuf,
    /// QTYPE.
    pub kind: u16,
    /// QCLASS.
    pub class: u16,
    /// The OPT record, if there is one.
    pub edns: Option<Edns>,
}

/// What an OPT record says (RFC 6891 section 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Octets the client accepts by UDP.
    pub payload: u16,
    /// EDNS version; only 0 exists.
    pub version: u8,
    /// The DO bit, which a reply must repeat (RFC 3225 section 3).
    pub dnssec_ok: bool,
    /// The client asks who we are.
    pub nsid: bool,
}

/// Why a message is not an ordinary query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusual {
    /// To be answered by `message`.
    Special,
    /// To be answered with this code and nothing else.
    Error(u16),
    /// Not to be answered.
    Ignore,
}

/// Reads a message.
pub(super) fn parse(message: &[u8]) -> Result<Query<'_>, Unusual> {
    let Some(&[a, b, flags, low]) = message.first_chunk::<4>() else { return Err(Unusual::Ignore) };
    // A reply is never answered: two servers would talk for ever.
    if message.len() < HEADER || flags & 0x80 != 0 {
        return Err(Unusual::Ignore);
    }
    let opcode = (flags >> 3) & 0xf;
    if opcode != 0 {
        return Err(Unusual::Special);
    }
    let counts = [4, 6, 8, 10].map(|at| u16_at(message, at).unwrap_or_default());
    let [1, 0, 0, additional @ 0..=1] = counts else {
        // An OPT and a TSIG record; and the SOA record of a client's own copy, with IXFR.
        let special = matches!(counts, [1, 0, 0..=1, 0..=2]);
        return Err(if special { Unusual::Special } else { Unusual::Error(rcode::FORM_ERR) });
    };
    let Some(name) = NameBuf::read(message, HEADER) else { return Err(Unusual::Error(rcode::FORM_ERR)) };
    let end = HEADER + name.as_bytes().len() + 4;
    let (Some(question), Some(kind), Some(class)) =
        (message.get(HEADER..end), u16_at(message, end - 4), u16_at(message, end - 2))
    else {
        return Err(Unusual::Error(rcode::FORM_ERR));
    };
    if matches!(kind, TYPE_AXFR | TYPE_IXFR) {
        return Err(Unusual::Special);
    }
    let rest = message.get(end..).unwrap_or_default();
    let edns = match additional {
        0 => None,
        _ => match read_opt(rest) {
            Opt::Edns(edns) => Some(edns),
            Opt::Tsig => return Err(Unusual::Special),
            Opt::Malformed => return Err(Unusual::Error(rcode::FORM_ERR)),
        },
    };
    Ok(Query { head: [a, b, flags, low], question, name, kind, class, edns })
}

enum Opt {
    Edns(Edns),
    Tsig,
    Malformed,
}

/// Reads the additional record: an OPT, else something `message` understands.
fn read_opt(record: &[u8]) -> Opt {
    // Only OPT has the root for its owner; TSIG has its key's name, perhaps compressed.
    let Some((0, fixed)) = record.split_first().map(|(length, rest)| (*length, rest)) else {
        return if record.is_empty() { Opt::Malformed } else { Opt::Tsig };
    };
    match u16_at(fixed, 0) {
        Some(TYPE_OPT) => {}
        Some(TYPE_TSIG) => return Opt::Tsig,
        _ => return Opt::Malformed,
    }
    let (Some(payload), Some(version), Some(flags), Some(length)) =
        (u16_at(fixed, 2), fixed.get(5), u16_at(fixed, 6), u16_at(fixed, 8))
    else {
        return Opt::Malformed;
    };
    let Some(options) = fixed.get(10..10 + usize::from(length)) else { return Opt::Malformed };
    let Some(nsid) = asks_nsid(options) else { return Opt::Malformed };
    Opt::Edns(Edns { payload, version: *version, dnssec_ok: flags & 0x8000 != 0, nsid })
}

/// Walks the options; `None` if one runs over the end.
fn asks_nsid(mut options: &[u8]) -> Option<bool> {
    let mut found = false;
    while !options.is_empty() {
        found |= u16_at(options, 0)? == OPTION_NSID;
        let length = usize::from(u16_at(options, 2)?);
        options = options.get(4 + length..)?;
    }
    Some(found)
}

/// Is there an OPT record in a message that makes no sense otherwise? Looks no further than can be read.
pub(crate) fn has_opt(message: &[u8]) -> bool {
    find_opt(message).unwrap_or(false)
}

fn find_opt(message: &[u8]) -> Option<bool> {
    let counts = [4, 6, 8, 10].map(|at| u16_at(message, at).unwrap_or_default());
    let [questions, answers, authorities, additionals] = counts.map(u32::from);
    let mut rest = message.get(HEADER..)?;
    for _ in 0..questions {
        rest = after_name(rest)?.get(4..)?;
    }
    // Every record takes octets: the message's end bounds the loop, whatever the counts say.
    for n in 0..answers + authorities + additionals {
        let is_root = rest.first() == Some(&0);
        rest = after_name(rest)?;
        if is_root && n >= answers + authorities && u16_at(rest, 0)? == TYPE_OPT {
            return Some(true);
        }
        rest = rest.get(10 + usize::from(u16_at(rest, 8)?)..)?;
    }
    Some(false)
}

/// What follows a name: its labels, then the root or a compression pointer.
fn after_name(mut octets: &[u8]) -> Option<&[u8]> {
    loop {
        match *octets.first()? {
            0 => return octets.get(1..),
            length @ 1..=0x3f => octets = octets.get(1 + usize::from(length)..)?,
            0x40..=0xbf => return None,
            0xc0..=0xff => return octets.get(2..),
        }
    }
}

pub(super) fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..)?.first_chunk::<2>().map(|pair| u16::from_be_bytes(*pair))
}
