//! Frames as a hostile guest builds them: byte by byte.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet frame to everybody.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Frame(pub(super) Vec<u8>);

impl Frame {
    pub(super) fn new(source: [u8; 6], ether_type: u16, payload: &[u8]) -> Self {
        let mut bytes = [&[0xff; 6], &source[..], &ether_type.to_be_bytes(), payload].concat();
        bytes.resize(bytes.len().max(60), 0);
        Self(bytes)
    }
}

/// A frame to one of a bridge's own addresses, by the last digit.
pub(super) fn to_reserved(digit: u8, source: [u8; 6]) -> Frame {
    let Frame(mut bytes) = Frame::new(source, 0x88cc, &[0; 46]);
    bytes[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, digit]);
    Frame(bytes)
}

/// The same in VLAN 0 (a priority tag), or with one more tag in front.
pub(super) fn in_vlan(tag: u16, Frame(bytes): &Frame) -> Frame {
    Frame([&bytes[..12], &tag.to_be_bytes(), &[0, 0], &bytes[12..]].concat())
}

/// A question about 192.0.2.1.
pub(super) fn arp(source: [u8; 6], sender: [u8; 6], address: [u8; 4]) -> Frame {
    let header = [0, 1, 8, 0, 6, 4, 0, 1];
    Frame::new(source, 0x0806, &[&header[..], &sender, &address, &[0; 6], &[192, 0, 2, 1]].concat())
}

/// As long as the shortest frame, so that nobody cuts padding off it.
pub(super) fn ipv4_udp(source: [u8; 6], from: &str, source_port: u16, port: u16) -> Frame {
    let from: Ipv4Addr = from.parse().unwrap();
    let mut header = vec![0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend([255; 4]);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    let udp = [source_port.to_be_bytes(), port.to_be_bytes(), [0, 26], [0, 0]].concat();
    Frame::new(source, 0x0800, &[header, udp, vec![0; 18]].concat())
}

/// To all nodes of the link.
pub(super) fn ipv6(source: [u8; 6], from: &str, next_header: u8, payload: &[u8]) -> Frame {
    let from: Ipv6Addr = from.parse().unwrap();
    let to: Ipv6Addr = "ff02::1".parse().unwrap();
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let header = [&[0x60, 0, 0, 0], &length[..], &[next_header, 255], &from.octets(), &to.octets()].concat();
    Frame::new(source, 0x86dd, &[&header, payload].concat())
}

/// ICMPv6 behind an empty hop-by-hop header.
pub(super) fn ipv6_with_extension(source: [u8; 6], from: &str, icmpv6: &[u8]) -> Frame {
    let hop_by_hop = [58, 0, 1, 4, 0, 0, 0, 0];
    ipv6(source, from, 0, &[&hop_by_hop[..], icmpv6].concat())
}
