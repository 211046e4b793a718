//! Finished frames, checked by sums that must come out right.

use super::{Finisher, MAX_SEGMENTS, Unfinishable, checksum};
use crate::frame::Batch;
use crate::frame::{Frame, Header, Offloads, flags, gso};
use crate::memory::Readable;

/// A frame with Ethernet, optional VLAN tag, IPv4 or IPv6, and TCP or UDP headers, and `payload` bytes.
fn packet(ipv6: bool, udp: bool, vlan: bool, payload: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    if vlan {
        frame.extend([0x81, 0, 0, 5]);
    }
    let transport_length = if udp { 8 } else { 32 } + payload;
    let protocol = if udp { 17 } else { 6 };
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(transport_length).unwrap().to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd; 32]);
    } else {
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend(u16::try_from(20 + transport_length).unwrap().to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    if udp {
        frame.extend([0x30, 0x39, 0x11, 0x5c]);
        frame.extend(u16::try_from(transport_length).unwrap().to_be_bytes());
        frame.extend([0, 0]);
    } else {
        // Sequence number 0xffff_fff0: it wraps. CWR, ACK, PSH, FIN; 12 bytes of options.
        frame.extend([0x30, 0x39, 0x00, 0x50, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x80, 0x80 | 0x19, 1, 0]);
        frame.extend([0; 4]);
        frame.extend([1; 12]);
    }
    frame.extend((0..payload).map(|at| at.to_le_bytes()[0]));
    frame
}

fn finish(bytes: &[u8], header: Header, needs: Offloads) -> Result<Vec<Vec<u8>>, Unfinishable> {
    let mut batch = Batch::new();
    let (first, second) = bytes.split_at(bytes.len() / 3);
    let pieces = [Readable::own(first), Readable::own(second)];
    batch.push(header, needs, u32::try_from(bytes.len()).unwrap(), &pieces).unwrap();
    let (frame, pieces): (&Frame, _) = batch.iter().next().unwrap();
    Ok(Finisher::default().finish(frame, pieces)?.map(<[u8]>::to_vec).collect())
}

fn gso_header(gso_type: u8, gso_size: u16) -> Header {
    Header { flags: flags::NEEDS_CHECKSUM, gso_type, gso_size, ..Header::NONE }
}

/// Both checksums of a packet come out as they should, and its lengths are true.
fn assert_sound(frame: &[u8], ipv6: bool, udp: bool, at: usize) {
    let (addresses, transport) = if ipv6 {
        assert_eq!(usize::from(u16::from_be_bytes([frame[at + 4], frame[at + 5]])), frame.len() - at - 40);
        (&frame[at + 8..at + 40], &frame[at + 40..])
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]])), frame.len() - at);
        assert_eq!(checksum::fold(checksum::add(0, &frame[at..at + 20])), 0);
        (&frame[at + 12..at + 20], &frame[at + 20..])
    };
    let pseudo = transport.len() as u64 + if udp { 17 } else { 6 };
    assert_eq!(checksum::fold(checksum::add(checksum::add(pseudo, addresses), transport)), 0);
}

#[test]
fn segments_are_sound_packets_that_carry_the_same_data() {
    for (ipv6, udp, vlan) in
        [(false, false, false), (true, false, true), (false, true, true), (true, true, false)]
    {
        let gso_type = match (udp, ipv6) {
            (true, _) => gso::UDP,
            (false, true) => gso::TCP6,
            (false, false) => gso::TCP4,
        };
        let whole = packet(ipv6, udp, vlan, 4000);
        let needs = Offloads::CHECKSUM.with(Offloads::TSO4);
        let segments = finish(&whole, gso_header(gso_type, 1448), needs).unwrap();
        let headers = whole.len() - 4000;
        assert_eq!(
            segments.iter().map(Vec::len).collect::<Vec<_>>(),
            [1448, 1448, 1104].map(|data| headers + data)
        );
        for segment in &segments {
            assert_sound(segment, ipv6, udp, if vlan { 18 } else { 14 });
        }
        let data: Vec<u8> = segments.iter().flat_map(|segment| segment[headers..].to_vec()).collect();
        assert_eq!(data, whole[headers..]);
    }
}

