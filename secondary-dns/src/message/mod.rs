//! Messages that the hot path hands over: signed ones, transfers, other opcodes, with hickory's types.
//!
//! [`Special::handle`] decides what becomes of such a message; [`answer`] is the same function from question to
//! answer as the hot path's, written a second time on hickory's records, and the reference for its tests.

pub mod tsig;

mod answer;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{RData, RecordType};

pub(crate) use answer::soa;
pub use answer::{answer, to_hickory};

use crate::name::NameBuf;
use crate::secondaries::Secondaries;
use crate::wire::{self, HEADER, Identity, MAX_TCP, MAX_UDP, PLAIN_UDP, Transport};
use crate::zone::{Found, Zone};
use tsig::{Keyring, Session, Verdict};

/// What special messages are judged by.
#[derive(Debug, Default)]
pub struct Special {
    /// The keys we share with others.
    pub keys: Keyring,
    /// Who may have the whole zone.
    pub secondaries: Secondaries,
    /// Keeps refused transfers, which cost a stranger one packet each, from filling the log.
    pub refusals: Occasionally,
}

/// What becomes of a special message.
pub enum Handled {
    /// Send these octets.
    Reply {
        /// The whole message.
        octets: Vec<u8>,
        /// The question's type; 0 if there is none.
        kind: u16,
        /// The response code.
        rcode: u16,
    },
    /// Send the zone (TCP only).
    Transfer(Transfer),
    /// Send nothing.
    Nothing,
}

/// A granted zone transfer.
pub struct Transfer {
    /// The request's identifier.
    pub id: u16,
    /// The question as it was sent.
    pub question: Vec<u8>,
    /// The zone's place: `None` for the forward zone, else in [`crate::zone::Settings::reverse`].
    pub reverse: Option<usize>,
    /// The request has an OPT record.
    pub edns: bool,
    /// Signs every message, if the request was signed.
    pub session: Option<Session>,
}

/// Lets one log line a second through.
#[derive(Debug, Default)]
pub struct Occasionally(AtomicU64);

impl Occasionally {
    fn may_log(&self, now: SystemTime) -> bool {
        let now = tsig::seconds(now);
        self.0.swap(now, Ordering::Relaxed) != now
    }
}

impl Special {
    /// Handles one message from `peer`.
    pub fn handle(
        &self,
        zone: &Arc<Zone>,
        identity: &Identity,
        octets: &[u8],
        transport: Transport,
        peer: IpAddr,
    ) -> Handled {
        let Some(request) = decode(octets) else { return form_error(octets) };
        let limit = match transport {
            Transport::Tcp => MAX_TCP,
            Transport::Udp => usize::from(request.max_payload()).clamp(PLAIN_UDP, MAX_UDP),
        };
        let mut session = match self.keys.verify(&request, octets, SystemTime::now()) {
            Verdict::Unsigned => None,
            Verdict::Valid(session) => Some(session),
            Verdict::Invalid { record, session } => {
                let reply = error(&request, ResponseCode::NotAuth);
                let Some(record) = record else { return signed(reply, session, limit) };
                let mut octets = encode(&reply, limit.saturating_sub(tsig::length(&record)));
                tsig::append(&mut octets, &record);
                return reply_of(&reply, octets);
            }
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return signed(error(&request, ResponseCode::BADVERS), session, limit);
        }
        let kind = request.queries.first().map(hickory_proto::op::Query::query_type);
        match (request.op_code, kind) {
            (OpCode::Query, Some(RecordType::AXFR | RecordType::IXFR)) => {
                match self.transfer(zone, octets, &request, transport, peer, &mut session) {
                    Ok(transfer) => Handled::Transfer(transfer),
                    Err(reply) => signed(*reply, session, limit),
                }
            }
            (OpCode::Query, Some(_)) => {
                let reply = answer(zone, identity, &request);
                signed(reply, session, limit)
            }
            // We are the primary: nobody tells us about our own zone (RFC 1996 section 3.10).
            (OpCode::Notify, _) => signed(error(&request, ResponseCode::Refused), session, limit),
            _ => signed(error(&request, ResponseCode::NotImp), session, limit),
        }
    }

