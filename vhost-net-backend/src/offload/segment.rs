//! TCP and UDP segmentation: one large packet becomes several that each fit the wire.

use super::checksum;
use super::packet::{Network, Packet, Transport, field};
use super::{MAX_SEGMENTS, Unfinishable};

/// TCP flags (RFC 9293, 3.1): FIN and PSH belong to the last segment, CWR to the first (RFC 3168, 6.1.2).
const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// The segments of one frame; keeps its buffer for the next.
#[derive(Debug, Default)]
pub(super) struct Segments {
    bytes: Vec<u8>,
    /// Bytes of each segment but the last, headers included.
    length: usize,
}

impl Segments {
    /// Cuts a frame up into segments of `size` bytes of payload.
    pub(super) fn make(&mut self, frame: &[u8], gso_type: u8, size: u16) -> Result<(), Unfinishable> {
        let packet = Packet::parse(frame, gso_type).ok_or(Unfinishable::Malformed)?;
        let (headers, payload) = frame.split_at(packet.payload_at);
        let chunks = payload.chunks(usize::from(size).max(1));
        let count = chunks.len();
        if count > MAX_SEGMENTS {
            return Err(Unfinishable::TooMany);
        }
        self.bytes.clear();
        self.length = headers.len() + usize::from(size);
        for (index, chunk) in chunks.enumerate() {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(headers);
            self.bytes.extend_from_slice(chunk);
            let segment = self.bytes.get_mut(start..).unwrap_or_default();
            let place = Place { index, offset: index * usize::from(size), last: index + 1 == count };
            finish(segment, packet, place).ok_or(Unfinishable::Malformed)?;
        }
        Ok(())
    }

    /// The segments, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.length.max(1))
    }
}

/// Where a segment is among its siblings.
#[derive(Debug, Clone, Copy)]
struct Place {
    index: usize,
    offset: usize,
    last: bool,
}

/// Makes a segment's copied headers its own.
fn finish(segment: &mut [u8], packet: Packet, place: Place) -> Option<()> {
    let Packet { network, transport, network_at, transport_at, .. } = packet;
    #[expect(clippy::cast_possible_truncation, reason = "sequence numbers and identifiers wrap")]
    let (index, offset) = (place.index as u16, place.offset as u32);
    let (network_length, transport_length) =
        (u16::try_from(segment.len() - network_at).ok()?, u16::try_from(segment.len() - transport_at).ok()?);
    match network {
        Network::V4 => {
            let identifier = u16::from_be_bytes(field(segment, network_at + 4)?).wrapping_add(index);
            put(segment, network_at + 2, network_length.to_be_bytes())?;
            put(segment, network_at + 4, identifier.to_be_bytes())?;
            put(segment, network_at + 10, [0; 2])?;
            let sum = checksum::fold(checksum::add(0, segment.get(network_at..transport_at)?));
            put(segment, network_at + 10, sum.to_be_bytes())?;
        }
        Network::V6 => put(segment, network_at + 4, (network_length - 40).to_be_bytes())?,
    }
    if transport == Transport::Udp {
        put(segment, transport_at + 4, transport_length.to_be_bytes())?;
        put(segment, transport_at + 6, [0; 2])?;
        let sum = checksum::udp(transport_sum(segment, packet, transport_length)?);
        return put(segment, transport_at + 6, sum.to_be_bytes());
    }
    let sequence = u32::from_be_bytes(field(segment, transport_at + 4)?).wrapping_add(offset);
    put(segment, transport_at + 4, sequence.to_be_bytes())?;
    let flags = segment.get_mut(transport_at + 13)?;
    if !place.last {
        *flags &= !FIN_PSH;
    }
    if place.index > 0 {
        *flags &= !CWR;
    }
    put(segment, transport_at + 16, [0; 2])?;
    let sum = checksum::fold(transport_sum(segment, packet, transport_length)?);
    put(segment, transport_at + 16, sum.to_be_bytes())
}

/// The sum over the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1), the transport header and the data.
fn transport_sum(segment: &[u8], packet: Packet, length: u16) -> Option<u64> {
    let Packet { network, transport, network_at, transport_at, .. } = packet;
    let addresses = match network {
        Network::V4 => segment.get(network_at + 12..network_at + 20)?,
        Network::V6 => segment.get(network_at + 8..network_at + 40)?,
    };
    let protocol = match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    };
    let sum = checksum::add(u64::from(length) + protocol, addresses);
    Some(checksum::add(sum, segment.get(transport_at..)?))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}
