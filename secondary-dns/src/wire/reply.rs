//! Writing a reply into a buffer that may be too small for it.

use super::query::{Query, has_opt};
use super::{CLASS_IN, HEADER, Identity, MAX_UDP, TYPE_OPT, TYPE_PTR};
use crate::name::Name;
use crate::zone::{AddressSet, Origin};

/// A compression pointer to the question's name.
const QUESTION_POINTER: [u8; 2] = [0xc0, 12];
/// Header flag octet 2: this is a reply.
const QR: u8 = 0x80;
/// Header flag octet 2: authoritative.
const AA: u8 = 0x04;
/// Header flag octet 2: truncated.
const TC: u8 = 0x02;
/// Header flag octet 2: opcode and recursion desired, which are repeated.
const REPEATED: u8 = 0x79;
/// Where the section counts are in the header.
const ANSWERS: usize = 6;
const AUTHORITIES: usize = 8;
const ADDITIONALS: usize = 10;

/// An OPT record that says nothing but what we accept: [`MAX_UDP`] octets.
pub(crate) const PLAIN_OPT: [u8; 11] = {
    let [kind_high, kind_low] = TYPE_OPT.to_be_bytes();
    let [.., size_high, size_low] = MAX_UDP.to_be_bytes();
    [0, kind_high, kind_low, size_high, size_low, 0, 0, 0, 0, 0, 0]
};

/// The record does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// A reply under construction. Room for the OPT record is kept back from the start.
pub(super) struct Reply<'q, 'b> {
    query: &'q Query<'q>,
    nsid: &'q [u8],
    buffer: &'b mut [u8],
    length: usize,
    /// Where the records begin.
    body: usize,
    /// How far records may go.
    limit: usize,
    flags: u8,
    counts: [u16; 3],
}

impl<'q, 'b> Reply<'q, 'b> {
    /// Starts with the question; `buffer` must hold header, question and OPT, which [`super::PLAIN_UDP`] always does
    /// (12 + 259 + 11 + 4 + 64).
    pub(super) fn new(query: &'q Query<'q>, identity: &'q Identity, buffer: &'b mut [u8]) -> Self {
        let nsid: &[u8] = match query.edns {
            Some(edns) if edns.nsid => &identity.nsid,
            _ => &[],
        };
        let kept = match query.edns {
            None => 0,
            Some(_) if nsid.is_empty() => 11,
            Some(_) => 15 + nsid.len(),
        };
        let limit = buffer.len().saturating_sub(kept);
        let [_, _, flags, _] = query.head;
        let mut reply = Self {
            query,
            nsid,
            buffer,
            length: HEADER,
            body: HEADER,
            limit,
            flags: QR | flags & REPEATED,
            counts: [0; 3],
        };
        // It fits, as said above; if it did not, the reply would be a header.
        let _fits = reply.push(&[query.question]);
        reply.body = reply.length;
        reply
    }

    /// Marks the reply as coming from the zone itself.
    pub(super) fn authoritative(&mut self) {
        self.flags |= AA;
    }

    /// Takes all records back and tells the client to ask again by TCP.
    pub(super) fn truncate(&mut self) {
        self.flags |= TC;
        self.length = self.body;
        self.counts = [0; 3];
    }

    /// Rendered records whose owner is the question's name.
    pub(super) fn answers(&mut self, records: &[u8], count: usize) -> Result<(), Full> {
        self.push(&[records])?;
        self.counts[0] += u16::try_from(count).unwrap_or(u16::MAX);
        Ok(())
    }

    /// The SOA record as the answer.
    pub(super) fn soa_answer(&mut self, origin: &Origin, serial: u32) -> Result<bool, Full> {
        self.soa(QUESTION_POINTER, origin, serial)?;
        self.counts[0] += 1;
        Ok(true)
    }

    /// The SOA record that goes with a negative answer (RFC 2308 section 3).
    pub(super) fn soa_authority(
        &mut self,
        query: &Query<'_>,
        origin: &Origin,
        serial: u32,
    ) -> Result<(), Full> {
        let front = query.name.as_bytes().len() - origin.name().as_bytes().len();
        // Names are at most 255 octets, so the pointer's 14 bits do.
        let pointer = 0xc000 | u16::try_from(HEADER + front).unwrap_or_default();
        self.soa(pointer.to_be_bytes(), origin, serial)?;
        self.counts[1] += 1;
        Ok(())
    }

    fn soa(&mut self, owner: [u8; 2], origin: &Origin, serial: u32) -> Result<(), Full> {
        let (record, serial_at) = origin.soa();
        let start = self.length + owner.len();
        self.push(&[&owner, record])?;
        let serial_at = start + serial_at;
        if let Some(place) = self.buffer.get_mut(serial_at..serial_at + 4) {
            place.copy_from_slice(&serial.to_be_bytes());
        }
        Ok(())
    }

