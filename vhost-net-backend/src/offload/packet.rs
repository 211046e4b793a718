//! Where the headers of a TCP or UDP packet are in a frame.

use crate::frame::gso;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const IPV6: usize = 40;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Which Internet protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    V4,
    V6,
}

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Offsets of the headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) network: Network,
    pub(super) transport: Transport,
    /// Of the IP header.
    pub(super) network_at: usize,
    /// Of the TCP or UDP header.
    pub(super) transport_at: usize,
    /// Of the data.
    pub(super) payload_at: usize,
}

impl Packet {
    /// Finds the headers; `None` unless the frame is what `gso_type` says. IPv6 extension headers are not followed:
    /// no stack segments such packets.
    pub(super) fn parse(frame: &[u8], gso_type: u8) -> Option<Self> {
        let (network_at, ethertype) = network_at(frame)?;
        let (network, protocol, transport_at) = match ethertype {
            0x0800 => {
                let header_length = usize::from(*frame.get(network_at)? & 0x0f) * 4;
                let fragment = u16::from_be_bytes(field(frame, network_at + 6)?) & 0x3fff;
                if header_length < 20 || fragment != 0 {
                    return None;
                }
                (Network::V4, *frame.get(network_at + 9)?, network_at + header_length)
            }
            0x86dd => (Network::V6, *frame.get(network_at + 6)?, network_at + IPV6),
            _ => return None,
        };
        let (transport, header_length) = match protocol {
            PROTOCOL_TCP => (Transport::Tcp, usize::from(*frame.get(transport_at + 12)? >> 4) * 4),
            PROTOCOL_UDP => (Transport::Udp, 8),
            _ => return None,
        };
        let expected = match gso_type & !gso::ECN {
            gso::TCP4 => transport == Transport::Tcp && network == Network::V4,
            gso::TCP6 => transport == Transport::Tcp && network == Network::V6,
            gso::UDP => transport == Transport::Udp,
            _ => false,
        };
        let minimum = if transport == Transport::Tcp { 20 } else { 8 };
        let payload_at = transport_at + header_length;
        (expected && header_length >= minimum && payload_at < frame.len()).then_some(Self {
            network,
            transport,
            network_at,
            transport_at,
            payload_at,
        })
    }
}

/// How many bytes are in front of a large segment's data; `None` unless it is what `gso_type` says.
pub(crate) fn headers(frame: &[u8], gso_type: u8) -> Option<usize> {
    Packet::parse(frame, gso_type).map(|packet| packet.payload_at)
}

/// The IP header's offset and the EtherType in front of it, behind up to two VLAN tags.
pub(crate) fn network_at(frame: &[u8]) -> Option<(usize, u16)> {
    let mut at = ETHERNET;
    for _ in 0..3 {
        let ethertype = u16::from_be_bytes(field(frame, at - 2)?);
        if !matches!(ethertype, 0x8100 | 0x88a8) {
            return Some((at, ethertype));
        }
        at += VLAN_TAG;
    }
    None
}

/// `N` bytes at an offset.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
