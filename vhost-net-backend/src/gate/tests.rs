//! What passes a gate, what does not, and what that costs whom.

use crate::frame::Offloads;

use super::*;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];

fn frame(source: [u8; 6], size: usize) -> Vec<u8> {
    let mut bytes = [[0xff; 6].as_slice(), &source, &[0x88, 0xb5]].concat();
    bytes.resize(size, 0x5a);
    bytes
}

fn batch<'m>(frames: &'m [Vec<u8>], cut: usize) -> Batch<'m> {
    let mut batch = Batch::new();
    for bytes in frames {
        let (front, rest) = bytes.split_at(cut);
        let pieces = [Readable::own(front), Readable::own(rest)];
        batch.push(Header::NONE, Offloads::NONE, u32::try_from(bytes.len()).unwrap(), &pieces).unwrap();
    }
    batch
}

fn bytes(pieces: &[Readable<'_>]) -> Vec<u8> {
    let mut all = Vec::new();
    for piece in pieces {
        let mut part = vec![0; piece.len() as usize];
        piece.read(&mut part);
        all.extend(part);
    }
    all
}

fn gate(source: Option<[u8; 6]>, bytes: u64, packets: u64) -> Box<Gate> {
    let policy =
        Policy { source: source.map(Mac), bytes: NonZeroU64::new(bytes), packets: NonZeroU64::new(packets) };
    Gate::new(policy).unwrap()
}

#[test]
fn an_end_without_policy_has_no_gate() {
    assert!(Gate::new(Policy::default()).is_none());
}

#[test]
fn only_frames_from_the_ends_own_address_pass_unaltered_however_they_are_cut() {
    let frames = [frame(OTHER, 60), frame(OWN, 61), frame(OWN, 1514), frame(OTHER, 62), frame(OWN, 14)];
    for cut in [0, 5, 11, 13, 14] {
        let (mut gate, drops) = (gate(Some(OWN), 0, 0), Drops::default());
        let mut passed = Vec::new();
        let done = gate.pass(&batch(&frames, cut), &drops, |batch| {
            passed.extend(batch.iter().map(|(_, pieces)| bytes(pieces)));
            batch.len()
        });
        assert_eq!((done, drops.spoofed.get()), (5, 2));
        assert_eq!(passed, [frames[1].clone(), frames[2].clone(), frames[4].clone()]);
    }
}

#[test]
fn a_header_that_changes_after_the_check_changes_nothing() {
    let guest = crate::ring::fake::Guest::new();
    guest.write(0, &frame(OWN, 60));
    let (mut gate, drops) = (gate(Some(OWN), 0, 0), Drops::default());
    let mut lent = Batch::new();
    let piece = guest.memory.readable(0, 60).unwrap();
    lent.push(Header::NONE, Offloads::NONE, 60, &[piece]).unwrap();
    gate.pass(&lent, &drops, |batch| {
        guest.write(0, &frame(OTHER, 60));
        let (_, pieces) = batch.iter().next().unwrap();
        assert_eq!(bytes(pieces)[..14], frame(OWN, 60)[..14]);
        1
    });
}

#[test]
fn what_the_sink_did_not_take_comes_again_and_is_counted_once() {
    let frames = [frame(OTHER, 60), frame(OWN, 60), frame(OTHER, 60), frame(OWN, 60), frame(OTHER, 60)];
    let (mut gate, drops) = (gate(Some(OWN), 0, 0), Drops::default());
    assert_eq!(gate.pass(&batch(&frames, 7), &drops, |_| 0), 1);
    assert_eq!(gate.pass(&batch(&frames[1..], 7), &drops, |_| 1), 2);
    assert_eq!(gate.pass(&batch(&frames[3..], 7), &drops, |batch| batch.len()), 2);
    assert_eq!(drops.spoofed.get(), 3);
}

#[test]
fn a_frame_in_more_pieces_than_can_be_checked_is_dropped_not_cut_short() {
    let byte = frame(OWN, PIECES);
    let pieces: Vec<_> = byte.chunks(1).map(Readable::own).collect();
    let mut lent = Batch::new();
    lent.push(Header::NONE, Offloads::NONE, u32::try_from(PIECES).unwrap(), &pieces).unwrap();
    let (mut gate, drops) = (gate(Some(OWN), 0, 0), Drops::default());
    assert_eq!(gate.pass(&lent, &drops, |_| panic!("nothing may pass")), 1);
    assert_eq!(drops.pieces.get(), 1);
}

#[test]
fn a_rate_lets_pass_what_it_says_and_counts_the_rest() {
    // 100 frames a second: 50 ms are 5 frames.
    let mut rate = Rate::new(NonZeroU64::new(100).unwrap(), 1);
    let mut passed = [0_u32; 2];
    for (second, count) in passed.iter_mut().enumerate() {
        for attempt in 0..10_000_u64 {
            let now = second as u64 * 1_000_000_000 + attempt * 100_000;
            if rate.allows(now) {
                rate.charge(now, 1);
                *count += 1;
            }
        }
    }
    assert_eq!((passed[0] / 5, passed[1] / 5), (104 / 5, 100 / 5), "{passed:?}");
}

#[test]
fn bytes_are_limited_by_length_and_the_longest_frame_always_passes_after_a_pause() {
    let mut rate = Rate::new(NonZeroU64::new(1000).unwrap(), MAX_FRAME.into());
    assert!(rate.allows(0));
    rate.charge(0, MAX_FRAME.into());
    let due = u64::from(MAX_FRAME) * 1_000_000;
    assert!(!rate.allows(due - 2_000_000));
    assert!(rate.allows(due));
    // Idle time is not saved up beyond the burst.
    let late = due + 3_600_000_000_000;
    rate.charge(late, 2000);
    assert!(!rate.allows(late + 1_000_000_000));
}

#[test]
fn frames_over_the_limit_are_dropped_and_counted() {
    let frames = [frame(OWN, 60), frame(OWN, 60), frame(OWN, 60)];
    let (mut gate, drops) = (gate(None, 0, 1), Drops::default());
    let mut passed = 0;
    let done = gate.pass(&batch(&frames, 0), &drops, |batch| {
        passed += batch.len();
        batch.len()
    });
    assert_eq!((done, passed, drops.rate_limit.get()), (3, 1, 2));
}

/// A packet of TCP over IPv4 with so many bytes of options and of data.
fn tcp(options: usize, data: usize) -> Vec<u8> {
    let mut bytes = [[0xff; 6].as_slice(), &OWN, &[0x08, 0, 0x45]].concat();
    bytes.resize(14 + 20 + 20 + options + data, 0);
    bytes[14 + 9] = 6;
    bytes[14 + 20 + 12] = u8::try_from((20 + options) * 4).unwrap();
    bytes
}

/// A frame to be cut up into segments of `size` bytes, whose header says that TCP begins at `start`.
fn large(bytes: &[u8], size: u16, start: u16) -> Batch<'_> {
    let header =
        Header { flags: 1, gso_type: gso::TCP4, gso_size: size, checksum_start: start, ..Header::NONE };
    let needs = Offloads::CHECKSUM.with(Offloads::TSO4);
    let mut batch = Batch::new();
    batch.push(header, needs, u32::try_from(bytes.len()).unwrap(), &[Readable::own(bytes)]).unwrap();
    batch
}