    /// The NS record as the answer.
    pub(super) fn ns_answer(&mut self, record: &[u8]) -> Result<(), Full> {
        self.push(&[&QUESTION_POINTER, record])?;
        self.counts[0] += 1;
        Ok(())
    }

    /// The name server's addresses, each if it still fits.
    pub(super) fn glue(&mut self, server: &Name, addresses: &AddressSet) {
        for (records, count) in [addresses.a(), addresses.aaaa()] {
            let Some(size) = records.len().checked_div(count) else { continue };
            for record in records.chunks_exact(size) {
                let fixed = record.get(QUESTION_POINTER.len()..).unwrap_or_default();
                if self.push(&[server.as_bytes(), fixed]).is_ok() {
                    self.counts[2] += 1;
                }
            }
        }
    }

    /// A PTR record to `name` below `zone`.
    pub(super) fn pointer(&mut self, name: &Name, zone: &Name, ttl: u32) -> Result<(), Full> {
        let length = u16::try_from(name.as_bytes().len() + zone.as_bytes().len()).unwrap_or(u16::MAX);
        self.push(&[
            &QUESTION_POINTER,
            &TYPE_PTR.to_be_bytes(),
            &CLASS_IN.to_be_bytes(),
            &ttl.to_be_bytes(),
            &length.to_be_bytes(),
            name.as_bytes(),
            zone.as_bytes(),
        ])?;
        self.counts[0] += 1;
        Ok(())
    }

    /// Writes OPT and header; returns the reply's length.
    pub(super) fn finish(mut self, rcode: u16) -> usize {
        self.limit = self.buffer.len();
        self.opt(rcode);
        let [id_high, id_low, _, _] = self.query.head;
        let low = u8::try_from(rcode & 0xf).unwrap_or_default();
        let mut header = [id_high, id_low, self.flags, low, 0, 1, 0, 0, 0, 0, 0, 0];
        for (at, count) in [ANSWERS, AUTHORITIES, ADDITIONALS].into_iter().zip(self.counts) {
            if let Some(place) = header.get_mut(at..at + 2) {
                place.copy_from_slice(&count.to_be_bytes());
            }
        }
        if let Some(place) = self.buffer.first_chunk_mut::<HEADER>() {
            *place = header;
        }
        self.length
    }

    fn opt(&mut self, rcode: u16) {
        let Some(edns) = self.query.edns else { return };
        let [kind_high, kind_low] = TYPE_OPT.to_be_bytes();
        let [size_high, size_low] = u16::try_from(MAX_UDP).unwrap_or(u16::MAX).to_be_bytes();
        let extended = u8::try_from(rcode >> 4).unwrap_or_default();
        let dnssec_ok = if edns.dnssec_ok { 0x80 } else { 0 };
        let fixed = [0, kind_high, kind_low, size_high, size_low, extended, 0, dnssec_ok, 0];
        let length = u16::try_from(self.nsid.len()).unwrap_or_default();
        let fits = if self.nsid.is_empty() {
            self.push(&[&fixed, &[0, 0]])
        } else {
            self.push(&[&fixed, &(length + 4).to_be_bytes(), &[0, 3], &length.to_be_bytes(), self.nsid])
        };
        if fits.is_ok() {
            self.counts[2] += 1;
        }
    }

    /// Appends all parts or none.
    fn push(&mut self, parts: &[&[u8]]) -> Result<(), Full> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if self.length + total > self.limit {
            return Err(Full);
        }
        for part in parts {
            let place = self.buffer.get_mut(self.length..self.length + part.len()).ok_or(Full)?;
            place.copy_from_slice(part);
            self.length += part.len();
        }
        Ok(())
    }
}

/// A reply that is only a header, and an OPT record if the message has one: the question could not be read. `message`
/// holds a header.
pub(super) fn bare(message: &[u8], rcode: u16, buffer: &mut [u8]) -> usize {
    let (Some(&[a, b, flags, _]), Some(place)) =
        (message.first_chunk::<4>(), buffer.first_chunk_mut::<HEADER>())
    else {
        return 0;
    };
    let low = u8::try_from(rcode & 0xf).unwrap_or_default();
    *place = [a, b, QR | flags & REPEATED, low, 0, 0, 0, 0, 0, 0, 0, 0];
    if !has_opt(message) {
        return HEADER;
    }
    place[ADDITIONALS + 1] = 1;
    match buffer.get_mut(HEADER..HEADER + PLAIN_OPT.len()) {
        Some(place) => place.copy_from_slice(&PLAIN_OPT),
        None => return 0,
    }
    HEADER + PLAIN_OPT.len()
}
