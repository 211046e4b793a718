//! What single frames on a guest's link say about the guest's addresses, and the frames that ask for them.
//!
//! For whoever watches a guest's link: the launcher's supervisor on a tap, the vhost-user backend in a guest's ring.
//! Pure functions over bytes a guest or its network wrote: anything malformed says nothing. Only what the guest
//! itself sends (its MAC as the Ethernet source and inside ARP) proves an address; what others tell the guest
//! (DHCP) or what it is about to use (RFC 5227 probes, RFC 4862 duplicate address detection) is worth asking about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use net_types::Mac;

const ETHERNET_BYTES: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Hardware Ethernet, protocol IPv4, lengths 6 and 4 (RFC 826).
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Neighbour discovery is valid with this hop limit only (RFC 4861, 7.1).
const ND_HOP_LIMIT: u8 = 255;

/// What a frame says about one address of the guest. The address is one that a host can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// The guest uses it: it sent from it, or answered for it.
    Uses(IpAddr),
    /// The guest may be about to use it. Asking too soon would look like a conflict to it.
    Considers(IpAddr),
}

/// Reads a frame that the guest sent.
pub fn from_guest(frame: &[u8], guest: Mac) -> Option<Sighting> {
    let payload = frame.get(ETHERNET_BYTES..)?;
    if frame.get(6..12)? != guest.octets() {
        return None;
    }
    let sighting = match frame.get(12..14)?.try_into().ok()? {
        ETHERTYPE_ARP => arp(payload, guest)?,
        ETHERTYPE_IPV6 => neighbour_discovery(payload)?,
        _ => return None,
    };
    checked(sighting)
}

/// Reads a frame that is on its way to the guest.
pub fn to_guest(frame: &[u8], guest: Mac) -> Option<Sighting> {
    let payload = frame.get(ETHERNET_BYTES..)?;
    let address = match frame.get(12..14)?.try_into().ok()? {
        ETHERTYPE_IPV4 => IpAddr::V4(dhcpv4_ack(payload, guest)?),
        ETHERTYPE_IPV6 if frame.get(..6)? == guest.octets() => IpAddr::V6(dhcpv6_reply(payload)?),
        _ => return None,
    };
    checked(Sighting::Considers(address))
}

fn checked(sighting: Sighting) -> Option<Sighting> {
    let (Sighting::Uses(address) | Sighting::Considers(address)) = sighting;
    let fine = match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && address.to_ipv4_mapped().is_none()
        }
    };
    fine.then_some(sighting)
}

fn arp(packet: &[u8], guest: Mac) -> Option<Sighting> {
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    if packet.get(..6)? != ARP_ETHERNET_IPV4 || packet.get(8..14)? != guest.octets() {
        return None;
    }
    let (sender, target) = (address(14)?, address(24)?);
    let is_probe = sender.is_unspecified() && packet.get(6..8)? == ARP_REQUEST;
    Some(if is_probe { Sighting::Considers(target.into()) } else { Sighting::Uses(sender.into()) })
}

fn neighbour_discovery(packet: &[u8]) -> Option<Sighting> {
    if *packet.get(6)? != ICMPV6 || *packet.get(7)? != ND_HOP_LIMIT {
        return None;
    }
    let source = ipv6(packet, 8)?;
    let target = ipv6(packet, 48)?;
    match *packet.get(40)? {
        NEIGHBOUR_SOLICITATION if source.is_unspecified() => Some(Sighting::Considers(target.into())),
        NEIGHBOUR_SOLICITATION => Some(Sighting::Uses(source.into())),
        NEIGHBOUR_ADVERTISEMENT => Some(Sighting::Uses(target.into())),
        _ => None,
    }
}

fn ipv6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
}

