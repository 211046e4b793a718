//! The apex of one served zone: its SOA and NS records, rendered once.

use crate::name::Name;
use crate::wire::{CLASS_IN, TYPE_NS, TYPE_SOA};

/// Seconds between two looks of a secondary at our serial; NOTIFY makes them rare, this bounds a lost one.
const REFRESH: u32 = 60;
/// Seconds until a secondary that could not reach us tries again.
const RETRY: u32 = 15;
/// Seconds a secondary goes on answering without us: a week.
const EXPIRE: u32 = 604_800;

/// One served zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    name: Name,
    server: Name,
    contact: Name,
    negative_ttl: u32,
    /// From the type on: type, class, TTL, length, data; the serial is the reader's to fill in.
    soa: Box<[u8]>,
    serial_at: usize,
    /// The same for the NS record; empty if no name server is known by address.
    ns: Box<[u8]>,
}

/// The numbers of a SOA record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoaTimes {
    /// Seconds, as in RFC 1035 section 3.3.13.
    pub refresh: u32,
    /// Seconds.
    pub retry: u32,
    /// Seconds.
    pub expire: u32,
    /// Seconds a negative answer may be cached (RFC 2308); also the SOA record's own TTL.
    pub negative_ttl: u32,
}

impl Origin {
    /// The zone `name`, whose primary server is `server`; with an NS record of `ttl` seconds if `delegable`.
    pub fn new(
        name: Name,
        server: Name,
        contact: Name,
        ttl: u32,
        negative_ttl: u32,
        delegable: bool,
    ) -> Self {
        let mut data = [server.as_bytes(), contact.as_bytes()].concat();
        let serial_in_data = data.len();
        data.extend_from_slice(&[0; 4]);
        for number in [REFRESH, RETRY, EXPIRE, negative_ttl] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        let soa = record(TYPE_SOA, negative_ttl, &data);
        let serial_at = soa.len() - data.len() + serial_in_data;
        let ns = if delegable { record(TYPE_NS, ttl, server.as_bytes()) } else { Box::default() };
        Self { name, server, contact, negative_ttl, soa, serial_at, ns }
    }

    /// The zone's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The primary server's name, as in SOA and NS.
    pub fn server(&self) -> &Name {
        &self.server
    }

    /// The person to ask, as the SOA record spells a mail address.
    pub fn contact(&self) -> &Name {
        &self.contact
    }

    /// The numbers of the SOA record.
    pub fn times(&self) -> SoaTimes {
        SoaTimes { refresh: REFRESH, retry: RETRY, expire: EXPIRE, negative_ttl: self.negative_ttl }
    }

    /// The SOA record from its type on, and where in it the serial's four octets belong.
    pub fn soa(&self) -> (&[u8], usize) {
        (&self.soa, self.serial_at)
    }

    /// The NS record from its type on, if there is one.
    pub fn ns(&self) -> Option<&[u8]> {
        (!self.ns.is_empty()).then_some(&self.ns)
    }
}

/// A record without its owner. `data` is at most two names and 20 octets, so its length fits.
fn record(kind: u16, ttl: u32, data: &[u8]) -> Box<[u8]> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let mut out = Vec::with_capacity(10 + data.len());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
    out.into_boxed_slice()
}