/// How many frames, and bytes, a gate counts, and a finisher makes.
fn counted_and_made(bytes: &[u8], size: u16, start: u16) -> [(u64, u64); 2] {
    let batch = large(bytes, size, start);
    let (frame, pieces) = batch.iter().next().unwrap();
    let mut finisher = crate::offload::Finisher::default();
    let made = finisher.finish(frame, pieces).unwrap();
    let made = made.fold((0, 0), |(count, all), segment| (count + 1, all + segment.len() as u64));
    [on_the_wire(frame, pieces), made]
}

#[test]
fn a_frame_to_be_cut_up_counts_as_the_frames_that_it_becomes() {
    for (options, data, size) in [
        (12, 20_000, 1000),
        (12, 20_001, 1000),
        (12, 20_999, 1000),
        (40, 1, 1448),
        (12, 1448, 1448),
        (0, 1449, 1448),
        (40, 60_000, 128),
    ] {
        // Wherever its header says that TCP begins.
        for start in [34, 82, 1000, 0] {
            let [counted, made] = counted_and_made(&tcp(options, data), size, start);
            assert_eq!(counted, made, "{options} {data} {size} {start}");
        }
    }
    let plain = [frame(OWN, 1514)];
    let plain_batch = batch(&plain, 0);
    let (first, pieces) = plain_batch.iter().next().unwrap();
    assert_eq!(on_the_wire(first, pieces), (1, 1514));
    // What is no TCP counts as if it had the shortest headers.
    let bytes = frame(OWN, 14 + 20 + 8 + 2001);
    let lying = large(&bytes, 1000, 34);
    let (first, pieces) = lying.iter().next().unwrap();
    assert_eq!(on_the_wire(first, pieces).0, 3);
    // 100 a second, of which 5 at once: behind one that becomes 20, others wait.
    let bytes = tcp(12, 20_000);
    let (mut gate, drops) = (gate(None, 0, 100), Drops::default());
    assert_eq!(gate.pass(&large(&bytes, 1000, 34), &drops, |batch| batch.len()), 1);
    assert_eq!(gate.pass(&batch(&plain, 0), &drops, |_| panic!("nothing may pass")), 1);
    assert_eq!(drops.rate_limit.get(), 1);
}

