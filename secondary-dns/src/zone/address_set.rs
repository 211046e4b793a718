//! The A and AAAA records of one owner, rendered once when they change and copied into every answer after that.
//!
//! A rendered record's owner is a compression pointer to offset 12: the question's name, which begins every
//! message's body. So the same octets serve every name the addresses have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{CLASS_IN, TYPE_A, TYPE_AAAA};

/// Most addresses kept per NIC: more would not fit a message, and only a hostile guest reports more.
pub const MAX_ADDRESSES: usize = 256;

/// A compression pointer to the question's name.
pub(crate) const QUESTION_POINTER: [u8; 2] = [0xc0, 12];
/// Owner pointer, type, class, TTL, length.
const RECORD_HEADER: usize = 12;
const A_RECORD: usize = RECORD_HEADER + 4;
const AAAA_RECORD: usize = RECORD_HEADER + 16;

/// All addresses of one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSet {
    /// The A records, then the AAAA records.
    rendered: Box<[u8]>,
    /// Octets of the A records.
    v4_length: usize,
}

impl AddressSet {
    /// Renders at most [`MAX_ADDRESSES`] of `addresses`, each once, with a TTL in seconds.
    pub fn new(addresses: &[IpAddr], ttl: u32) -> Self {
        let mut unique: Vec<IpAddr> = Vec::with_capacity(addresses.len().min(MAX_ADDRESSES));
        for address in addresses {
            if unique.len() < MAX_ADDRESSES && !unique.contains(address) {
                unique.push(*address);
            }
        }
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = unique.into_iter().partition(IpAddr::is_ipv4);
        let mut rendered = Vec::with_capacity(v4.len() * A_RECORD + v6.len() * AAAA_RECORD);
        v4.iter().for_each(|address| render(*address, ttl, &mut rendered));
        let v4_length = rendered.len();
        v6.iter().for_each(|address| render(*address, ttl, &mut rendered));
        Self { rendered: rendered.into_boxed_slice(), v4_length }
    }

    /// The rendered A records and how many they are.
    pub fn a(&self) -> (&[u8], usize) {
        let records = self.rendered.get(..self.v4_length).unwrap_or_default();
        (records, records.len() / A_RECORD)
    }

    /// The rendered AAAA records and how many they are.
    pub fn aaaa(&self) -> (&[u8], usize) {
        let records = self.rendered.get(self.v4_length..).unwrap_or_default();
        (records, records.len() / AAAA_RECORD)
    }

    /// The addresses themselves, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.a().0.chunks_exact(A_RECORD).filter_map(|record| {
            let octets: [u8; 4] = record.get(RECORD_HEADER..)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        });
        let v6 = self.aaaa().0.chunks_exact(AAAA_RECORD).filter_map(|record| {
            let octets: [u8; 16] = record.get(RECORD_HEADER..)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        });
        v4.chain(v6)
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.rendered.is_empty()
    }
}

fn render(address: IpAddr, ttl: u32, out: &mut Vec<u8>) {
    let (kind, data): (u16, &[u8]) = match &address {
        IpAddr::V4(v4) => (TYPE_A, &v4.octets()),
        IpAddr::V6(v6) => (TYPE_AAAA, &v6.octets()),
    };
    let length: u16 = if address.is_ipv4() { 4 } else { 16 };
    out.extend_from_slice(&QUESTION_POINTER);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_once_each_v4_first() {
        let given: Vec<IpAddr> =
            ["2001:db8::1", "10.0.0.2", "10.0.0.1", "10.0.0.2"].iter().map(|a| a.parse().unwrap()).collect();
        let set = AddressSet::new(&given, 30);
        let back: Vec<String> = set.iter().map(|a| a.to_string()).collect();
        assert_eq!(back, ["10.0.0.2", "10.0.0.1", "2001:db8::1"]);
        assert_eq!((set.a().1, set.aaaa().1), (2, 1));
    }

    #[test]
    fn one_nic_cannot_fill_the_memory() {
        let given: Vec<IpAddr> = (0..100_000u32).map(|n| IpAddr::V4(Ipv4Addr::from(n))).collect();
        assert_eq!(AddressSet::new(&given, 30).iter().count(), MAX_ADDRESSES);
    }
}
