//! Rings against chance: whatever is in them, nothing panics; whatever is sent, arrives.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::super::fake::{ALL, Driver, Guest, HIGH, HOLE, MIB, PLAIN, WRITE, frame};
use super::super::{RingFeatures, RxQueue, TxQueue};
use super::{push, take};

/// Addresses near everything that has an edge.
fn address() -> impl Strategy<Value = u64> {
    let near = |place: u64| (0_u64..64).prop_map(move |at| (place + at).wrapping_sub(32));
    prop_oneof![
        near(MIB),
        near(HOLE),
        near(HIGH),
        near(HIGH + MIB),
        near(0),
        any::<u64>(),
        HIGH..HIGH + MIB / 2
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..32, 60_u32..100, 1500_u32..9000, any::<u32>(), Just(u32::MAX)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_ring_content_does_more_than_end_the_link(
        descriptors in vec((address(), length(), 0_u16..8, 0_u16..20), 16),
        heads in vec(0_u16..20, 1..20),
        jump in prop_oneof![Just(0_u16), any::<u16>()],
        indirect: bool,
        event_index: bool,
    ) {
        let guest = Guest::new();
        // Descriptors double as an indirect table where one points at the ring itself.
        let mut driver = Driver::new(&guest, HIGH, 16);
        for ((address, length, flags, next), index) in descriptors.into_iter().zip(0..) {
            driver.set_descriptor(index, address, length, flags, next);
        }
        let features = RingFeatures { indirect, event_index, ..PLAIN };
        let mut tx = TxQueue::new(driver.ring(features), ALL);
        let mut rx = RxQueue::new(driver.ring(features), ALL, true);
        for head in heads {
            driver.offer(head);
        }
        driver.set_available(driver.available.wrapping_add(jump));
        let mut own = vec![0; 70_000];
        let mut look = |batch: &crate::frame::Batch<'_>| {
            for (frame, pieces) in batch.iter() {
                let read = pieces.iter().fold(0, |at, piece| at + piece.read(&mut own[at..]));
                assert_eq!(read, frame.length as usize);
            }
            batch.len()
        };
        for _ in 0..20 {
            if tx.poll(&mut look).is_err() {
                break;
            }
        }
        let bytes = frame(1500, 1);
        let mut batch = crate::frame::Batch::new();
        let piece = crate::memory::Readable::own(&bytes);
        batch.push(crate::frame::Header::NONE, crate::frame::Offloads::NONE, piece.len(), &[piece]).unwrap();
        for _ in 0..20 {
            if rx.push(&batch).is_err() {
                break;
            }
        }
    }

    #[test]
    fn what_is_sent_arrives_however_it_is_cut(
        frames in vec((14_usize..4000, vec(1_u32..1500, 0..4)), 1..20),
        room in vec(vec(1_u32..600, 1..4), 150),
        mergeable_room: bool,
    ) {
        let (alice, bob) = (Guest::new(), Guest::new());
        let (mut sender, mut receiver) = (Driver::new(&alice, 0, 128), Driver::new(&bob, 0, 512));
        let (mut tx, mut rx) = (sender.tx(), receiver.rx(mergeable_room));
        let mut sent = Vec::new();
        let mut at = HIGH;
        for ((size, cuts), seed) in frames.into_iter().zip(0..) {
            let bytes = frame(size, seed);
            alice.write(at, &bytes);
            let mut left = u32::try_from(bytes.len()).unwrap();
            let mut buffers = Vec::new();
            for cut in cuts.into_iter().chain([u32::MAX]) {
                let cut = cut.min(left);
                buffers.push((at, cut));
                at += u64::from(cut);
                left -= cut;
            }
            sender.add(&buffers, 0);
            sent.push(bytes[12..].to_vec());
        }
        let mut at = HIGH;
        let mut places = std::collections::HashMap::new();
        for pieces in room {
            let pieces = if mergeable_room { pieces } else { vec![4100] };
            // The first buffer of a frame holds all of its header (virtio 1.2, 5.1.6.3.1).
            let pieces = std::iter::once(pieces[0] + 11).chain(pieces[1..].iter().copied());
            let buffers: Vec<_> = pieces.map(|length| {
                at += u64::from(length);
                (at - u64::from(length), length)
            }).collect();
            places.insert(receiver.add(&buffers, WRITE), buffers);
        }
        let polled = tx.poll(&mut |batch| rx.push(batch).unwrap().taken).unwrap();
        // What came, put together again as a driver does it.
        let mut used = receiver.used().into_iter();
        let mut arrived = Vec::new();
        while let Some(first) = used.next() {
            let mut bytes = collect(&bob, &places, first);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                bytes.extend(collect(&bob, &places, used.next().unwrap()));
            }
            arrived.push(bytes[12..].to_vec());
        }
        assert_eq!(arrived, sent[..polled.taken]);
        assert_eq!(sender.used().len(), polled.taken);
    }
}

fn collect(
    guest: &Guest,
    places: &std::collections::HashMap<u16, Vec<(u64, u32)>>,
    (head, written): (u16, u32),
) -> Vec<u8> {
    let all: Vec<u8> =
        places[&head].iter().flat_map(|(at, length)| guest.read(*at, *length as usize)).collect();
    all[..written as usize].to_vec()
}

#[test]
fn indices_wrap_around() {
    let (alice, bob) = (Guest::new(), Guest::new());
    let (mut sender, mut receiver) = (Driver::new(&alice, 0, 16), Driver::new(&bob, 0, 16));
    let (mut tx, mut rx) = (sender.tx(), receiver.rx(true));
    for round in 0..70_000_u32 / 8 {
        let bytes = frame(64, round.to_le_bytes()[0]);
        alice.write(HIGH, &bytes);
        for _ in 0..8 {
            sender.add(&[(HIGH, 76)], 0);
            receiver.add(&[(HIGH, 2048)], WRITE);
        }
        let (polled, frames) = take(&mut tx);
        assert_eq!((polled.taken, push(&mut rx, &frames).taken), (8, 8));
        assert_eq!((sender.used().len(), receiver.used().len()), (8, 8));
        assert_eq!(bob.read(HIGH + 12, 64), bytes[12..]);
    }
}