#[test]
fn tiny_segments_count_as_no_less_than_they_may_become() {
    for (options, data, size) in [(0, 48, 1), (40, 100, 1), (12, 1000, 1), (0, 1000, 16), (40, 127, 127)] {
        for start in [34, 82, 1000] {
            let [(frames, bytes), (made, in_all)] = counted_and_made(&tcp(options, data), size, start);
            assert!(frames >= made && bytes >= in_all, "{options} {data} {size} {start}: {frames} {bytes}");
        }
    }
}

#[test]
fn headers_of_segments_count_against_a_rate_of_bytes() {
    // A thousand bytes become 54,000, which take 54 ms, 50 of them in advance.
    let bytes = tcp(0, 1000);
    let (mut gate, drops) = (gate(None, 1_000_000, 0), Drops::default());
    let passed = (0..100).filter(|_| {
        let before = drops.rate_limit.get();
        gate.pass(&large(&bytes, 1, 34), &drops, |batch| batch.len());
        drops.rate_limit.get() == before
    });
    assert!(passed.count() < 10);
}

#[test]
fn a_checksum_to_be_stored_in_the_ethernet_header_gives_no_other_address() {
    let bytes = frame(OWN, 60);
    let passes = |start, offset, needs| {
        let header = Header { flags: 1, checksum_start: start, checksum_offset: offset, ..Header::NONE };
        let mut lent = Batch::new();
        lent.push(header, needs, 60, &[Readable::own(&bytes)]).unwrap();
        let (mut gate, drops) = (gate(Some(OWN), 0, 0), Drops::default());
        assert_eq!(gate.pass(&lent, &drops, |batch| batch.len()), 1);
        drops.spoofed.get() == 0
    };
    for (start, offset) in [(0, 0), (0, 6), (6, 0), (5, 0), (10, 1), (0, 13)] {
        assert!(!passes(start, offset, Offloads::CHECKSUM), "{start} {offset}");
    }
    assert!(passes(14, 0, Offloads::CHECKSUM) && passes(0, 14, Offloads::CHECKSUM));
    assert!(passes(0, 6, Offloads::NONE));
}

#[test]
fn a_rate_beyond_all_wires_never_limits() {
    let mut rate = Rate::new(NonZeroU64::MAX, 1);
    for _ in 0..1000 {
        rate.charge(0, MAX_FRAME.into());
    }
    assert!(rate.allows(0));
}

#[test]
fn no_more_pass_in_the_long_run_than_a_rate_says_however_fast() {
    // Frames of one unit, and of 64 bytes: by rates whose units do not take whole nanoseconds.
    for (rate, units) in [
        (3, 1),
        (7_000_000, 1),
        (148_800_000, 1),
        (300_000_000, 1),
        (1_250_000_000, 64),
        (12_500_000_000, 64),
    ] {
        let mut limit = Rate::new(NonZeroU64::new(rate).unwrap(), 1);
        let count = 100_000;
        (0..count).for_each(|_| limit.charge(0, units));
        let exact = u128::from(count * units) * 1_000_000_000 / u128::from(rate);
        let due = u128::from(limit.due);
        assert!(due + 1 >= exact && due <= exact + exact / 4096 + 1, "{rate}: {due} for {exact}");
    }
}