    /// Grants a transfer, or says what to reply instead.
    fn transfer(
        &self,
        zone: &Arc<Zone>,
        octets: &[u8],
        request: &Message,
        transport: Transport,
        peer: IpAddr,
        session: &mut Option<Session>,
    ) -> Result<Transfer, Box<Message>> {
        let refuse = |code| Box::new(error(request, code));
        let name = NameBuf::read(octets, HEADER).ok_or_else(|| refuse(ResponseCode::FormErr))?;
        let Some((origin, Found::Apex)) = zone.find(&name) else {
            return Err(refuse(ResponseCode::NotAuth));
        };
        if !self.secondaries.may_transfer(peer, session.as_ref().map(Session::key)) {
            if self.refusals.may_log(SystemTime::now()) {
                tracing::warn!(%peer, zone = %origin.name(), "a zone transfer was refused: not by a --secondary");
            }
            return Err(refuse(ResponseCode::Refused));
        }
        // IXFR by UDP, or by a client that has this serial, is answered with the SOA record alone (RFC 1995 section 2).
        let theirs = request.authorities.first().and_then(|record| match &record.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        let incremental = request.queries.first().is_some_and(|q| q.query_type() == RecordType::IXFR);
        if incremental && (transport == Transport::Udp || theirs == Some(zone.serial())) {
            return Err(Box::new(answer::soa_only(zone, origin, request)));
        }
        if transport == Transport::Udp {
            return Err(refuse(ResponseCode::FormErr));
        }
        let settings = zone.settings();
        let reverse = settings.reverse.iter().position(|(known, _)| known.name() == origin.name());
        let question = octets.get(HEADER..HEADER + name.as_bytes().len() + 4).unwrap_or_default().to_vec();
        let edns = request.edns.is_some();
        Ok(Transfer { id: request.id, question, reverse, edns, session: session.take() })
    }
}

/// Decodes a request. Its counts are looked at first: the decoder allocates by them.
fn decode(octets: &[u8]) -> Option<Message> {
    let counts: [u8; 8] = octets.get(4..HEADER)?.try_into().ok()?;
    let [0, 0..=1, 0, 0..=1, 0, 0..=1, 0, 0..=2] = counts else { return None };
    Message::from_vec(octets).ok().filter(|message| message.message_type == MessageType::Query)
}

fn form_error(octets: &[u8]) -> Handled {
    let Some(&[a, b, flags, _]) = octets.first_chunk::<4>() else { return Handled::Nothing };
    let opcode = OpCode::from_u8((flags >> 3) & 0xf);
    let mut reply = Message::error_msg(u16::from_be_bytes([a, b]), opcode, ResponseCode::FormErr);
    if wire::has_opt(octets) {
        reply.set_edns(answer::edns(&Edns::new(), &Identity::default()));
    }
    let octets = encode(&reply, PLAIN_UDP);
    reply_of(&reply, octets)
}

/// The beginning of every reply: identity, the question, and an OPT record if the request has one (RFC 6891 section 6.1.1).
fn reply_to(request: &Message) -> Message {
    let mut reply = Message::response(request.id, request.op_code);
    reply.metadata.recursion_desired = request.recursion_desired;
    reply.queries.clone_from(&request.queries);
    if let Some(asked) = &request.edns {
        reply.set_edns(answer::edns(asked, &Identity::default()));
    }
    reply
}

fn error(request: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(request);
    reply.metadata.response_code = code;
    reply
}

/// Encodes; a reply that does not fit loses its records and says so. Without records it fits, except beside a signature
/// whose names are as long as names can be: then it loses the question too.
fn encode(reply: &Message, limit: usize) -> Vec<u8> {
    let whole = reply.to_vec().unwrap_or_default();
    if whole.len() <= limit && !whole.is_empty() {
        return whole;
    }
    let mut cut = reply.clone();
    cut.metadata.truncation = true;
    (cut.answers, cut.authorities, cut.additionals) = (Vec::new(), Vec::new(), Vec::new());
    let short = cut.to_vec().unwrap_or_default();
    if short.len() <= limit {
        return short;
    }
    cut.queries.clear();
    cut.to_vec().unwrap_or_default()
}

fn signed(reply: Message, session: Option<Session>, limit: usize) -> Handled {
    let Some(mut session) = session else {
        let octets = encode(&reply, limit);
        return reply_of(&reply, octets);
    };
    let now = SystemTime::now();
    let mut octets = encode(&reply, limit.saturating_sub(session.room(now)));
    match session.sign(&mut octets, now) {
        Ok(()) => reply_of(&reply, octets),
        Err(error) => {
            tracing::error!(%error, "sign a reply");
            Handled::Nothing
        }
    }
}

fn reply_of(reply: &Message, octets: Vec<u8>) -> Handled {
    if octets.is_empty() {
        return Handled::Nothing;
    }
    let kind = reply.queries.first().map_or(0, |query| query.query_type().into());
    Handled::Reply { octets, kind, rcode: reply.response_code.into() }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
