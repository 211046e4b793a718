//! Rings as drivers use them; what hostile guests do with them is in `hostile`.

use super::fake::{ALL, Driver, Guest, HIGH, INDIRECT, MIB, NEXT, PLAIN, WRITE, descriptor, frame};
use super::{RingFeatures, RxQueue, TxQueue};
use crate::frame::{BATCH, Batch, Header, Offloads};
use crate::memory::Readable;
use crate::port::{Polled, Pushed, Unfit};

#[path = "hostile_tests.rs"]
mod hostile;
#[path = "property_tests.rs"]
mod property;

/// Takes all that is lent; returns the frames.
fn take(tx: &mut TxQueue) -> (Polled, Vec<Vec<u8>>) {
    let mut frames = Vec::new();
    let polled = tx.poll(&mut |batch| {
        frames.extend(batch.iter().map(|(frame, pieces)| {
            let mut bytes = vec![0; frame.length as usize];
            let read = pieces.iter().fold(0, |at, piece| at + piece.read(&mut bytes[at..]));
            assert_eq!(read, bytes.len());
            bytes
        }));
        batch.len()
    });
    (polled.unwrap(), frames)
}

fn push(rx: &mut RxQueue, frames: &[Vec<u8>]) -> Pushed {
    let mut batch = Batch::new();
    for frame in frames {
        let piece = Readable::own(frame);
        batch.push(Header::NONE, Offloads::NONE, piece.len(), &[piece]).unwrap();
    }
    rx.push(&batch).unwrap()
}

#[test]
fn frames_arrive_in_order_without_their_headers() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 256);
    let mut tx = driver.tx();
    let sent: Vec<_> = (0..10).map(|seed| frame(60 + usize::from(seed), seed)).collect();
    for (bytes, at) in sent.iter().zip(0..) {
        guest.write(HIGH + at * 4096, bytes);
        driver.add(&[(HIGH + at * 4096, u32::try_from(bytes.len()).unwrap())], 0);
    }
    let (polled, frames) = take(&mut tx);
    assert_eq!(polled, Polled { lent: 10, taken: 10, unfit: None });
    assert_eq!(frames, sent.iter().map(|bytes| bytes[12..].to_vec()).collect::<Vec<_>>());
    assert_eq!(driver.used(), (0..10).map(|head| (head, 0)).collect::<Vec<_>>());
    assert_eq!((tx.ring().next_available(), driver.interrupts()), (10, 1));
}

#[test]
fn a_frame_may_be_in_any_pieces() {
    let bytes = frame(200, 7);
    // Split inside of the header, at its end, and across two regions.
    let layouts: [&[(u64, u32)]; 4] = [
        &[(HIGH, 5), (HIGH + 5, 7), (HIGH + 12, 200)],
        &[(HIGH, 12), (HIGH + 12, 100), (HIGH + 112, 100)],
        &[(MIB - 50, 212)],
        &[(HIGH, 0), (HIGH, 13), (HIGH + 13, 0), (HIGH + 13, 199)],
    ];
    for layout in layouts {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 16);
        let mut tx = driver.tx();
        guest.write(layout[0].0, &bytes);
        driver.add(layout, 0);
        assert_eq!(take(&mut tx).1, [bytes[12..].to_vec()], "{layout:?}");
    }
}

#[test]
fn indirect_tables_are_followed() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = driver.tx();
    let bytes = frame(100, 3);
    guest.write(HIGH, &bytes);
    let table = HIGH + 8192;
    guest.write(table, &descriptor(HIGH, 20, NEXT, 2));
    guest.write(table + 16, &descriptor(HIGH, 0, 0, 0));
    guest.write(table + 32, &descriptor(HIGH + 20, 92, 0, 0));
    driver.add(&[(table, 48)], INDIRECT);
    assert_eq!(take(&mut tx).1, [bytes[12..].to_vec()]);
}

#[test]
fn what_is_not_taken_is_lent_again() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 256);
    let mut tx = driver.tx();
    guest.write(HIGH, &frame(64, 1));
    for _ in 0..100 {
        driver.add(&[(HIGH, 76)], 0);
    }
    let polled = tx.poll(&mut |batch| batch.len() - 10).unwrap();
    assert_eq!(polled, Polled { lent: BATCH, taken: BATCH - 10, unfit: None });
    assert_eq!(driver.used().len(), BATCH - 10);
    assert_eq!(tx.poll(&mut |_| 0).unwrap().taken, 0);
    assert_eq!((driver.used().len(), driver.interrupts()), (0, 1));
    assert_eq!(take(&mut tx).0.taken, 100 - (BATCH - 10));
    assert_eq!(take(&mut tx).0, Polled::default());
}

#[test]
fn frames_that_are_none_are_given_back_and_counted() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 256);
    let mut tx = driver.tx();
    guest.write(HIGH, &frame(64, 1));
    let short = driver.add(&[(HIGH, 12 + 13)], 0);
    driver.add(&[(HIGH, 76)], 0);
    let long = driver.add(&[(0, 70_000)], 0);
    driver.add(&[(HIGH, 76)], 0);
    let unfit = |polled: Polled| (polled.lent, polled.unfit);
    assert_eq!(unfit(take(&mut tx).0), (0, Some(Unfit::Short)));
    assert_eq!(driver.used(), [(short, 0)]);
    assert_eq!(unfit(take(&mut tx).0), (1, None));
    assert_eq!(unfit(take(&mut tx).0), (0, Some(Unfit::Long)));
    assert_eq!(unfit(take(&mut tx).0), (1, None));
    assert_eq!(driver.used().get(1), Some(&(long, 0)));
}