/// The address a DHCPACK gives to `guest` (RFC 2131, figure 1; option 53 of RFC 2132).
fn dhcpv4_ack(packet: &[u8], guest: Mac) -> Option<Ipv4Addr> {
    const REPLY: u8 = 2;
    const COOKIE: [u8; 4] = [99, 130, 83, 99];
    const MESSAGE_TYPE: u8 = 53;
    const ACK: [u8; 1] = [5];
    let header = usize::from(packet.first()? & 0x0f) * 4;
    if *packet.get(9)? != UDP || packet.get(header + 2..header + 4)? != 68u16.to_be_bytes() {
        return None;
    }
    let bootp = packet.get(header + 8..)?;
    if *bootp.first()? != REPLY || bootp.get(28..34)? != guest.octets() || bootp.get(236..240)? != COOKIE {
        return None;
    }
    let address = <[u8; 4]>::try_from(bootp.get(16..20)?).ok()?;
    let mut options = bootp.get(240..)?;
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [MESSAGE_TYPE, length, ref rest @ ..] => {
                return (rest.get(..usize::from(length))? == ACK).then(|| address.into());
            }
            [255, ..] | [] | [_] => return None,
            [_, length, ref rest @ ..] => options = rest.get(usize::from(length)..)?,
        }
    }
}

/// The first address of a DHCPv6 Reply (RFC 8415, 21.4 and 21.6).
fn dhcpv6_reply(packet: &[u8]) -> Option<Ipv6Addr> {
    const REPLY: u8 = 7;
    const IA_NA: u16 = 3;
    const IA_ADDRESS: u16 = 5;
    if *packet.get(6)? != UDP || packet.get(42..44)? != 546u16.to_be_bytes() {
        return None;
    }
    let message = packet.get(48..)?;
    if *message.first()? != REPLY {
        return None;
    }
    let association = option(message.get(4..)?, IA_NA)?;
    let address = option(association.get(12..)?, IA_ADDRESS)?;
    let valid_lifetime = address.get(20..24)?;
    (valid_lifetime != [0; 4]).then(|| ipv6(address, 0)).flatten()
}

fn option(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let code = u16::from_be_bytes(options.get(..2)?.try_into().ok()?);
        let length = u16::from_be_bytes(options.get(2..4)?.try_into().ok()?);
        let (value, rest) = options.get(4..)?.split_at_checked(usize::from(length))?;
        if code == wanted {
            return Some(value);
        }
        options = rest;
    }
}

/// A frame that makes the guest answer if it uses `target`. The answer goes to `own`, the MAC of the host's end
/// of the link, so it ends there and never reaches the network.
pub fn question(target: IpAddr, own: Mac) -> Vec<u8> {
    match target {
        IpAddr::V4(target) => arp_probe(target, own),
        IpAddr::V6(target) => neighbour_solicitation(target, own),
    }
}

/// An ARP probe (RFC 5227, 2.1.1): its sender address is zero, so nobody's ARP cache learns from it.
fn arp_probe(target: Ipv4Addr, own: Mac) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(Mac::BROADCAST.octets());
    frame.extend(own.octets());
    frame.extend(ETHERTYPE_ARP);
    frame.extend(ARP_ETHERNET_IPV4);
    frame.extend(ARP_REQUEST);
    frame.extend(own.octets());
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A neighbour solicitation from the link-local address that belongs to `own`. Unlike one from `::`, it never
/// looks like duplicate address detection (RFC 4862, 5.4.3), and its answer is unicast.
fn neighbour_solicitation(target: Ipv6Addr, own: Mac) -> Vec<u8> {
    const MESSAGE_BYTES: u8 = 32;
    const SOURCE_LINK_LAYER_ADDRESS: [u8; 2] = [1, 1];
    let [a, b, c, d, e, f] = own.octets();
    let source = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(SOURCE_LINK_LAYER_ADDRESS);
    message.extend(own.octets());
    let checksum = icmpv6_checksum(source, group, &message);
    message.splice(2..4, checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(86);
    frame.extend([0x33, 0x33, 0xff, x, y, z]);
    frame.extend(own.octets());
    frame.extend(ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, MESSAGE_BYTES, ICMPV6, ND_HOP_LIMIT]);
    frame.extend(source.octets());
    frame.extend(group.octets());
    frame.extend(message);
    frame
}

/// RFC 4443, 2.3. `message` has an even length and a zero checksum.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
    };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut sum =
        words(&source.octets()) + words(&destination.octets()) + length + u32::from(ICMPV6) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