#[test]
fn tcp_flags_and_numbers_go_where_they_belong() {
    let segments = finish(
        &packet(false, false, false, 3000),
        gso_header(gso::TCP4 | gso::ECN, 1000),
        Offloads::CHECKSUM.with(Offloads::TSO4),
    )
    .unwrap();
    let flags: Vec<u8> = segments.iter().map(|segment| segment[14 + 20 + 13]).collect();
    assert_eq!(flags, [0x90, 0x10, 0x19]);
    let sequences: Vec<[u8; 4]> =
        segments.iter().map(|s| s[14 + 20 + 4..][..4].try_into().unwrap()).collect();
    assert_eq!(sequences.map_each(u32::from_be_bytes), [0xffff_fff0, 984, 1984]);
    let identifiers: Vec<[u8; 2]> = segments.iter().map(|s| s[14 + 4..][..2].try_into().unwrap()).collect();
    assert_eq!(identifiers, [[0x12, 0x34], [0x12, 0x35], [0x12, 0x36]]);
}

trait MapEach<A> {
    fn map_each<B>(self, map: impl Fn(A) -> B) -> Vec<B>;
}

impl<A> MapEach<A> for Vec<A> {
    fn map_each<B>(self, map: impl Fn(A) -> B) -> Vec<B> {
        self.into_iter().map(map).collect()
    }
}

#[test]
fn a_partial_checksum_is_finished() {
    for (ipv6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut frame = packet(ipv6, udp, false, 101);
        let start = 14 + if ipv6 { 40 } else { 20 };
        let offset = if udp { 6 } else { 16 };
        let addresses = if ipv6 { &frame[22..54] } else { &frame[26..34] };
        let pseudo = checksum::add((frame.len() - start) as u64 + if udp { 17 } else { 6 }, addresses);
        // The field holds the pseudo header's sum, not inverted.
        let partial = !checksum::fold(pseudo);
        frame[start + offset..][..2].copy_from_slice(&partial.to_be_bytes());
        if !ipv6 {
            let sum = checksum::fold(checksum::add(0, &frame[14..34]));
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let header = Header {
            flags: flags::NEEDS_CHECKSUM,
            checksum_start: u16::try_from(start).unwrap(),
            checksum_offset: u16::try_from(offset).unwrap(),
            ..Header::NONE
        };
        let finished = finish(&frame, header, Offloads::CHECKSUM).unwrap();
        assert_eq!(finished.len(), 1);
        assert_sound(&finished[0], ipv6, udp, 14);
    }
}

#[test]
fn frames_that_are_not_what_they_claim_are_not_segmented() {
    let tso = Offloads::CHECKSUM.with(Offloads::TSO4);
    let refused = |bytes: &[u8], gso_type, size| finish(bytes, gso_header(gso_type, size), tso).unwrap_err();
    assert_eq!(refused(&packet(true, false, false, 3000), gso::TCP4, 1000), Unfinishable::Malformed);
    assert_eq!(refused(&packet(false, true, false, 3000), gso::TCP4, 1000), Unfinishable::Malformed);
    assert_eq!(refused(&packet(false, false, false, 3000), gso::UDP, 1000), Unfinishable::Malformed);
    assert_eq!(refused(&[0; 14], gso::TCP4, 1000), Unfinishable::Malformed);
    let mut fragment = packet(false, false, false, 3000);
    fragment[20] = 0x20;
    assert_eq!(refused(&fragment, gso::TCP4, 1000), Unfinishable::Malformed);
    let mut no_header = packet(false, false, false, 3000);
    no_header[14] = 0x44;
    assert_eq!(refused(&no_header, gso::TCP4, 1000), Unfinishable::Malformed);
    assert_eq!(refused(&packet(false, false, false, MAX_SEGMENTS + 1), gso::TCP4, 1), Unfinishable::TooMany);
}

#[test]
fn no_frame_cut_short_anywhere_breaks_segmentation() {
    for (ipv6, udp, gso_type) in [(false, false, gso::TCP4), (true, false, gso::TCP6), (true, true, gso::UDP)]
    {
        let whole = packet(ipv6, udp, true, 200);
        for length in 14..whole.len() {
            let result =
                finish(&whole[..length], gso_header(gso_type, 64), Offloads::CHECKSUM.with(Offloads::TSO4));
            assert!(result.is_ok() || result == Err(Unfinishable::Malformed));
        }
    }
}
