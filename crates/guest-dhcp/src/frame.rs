//! Frames: what a guest may send that concerns us, and answers around which a frame is put.
//!
//! Reads and writes Ethernet II, IPv4 without fragments, and IPv6 without extension headers, which is what DHCP clients
//! and router solicitations come in. Checksums are written but not verified: a guest may leave them to its NIC.

use std::net::{Ipv4Addr, Ipv6Addr};

use net_types::Mac;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// More fragments, and the offset of this one.
const FRAGMENT: u16 = 0x3fff;

/// DHCPv4's ports.
const V4_CLIENT: u16 = 68;
const V4_SERVER: u16 = 67;
/// DHCPv6's ports.
const V6_CLIENT: u16 = 546;
const V6_SERVER: u16 = 547;
/// A router solicitation's type, and the hop limit it must have (RFC 4861, 6.1.1).
const ROUTER_SOLICITATION: u8 = 133;
pub(crate) const ND_HOP_LIMIT: u8 = 255;
const HOP_LIMIT: u8 = 64;

/// What a guest asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    /// A DHCPv4 message, and whom it was sent to.
    Dhcpv4 { to: Ipv4Addr, message: &'a [u8] },
    /// A DHCPv6 message, and who sent it to whom.
    Dhcpv6 { from: Ipv6Addr, to: Ipv6Addr, message: &'a [u8] },
    /// A router solicitation, and who sent it.
    Router { from: Ipv6Addr },
}

/// Reads a frame of the guest's; none if it is not the guest's, or nothing for us.
pub(crate) fn question(frame: &[u8], guest: Mac) -> Option<Question<'_>> {
    if frame.get(6..12)? != guest.octets() {
        return None;
    }
    let packet = frame.get(ETHERNET_BYTES..)?;
    match frame.get(12..14)?.try_into().ok()? {
        IPV4 => question_v4(packet),
        IPV6 => question_v6(packet),
        _ => None,
    }
}

fn question_v4(packet: &[u8]) -> Option<Question<'_>> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let total = usize::from(u16_at(packet, 2)?);
    if first >> 4 != 4 || header < IPV4_BYTES || *packet.get(9)? != UDP || u16_at(packet, 6)? & FRAGMENT != 0
    {
        return None;
    }
    let to = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
    // A short frame is padded: the header knows better where the packet ends.
    let message = udp(packet.get(header..total)?, V4_SERVER)?;
    Some(Question::Dhcpv4 { to, message })
}

fn question_v6(packet: &[u8]) -> Option<Question<'_>> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let length = usize::from(u16_at(packet, 4)?);
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    let (from, to) = (address(8)?, address(24)?);
    let payload = packet.get(IPV6_BYTES..IPV6_BYTES + length)?;
    match *packet.get(6)? {
        UDP => Some(Question::Dhcpv6 { from, to, message: udp(payload, V6_SERVER)? }),
        ICMPV6 if payload.get(..2)? == [ROUTER_SOLICITATION, 0] && *packet.get(7)? == ND_HOP_LIMIT => {
            Some(Question::Router { from })
        }
        _ => None,
    }
}

/// The payload of a datagram to `port`.
fn udp(datagram: &[u8], port: u16) -> Option<&[u8]> {
    let length = usize::from(u16_at(datagram, 4)?);
    if u16_at(datagram, 2)? != port {
        return None;
    }
    datagram.get(UDP_BYTES..length)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Whom an answer goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
}

/// A DHCPv4 answer as a frame; none if it is longer than a packet can be.
pub(crate) fn dhcpv4(link: Link, from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Option<Vec<u8>> {
    let addresses = [from.octets(), to.octets()].concat();
    let datagram = udp_datagram(V4_SERVER, V4_CLIENT, &addresses, message)?;
    let total = u16::try_from(IPV4_BYTES + datagram.len()).ok()?;
    let mut packet = vec![0x45, 0x10];
    packet.extend(total.to_be_bytes());
    // No identification: it is never fragmented.
    packet.extend([0, 0, 0x40, 0, HOP_LIMIT, UDP, 0, 0]);
    packet.extend(addresses);
    let checksum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(datagram);
    Some(ethernet(link, IPV4, &packet))
}

/// A DHCPv6 answer as a frame; none if it is longer than a packet can be.
pub(crate) fn dhcpv6(link: Link, from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
    let addresses = [from.octets(), to.octets()].concat();
    let datagram = udp_datagram(V6_SERVER, V6_CLIENT, &addresses, message)?;
    ipv6(link, &addresses, UDP, HOP_LIMIT, &datagram)
}

/// An ICMPv6 message, whose checksum field is zero so far, as a frame; none if it is longer than a packet can be.
pub(crate) fn icmpv6(link: Link, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Option<Vec<u8>> {
    let addresses = [from.octets(), to.octets()].concat();
    let length = u32::try_from(message.len()).ok()?;
    let checksum = checksum(&[&addresses, &length.to_be_bytes(), &[0, 0, 0, ICMPV6], &message]);
    message.get_mut(2..4)?.copy_from_slice(&checksum.to_be_bytes());
    ipv6(link, &addresses, ICMPV6, ND_HOP_LIMIT, &message)
}

fn ipv6(link: Link, addresses: &[u8], protocol: u8, hop_limit: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([protocol, hop_limit]);
    packet.extend(addresses);
    packet.extend(payload);
    Some(ethernet(link, IPV6, &packet))
}

fn ethernet(link: Link, kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&link.to.octets()[..], &link.from.octets(), &kind, packet].concat()
}

fn udp_datagram(from: u16, to: u16, addresses: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let mut datagram: Vec<u8> = [from, to, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    datagram.extend(payload);
    // Zero would say that there is none.
    let checksum = match checksum(&[addresses, &[0, UDP], &length.to_be_bytes(), &datagram]) {
        0 => u16::MAX,
        checksum => checksum,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    Some(datagram)
}

/// The Internet checksum (RFC 1071) of parts, of which all but the last have even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = 0;
    for word in words {
        let word =
            u16::from_be_bytes([word.first().copied().unwrap_or(0), word.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
