//! The hot path: from a query's octets to a reply's octets, with no allocation and no system call.
//!
//! [`respond`] is a pure function of a zone snapshot and a message. It answers every ordinary query itself; what
//! needs more (a TSIG signature, a transfer, another opcode's rules) it hands back as [`Outcome::Special`] for
//! `message`, which does the same with hickory's types and serves as the reference this path is tested against.

mod query;
mod reply;

pub(crate) use query::has_opt;
pub use query::{Edns, Query};
use query::{Unusual, parse};
pub(crate) use reply::PLAIN_OPT;
use reply::{Full, Reply};

use crate::zone::{AddressSet, Found, Origin, Zone};

/// RR types of RFC 1035 and later, by their numbers.
pub const TYPE_A: u16 = 1;
/// RFC 1035.
pub const TYPE_NS: u16 = 2;
/// RFC 1035.
pub const TYPE_SOA: u16 = 6;
/// RFC 1035.
pub const TYPE_PTR: u16 = 12;
/// RFC 3596.
pub const TYPE_AAAA: u16 = 28;
/// RFC 6891.
pub const TYPE_OPT: u16 = 41;
/// RFC 8945.
pub const TYPE_TSIG: u16 = 250;
/// RFC 1995.
pub const TYPE_IXFR: u16 = 251;
/// RFC 5936.
pub const TYPE_AXFR: u16 = 252;
/// RFC 1035; answered as RFC 8482 says.
pub const TYPE_ANY: u16 = 255;
/// The Internet, the only class there is.
pub const CLASS_IN: u16 = 1;

/// Response codes used here (RFC 1035, RFC 6891).
pub mod rcode {
    /// Answered.
    pub const NO_ERROR: u16 = 0;
    /// The message makes no sense.
    pub const FORM_ERR: u16 = 1;
    /// The name does not exist.
    pub const NX_DOMAIN: u16 = 3;
    /// An opcode or type that is not served.
    pub const NOT_IMP: u16 = 4;
    /// Not one of our zones, or not for this client.
    pub const REFUSED: u16 = 5;
    /// An EDNS version above 0; its upper bits are in the OPT record.
    pub const BAD_VERS: u16 = 16;
}

/// Octets of a message's header.
pub const HEADER: usize = 12;
/// The largest UDP reply, and what our OPT record offers: fits every path without fragments (DNS flag day 2020).
pub const MAX_UDP: usize = 1232;
/// The largest UDP reply to a client without EDNS (RFC 1035 section 4.2.1).
pub const PLAIN_UDP: usize = 512;
/// The largest message there is.
pub const MAX_TCP: usize = 65535;

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Bounded by what the client accepts.
    Udp,
    /// Bounded by [`MAX_TCP`].
    Tcp,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The first `length` octets of the buffer are the reply.
    Reply {
        /// Octets.
        length: usize,
        /// The question's type; 0 if it could not be read.
        kind: u16,
        /// The extended response code.
        rcode: u16,
    },
    /// Not an ordinary query: see `message`.
    Special,
    /// Not worth an answer: too short, or itself a reply.
    Ignore,
}

/// Identity that is the same in every reply.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The NSID (RFC 5001), given to clients that ask for it; at most 64 octets. Empty: not given.
    pub nsid: Vec<u8>,
}

/// Says nothing about itself.
static NOBODY: Identity = Identity { nsid: Vec::new() };

