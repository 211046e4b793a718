//! AXFR (RFC 5936): a zone's snapshot as a stream of messages.
//!
//! The snapshot does not change while it is walked, however long that takes; newer ones are served meanwhile. Each
//! message repeats the question, so that every owner can point to the zone's name in it. An owner's name is written
//! once: its further records point there, so that no owner outgrows a message, however long its name.

use std::net::IpAddr;

use crate::message::Transfer;
use crate::name::Name;
use crate::wire::{CLASS_IN, HEADER, PLAIN_OPT, TYPE_PTR};
use crate::zone::{AddressSet, Origin, Settings, Zone, reverse};

/// Octets at which a message is complete; one owner's addresses may come on top (at most 7 kB). A compression pointer
/// reaches as far.
const MESSAGE: usize = 16 << 10;
/// A compression pointer to the question's name, which is the zone's.
const ZONE_POINTER: [u8; 2] = [0xc0, 12];

/// Every message of a transfer, unsigned.
pub fn messages<'z>(zone: &'z Zone, transfer: &Transfer) -> impl Iterator<Item = Vec<u8>> + Send + 'z {
    let settings = zone.settings();
    let mut message = Chunk::new(transfer);
    let (origin, mut owners): (&Origin, Box<dyn Iterator<Item = Owner<'z>> + Send>) =
        match transfer.reverse.and_then(|at| settings.reverse.get(at)) {
            None => {
                let owners = zone.forward_records().map(|(name, set)| Owner::Forward(name, set));
                (&settings.forward, Box::new(owners))
            }
            Some((origin, network)) => {
                let owners = zone.reverse_records(*network).map(|(ip, name)| Owner::Reverse(ip, name));
                (origin, Box::new(owners))
            }
        };
    message.apex(origin, zone.serial());
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        for owner in owners.by_ref() {
            match owner {
                Owner::Forward(name, addresses) => message.addresses(name, addresses),
                Owner::Reverse(address, name) => message.pointer(address, origin, name, settings),
            }
            if message.is_full() {
                return Some(message.take());
            }
        }
        ended = true;
        message.soa(origin, zone.serial());
        Some(message.take())
    })
}

/// One owner of records.
enum Owner<'z> {
    Forward(&'z Name, &'z AddressSet),
    Reverse(IpAddr, &'z Name),
}

/// One message under construction.
struct Chunk {
    head: Vec<u8>,
    octets: Vec<u8>,
    answers: u16,
    /// Every message ends with an OPT record, as the request did (RFC 5936 section 2.2.5).
    edns: bool,
}

impl Chunk {
    fn new(transfer: &Transfer) -> Self {
        let [high, low] = transfer.id.to_be_bytes();
        // QR and AA; one question.
        let mut head = vec![high, low, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        debug_assert_eq!(head.len(), HEADER);
        head.extend_from_slice(&transfer.question);
        Self { octets: head.clone(), head, answers: 0, edns: transfer.edns }
    }

    fn is_full(&self) -> bool {
        self.octets.len() >= MESSAGE
    }

    /// The finished message; the next one begins.
    fn take(&mut self) -> Vec<u8> {
        let mut message = std::mem::replace(&mut self.octets, self.head.clone());
        if let Some(count) = message.get_mut(6..8) {
            count.copy_from_slice(&self.answers.to_be_bytes());
        }
        self.answers = 0;
        if let Some(count) = message.get_mut(11).filter(|_| self.edns) {
            *count = 1;
            message.extend_from_slice(&PLAIN_OPT);
        }
        message
    }

    fn record(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.octets.extend_from_slice(part));
        self.answers += 1;
    }

    fn apex(&mut self, origin: &Origin, serial: u32) {
        self.soa(origin, serial);
        if let Some(ns) = origin.ns() {
            self.record(&[&ZONE_POINTER, ns]);
        }
    }

    fn soa(&mut self, origin: &Origin, serial: u32) {
        let (soa, serial_at) = origin.soa();
        let (front, rest) = soa.split_at(serial_at);
        self.record(&[&ZONE_POINTER, front, &serial.to_be_bytes(), rest.get(4..).unwrap_or_default()]);
    }

    fn addresses(&mut self, name: &Name, addresses: &AddressSet) {
        // In place of the pointer to the question: the owner's labels, then the zone; later a pointer to these.
        let mut owner = [name.as_bytes(), &ZONE_POINTER].concat();
        let place = 0xc000 | u16::try_from(self.octets.len()).unwrap_or_default();
        for (records, count) in [addresses.a(), addresses.aaaa()] {
            let Some(size) = records.len().checked_div(count) else { continue };
            for record in records.chunks_exact(size) {
                self.record(&[&owner, record.get(2..).unwrap_or_default()]);
                owner = place.to_be_bytes().to_vec();
            }
        }
    }

    fn pointer(&mut self, address: IpAddr, origin: &Origin, name: &Name, settings: &Settings) {
        let forward = settings.forward.name();
        let Ok(owner) = reverse::owner_name(address) else { return };
        let Some(front) = owner.as_bytes().strip_suffix(origin.name().as_bytes()) else { return };
        let length = name.as_bytes().len() + forward.as_bytes().len();
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.record(&[
            front,
            &ZONE_POINTER,
            &TYPE_PTR.to_be_bytes(),
            &CLASS_IN.to_be_bytes(),
            &settings.ttl.to_be_bytes(),
            &length.to_be_bytes(),
            name.as_bytes(),
            forward.as_bytes(),
        ]);
    }
}