#[test]
fn a_frame_is_written_behind_its_header() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(true);
    let head = driver.add(&[(HIGH, 2048)], WRITE);
    let bytes = frame(100, 9)[12..].to_vec();
    assert_eq!(push(&mut rx, std::slice::from_ref(&bytes)), Pushed { taken: 1, refused: 0 });
    assert_eq!(driver.used(), [(head, 112)]);
    assert_eq!(guest.read(HIGH, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(guest.read(HIGH + 12, 100), bytes);
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn a_long_frame_fills_as_many_buffers_as_it_needs() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(true);
    let heads = [HIGH, HIGH + 4096, HIGH + 8192].map(|at| driver.add(&[(at, 500), (at + 500, 524)], WRITE));
    let bytes = frame(2500, 4)[12..].to_vec();
    assert_eq!(push(&mut rx, std::slice::from_ref(&bytes)).taken, 1);
    assert_eq!(driver.used(), [(heads[0], 1024), (heads[1], 1024), (heads[2], 2512 - 2048)]);
    assert_eq!(guest.read(HIGH + 10, 2), [3, 0]);
    let parts = [guest.read(HIGH + 12, 1012), guest.read(HIGH + 4096, 1024), guest.read(HIGH + 8192, 464)];
    assert_eq!(parts.concat(), bytes);
}

#[test]
fn without_room_nothing_is_taken_and_nothing_spent() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(true);
    driver.add(&[(HIGH, 1024)], WRITE);
    let bytes = frame(1500, 4)[12..].to_vec();
    assert_eq!(push(&mut rx, std::slice::from_ref(&bytes)), Pushed::default());
    assert_eq!((driver.used(), driver.interrupts()), (vec![], 0));
    driver.add(&[(HIGH + 4096, 1024)], WRITE);
    assert_eq!(push(&mut rx, &[bytes]).taken, 1);
}

#[test]
fn a_guest_without_mergeable_buffers_gets_no_frame_that_does_not_fit() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(false);
    let head = driver.add(&[(HIGH, 12), (HIGH + 64, 1514)], WRITE);
    let (big, small) = (vec![1; 1515], vec![2; 1514]);
    assert_eq!(push(&mut rx, &[big, small.clone()]), Pushed { taken: 2, refused: 1 });
    assert_eq!(driver.used(), [(head, 1526)]);
    assert_eq!(guest.read(HIGH + 64, 1514), small);
}

#[test]
fn a_legacy_guest_has_a_header_of_10_bytes() {
    let guest = Guest::new();
    let (mut sender, mut receiver) = (Driver::new(&guest, 0, 16), Driver::new(&guest, 65_536, 16));
    let features = RingFeatures { header_length: Header::SHORT, ..PLAIN };
    let mut tx = TxQueue::new(sender.ring(features), ALL);
    let mut rx = RxQueue::new(receiver.ring(features), ALL, false);
    let bytes = frame(80, 5)[2..].to_vec();
    guest.write(HIGH, &bytes);
    sender.add(&[(HIGH, 90)], 0);
    receiver.add(&[(HIGH + 4096, 10), (HIGH + 5000, 2000)], WRITE);
    assert_eq!(tx.poll(&mut |batch| rx.push(batch).unwrap().taken).unwrap().taken, 1);
    assert_eq!(guest.read(HIGH + 5000, 80), bytes[10..]);
    assert_eq!(receiver.used()[0].1, 90);
}

#[test]
fn checksum_verified_is_told_only_to_guests_that_want_it() {
    for (accepts, flags) in [(ALL, 2), (Offloads::NONE, 0)] {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 16);
        let mut rx = RxQueue::new(driver.ring(PLAIN), accepts, false);
        driver.add(&[(HIGH, 2048)], WRITE);
        let bytes = [0; 64];
        let mut batch = Batch::new();
        let header = Header { flags: 2, checksum_start: 77, ..Header::NONE };
        batch.push(header, Offloads::NONE, 64, &[Readable::own(&bytes)]).unwrap();
        rx.push(&batch).unwrap();
        assert_eq!(guest.read(HIGH, 12), [flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}

#[test]
fn a_guest_that_does_not_want_interrupts_gets_none() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(true);
    driver.set_available_flags(1);
    driver.add(&[(HIGH, 2048)], WRITE);
    push(&mut rx, &[vec![0; 64]]);
    assert_eq!(driver.interrupts(), 0);
}

#[test]
fn with_the_event_index_the_guest_is_interrupted_when_it_asked_for() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let features = RingFeatures { event_index: true, ..PLAIN };
    let mut rx = RxQueue::new(driver.ring(features), ALL, true);
    let mut receive = |used_event: u16| {
        driver.set_used_event(used_event);
        driver.add(&[(HIGH, 2048)], WRITE);
        push(&mut rx, &[vec![0; 64]]);
        driver.interrupts()
    };
    // The first is always told: nobody knows what the driver saw before.
    assert_eq!(
        [receive(9), receive(1), receive(5), receive(5), receive(5), receive(5), receive(5)],
        [1, 1, 0, 0, 0, 1, 0]
    );
}

#[test]
fn a_sleeper_is_kicked_and_sees_what_came_before_it_slept() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = driver.tx();
    assert_eq!(driver.used_flags(), 1, "a polled ring needs no kicks");
    assert!(!tx.ring().enable_kicks().unwrap());
    assert_eq!(driver.used_flags(), 0);
    guest.write(HIGH, &frame(64, 1));
    driver.add(&[(HIGH, 76)], 0);
    assert!(tx.ring().enable_kicks().unwrap());
    take(&mut tx);
    let tx = TxQueue::new(driver.ring(RingFeatures { event_index: true, ..PLAIN }), ALL);
    assert!(!tx.ring().enable_kicks().unwrap(), "it goes on where the used index is");
    assert_eq!(driver.available_event(), 1);
}