/// Answers one message into `buffer`, which holds [`MAX_UDP`] octets (UDP) or [`MAX_TCP`].
pub fn respond(
    zone: &Zone,
    identity: &Identity,
    message: &[u8],
    transport: Transport,
    buffer: &mut [u8],
) -> Outcome {
    let query = match parse(message) {
        Ok(query) => query,
        Err(Unusual::Ignore) => return Outcome::Ignore,
        Err(Unusual::Special) => return Outcome::Special,
        Err(Unusual::Error(code)) => {
            let length = reply::bare(message, code, buffer);
            return Outcome::Reply { length, kind: 0, rcode: code };
        }
    };
    let limit = match (transport, &query.edns) {
        (Transport::Tcp, _) => MAX_TCP,
        (Transport::Udp, None) => PLAIN_UDP,
        (Transport::Udp, Some(edns)) => usize::from(edns.payload).clamp(PLAIN_UDP, MAX_UDP),
    };
    let limit = limit.min(buffer.len());
    let mut reply = Reply::new(&query, identity, buffer.get_mut(..limit).unwrap_or_default());
    let code = answer(zone, &query, &mut reply);
    let length = reply.finish(code);
    Outcome::Reply { length, kind: query.kind, rcode: code }
}

/// Replies to a query over the rate limit: "truncated", and nothing else.
pub fn refer_to_tcp(message: &[u8], buffer: &mut [u8]) -> Outcome {
    let Ok(query) = parse(message) else { return Outcome::Ignore };
    let mut reply = Reply::new(&query, &NOBODY, buffer.get_mut(..PLAIN_UDP).unwrap_or_default());
    reply.truncate();
    let length = reply.finish(rcode::NO_ERROR);
    Outcome::Reply { length, kind: query.kind, rcode: rcode::NO_ERROR }
}

/// Fills the sections and returns the response code.
fn answer(zone: &Zone, query: &Query<'_>, reply: &mut Reply<'_, '_>) -> u16 {
    if query.edns.as_ref().is_some_and(|edns| edns.version > 0) {
        return rcode::BAD_VERS;
    }
    if query.class != CLASS_IN {
        return rcode::REFUSED;
    }
    let Some((origin, found)) = zone.find(&query.name) else { return rcode::REFUSED };
    // Types 128 to 254 ask for something other than a record; none of them is served here.
    if query.kind == TYPE_OPT || (128..TYPE_ANY).contains(&query.kind) {
        return rcode::NOT_IMP;
    }
    reply.authoritative();
    let written = match (found, query.kind) {
        (Found::Apex, TYPE_SOA | TYPE_ANY) => reply.soa_answer(origin, zone.serial()),
        (Found::Apex, TYPE_NS) if origin.ns().is_some() => name_servers(zone, origin, reply),
        (Found::Addresses(set), TYPE_A) => addresses(set.a(), reply),
        (Found::Addresses(set), TYPE_AAAA) => addresses(set.aaaa(), reply),
        (Found::Addresses(set), TYPE_ANY) => addresses(any_of(set), reply),
        (Found::Pointer(name), TYPE_PTR | TYPE_ANY) => {
            let settings = zone.settings();
            reply.pointer(name, settings.forward.name(), settings.ttl).map(|()| true)
        }
        _ => Ok(false),
    };
    match written {
        Ok(true) => return rcode::NO_ERROR,
        Ok(false) => {}
        Err(Full) => {
            reply.truncate();
            return rcode::NO_ERROR;
        }
    }
    if reply.soa_authority(query, origin, zone.serial()).is_err() {
        reply.truncate();
    }
    if matches!(found, Found::Nothing) { rcode::NX_DOMAIN } else { rcode::NO_ERROR }
}

/// The one RRset that answers ANY (RFC 8482 section 4.1).
fn any_of(set: &AddressSet) -> (&[u8], usize) {
    let a = set.a();
    if a.1 > 0 { a } else { set.aaaa() }
}

fn addresses((records, count): (&[u8], usize), reply: &mut Reply<'_, '_>) -> Result<bool, Full> {
    reply.answers(records, count)?;
    Ok(count > 0)
}

/// The NS record; the server's addresses are added as far as they fit.
fn name_servers(zone: &Zone, origin: &Origin, reply: &mut Reply<'_, '_>) -> Result<bool, Full> {
    let Some(ns) = origin.ns() else { return Ok(false) };
    reply.ns_answer(ns)?;
    reply.glue(origin.server(), &zone.settings().name_servers);
    Ok(true)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
