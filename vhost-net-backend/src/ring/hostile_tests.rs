//! What a hostile guest can do with its rings, and what comes of it: a fault, by name.

use std::sync::Arc;

use super::super::fake::{
    ALL, Driver, Guest, HIGH, HOLE, INDIRECT, MIB, NEXT, PLAIN, USER, WRITE, descriptor, frame,
};
use super::super::{LayoutError, NewRing, QueueSize, Ring, RingAddresses, RingFeatures, TxQueue};
use super::push;
use crate::frame::{Batch, Header, Offloads};
use crate::memory::{DirtyLog, Readable, sigbus};

/// The fault of the first poll, after `prepare` has set up a ring of 16.
fn tx_fault(prepare: impl FnOnce(&Guest, &mut Driver)) -> &'static str {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = driver.tx();
    prepare(&guest, &mut driver);
    tx.poll(&mut |_| panic!("nothing may be lent")).unwrap_err().label()
}

/// The fault of receiving a frame.
fn rx_fault(prepare: impl FnOnce(&Guest, &mut Driver)) -> &'static str {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut rx = driver.rx(true);
    prepare(&guest, &mut driver);
    let bytes = [0; 64];
    let mut batch = Batch::new();
    batch.push(Header::NONE, Offloads::NONE, 64, &[Readable::own(&bytes)]).unwrap();
    rx.push(&batch).unwrap_err().label()
}

#[test]
fn an_index_that_jumps_ends_the_link() {
    for jump in [17, 1000, 0xffff] {
        assert_eq!(tx_fault(|_, driver| driver.set_available(jump)), "index-jump");
        assert_eq!(rx_fault(|_, driver| driver.set_available(jump)), "index-jump");
    }
}

#[test]
fn descriptors_outside_of_the_table_end_the_link() {
    assert_eq!(tx_fault(|_, driver| driver.offer(16)), "no-such-descriptor");
    assert_eq!(rx_fault(|_, driver| driver.offer(0xffff)), "no-such-descriptor");
    let next = |_: &Guest, driver: &mut Driver| {
        driver.set_descriptor(0, HIGH, 20, NEXT, 16);
        driver.offer(0);
    };
    assert_eq!(tx_fault(next), "no-such-descriptor");
}

#[test]
fn loops_end_the_link() {
    let itself = |_: &Guest, driver: &mut Driver| {
        driver.set_descriptor(3, HIGH, 20, NEXT, 3);
        driver.offer(3);
    };
    assert_eq!(tx_fault(itself), "descriptor-loop");
    let circle = |_: &Guest, driver: &mut Driver| {
        for index in 0..16 {
            driver.set_descriptor(index, HIGH, 0, NEXT | WRITE, (index + 1) % 16);
        }
        driver.offer(0);
    };
    assert_eq!(rx_fault(circle), "descriptor-loop");
    let table = |guest: &Guest, driver: &mut Driver| {
        guest.write(HIGH, &descriptor(HIGH, 20, NEXT, 1));
        guest.write(HIGH + 16, &descriptor(HIGH, 20, NEXT, 0));
        driver.add(&[(HIGH, 32)], INDIRECT);
    };
    assert_eq!(tx_fault(table), "descriptor-loop");
}

#[test]
fn the_longest_chain_that_does_not_loop_is_walked() {
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = driver.tx();
    guest.write(HIGH, &frame(64, 1));
    let mut buffers = vec![(HIGH, 76)];
    buffers.extend([(HIGH, 0); 15]);
    driver.add(&buffers, 0);
    assert_eq!(tx.poll(&mut |batch| batch.len()).unwrap().taken, 1);
}

#[test]
fn addresses_that_are_no_memory_end_the_link() {
    let places = [
        (HOLE, 64),
        (HOLE - 10, 64),
        (HIGH + MIB - 1, 64),
        (u64::MAX, 64),
        (u64::MAX - 63, 64),
        (0, u32::MAX),
    ];
    for (address, length) in places {
        assert_eq!(tx_fault(|_, driver| _ = driver.add(&[(address, length)], 0)), "no-memory");
        assert_eq!(rx_fault(|_, driver| _ = driver.add(&[(address, length)], WRITE)), "no-memory");
    }
}

#[test]
fn buffers_of_the_wrong_direction_end_the_link() {
    assert_eq!(tx_fault(|_, driver| _ = driver.add(&[(HIGH, 76)], WRITE)), "buffer-direction");
    assert_eq!(rx_fault(|_, driver| _ = driver.add(&[(HIGH, 2048)], 0)), "buffer-direction");
    assert_eq!(rx_fault(|_, driver| _ = driver.add(&[(HIGH, 12), (HIGH, 99)], 0)), "buffer-direction");
}

#[test]
fn indirect_tables_that_may_not_be_end_the_link() {
    let nested = |guest: &Guest, driver: &mut Driver| {
        guest.write(HIGH, &descriptor(HIGH, 16, INDIRECT, 0));
        driver.add(&[(HIGH, 16)], INDIRECT);
    };
    assert_eq!(tx_fault(nested), "indirect");
    for length in [0, 15, 17, 16 * 65_536] {
        assert_eq!(tx_fault(|_, driver| _ = driver.add(&[(HIGH, length)], INDIRECT)), "indirect");
    }
    assert_eq!(tx_fault(|_, driver| _ = driver.add(&[(HIGH, 16), (HIGH, 16)], INDIRECT)), "indirect");
    assert_eq!(tx_fault(|_, driver| _ = driver.add(&[(HOLE - 8, 16)], INDIRECT)), "no-memory");
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = TxQueue::new(driver.ring(RingFeatures { indirect: false, ..PLAIN }), ALL);
    driver.add(&[(HIGH, 16)], INDIRECT);
    assert_eq!(tx.poll(&mut |_| 0).unwrap_err().label(), "indirect");
}

#[test]
fn chains_of_4_gib_end_the_link() {
    // The same 8 MiB, again and again.
    for (entries, long) in [(511, false), (512, true)] {
        let guest = Guest::with(&[(0, MIB), (HIGH, 8 * MIB)]);
        let mut driver = Driver::new(&guest, 0, 16);
        let mut tx = driver.tx();
        guest.write(MIB / 2, &table(entries, |_| (HIGH, 8 << 20), 0));
        driver.add(&[(MIB / 2, 16 * u32::from(entries))], INDIRECT);
        let polled = tx.poll(&mut |_| panic!("nothing may be lent"));
        assert_eq!(polled.err().map(|fault| fault.label()), long.then_some("chain-length"), "{entries}");
    }
}

/// An indirect table that is one chain, of these buffers.
fn table(entries: u16, buffer: impl Fn(u16) -> (u64, u32), flags: u16) -> Vec<u8> {
    let entry = |at: u16| {
        let (address, length) = buffer(at);
        descriptor(address, length, flags | if at + 1 < entries { NEXT } else { 0 }, at + 1)
    };
    (0..entries).flat_map(entry).collect()
}

#[test]
fn chains_of_more_descriptors_than_a_driver_needs_end_the_link() {
    let only_the_first = |at| (MIB, if at == 0 { 76 } else { 0 });
    for (entries, label) in [(1024, None), (1025, Some("chain-length")), (65_535, Some("chain-length"))] {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 16);
        let mut tx = driver.tx();
        guest.write(MIB, &frame(64, 1));
        guest.write(HIGH, &table(entries, only_the_first, 0));
        driver.add(&[(HIGH, 16 * u32::from(entries))], INDIRECT);
        let fault = tx.poll(&mut |batch| batch.len()).err();
        assert_eq!(fault.map(|fault| fault.label()), label, "{entries}");
    }
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 2048);
    let mut tx = driver.tx();
    driver.add(&vec![(HIGH, 0); 1025], 0);
    assert_eq!(tx.poll(&mut |_| 0).unwrap_err().label(), "chain-length");
}

#[test]
fn a_frame_whose_room_is_far_apart_is_refused() {
    let bytes = [0; 64];
    let mut batch = Batch::new();
    batch.push(Header::NONE, Offloads::NONE, 64, &[Readable::own(&bytes)]).unwrap();
    for (empty, refused) in [(0, 0), (10, 0), (20, 1), (1000, 1)] {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest, 0, 1024);
        let mut rx = driver.rx(true);
        // A byte of room behind so many descriptors without any, for each of the 76 that are needed.
        guest.write(HIGH + 4096, &table(empty + 1, |at| (HIGH, u32::from(at == empty)), WRITE));
        driver.set_descriptor(0, HIGH + 4096, 16 * u32::from(empty + 1), INDIRECT, 0);
        (0..100).for_each(|_| driver.offer(0));
        assert_eq!(rx.push(&batch).unwrap().refused, refused, "{empty}");
    }
}

#[test]
fn headers_that_lie_end_the_link() {
    let lying = |header: [u8; 12]| {
        tx_fault(|guest, driver| {
            guest.write(HIGH, &frame(64, 1));
            guest.write(HIGH, &header);
            driver.add(&[(HIGH, 76)], 0);
        })
    };
    assert_eq!(lying([1, 0, 0, 0, 0, 0, 60, 0, 3, 0, 0, 0]), "header");
    assert_eq!(lying([1, 9, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), "header");
    assert_eq!(lying([0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), "header");
}

#[test]
fn receive_buffers_without_room_end_the_link() {
    assert_eq!(rx_fault(|_, driver| _ = driver.add(&[(HIGH, 0)], WRITE)), "empty-buffer");
}

#[test]
fn memory_truncated_under_a_ring_ends_the_link() {
    sigbus::install().unwrap();
    let guest = Guest::new();
    let mut driver = Driver::new(&guest, 0, 16);
    let mut tx = driver.tx();
    guest.write(HIGH, &frame(64, 1));
    driver.add(&[(HIGH, 76)], 0);
    rustix::fs::ftruncate(&*guest.file, 2 * MIB).unwrap();
    // Found out in the middle of this frame, which is zeros.
    assert_eq!(tx.poll(&mut |_| 0).unwrap().lent, 1);
    assert_eq!(tx.poll(&mut |_| 0).unwrap_err().label(), "memory-gone");
}

#[test]
fn a_ring_outside_of_memory_is_refused() {
    let guest = Guest::new();
    let driver = Driver::new(&guest, 0, 16);
    let good = driver.addresses();
    let attempt = |addresses: RingAddresses| {
        Ring::new(NewRing {
            memory: Arc::clone(&guest.memory),
            addresses,
            size: QueueSize::try_from(16).unwrap(),
            base: 0,
            features: PLAIN,
            kick: Arc::clone(&driver.kick),
            call: None,
            log: None,
        })
        .map(drop)
    };
    assert_eq!(attempt(good), Ok(()));
    let wrong = [
        RingAddresses { descriptors: 0, ..good },
        RingAddresses { descriptors: USER + MIB - 16, ..good },
        RingAddresses { available: USER + HOLE, ..good },
        RingAddresses { used: u64::MAX - 3, ..good },
    ];
    for addresses in wrong {
        assert!(matches!(attempt(addresses), Err(LayoutError::NoMemory { .. })), "{addresses:?}");
    }
    let unaligned = RingAddresses { descriptors: USER + 8, ..good };
    assert!(matches!(attempt(unaligned), Err(LayoutError::Alignment { .. })));
    for size in [0, 3, 65_536, u32::MAX] {
        assert_eq!(QueueSize::try_from(size), Err(LayoutError::Size(size)));
    }
}

#[test]
fn a_migrating_guest_finds_every_written_page_in_its_log() {
    let guest = Guest::new();
    let log_file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::empty()).unwrap();
    rustix::fs::ftruncate(&log_file, 4096).unwrap();
    let log = Arc::new(DirtyLog::map(&log_file, 0, 4096).unwrap());
    let mut driver = Driver::new(&guest, 0x8000, 16);
    let mut ring = driver.ring(PLAIN);
    ring.log = Some(Arc::clone(&log));
    let mut rx = super::RxQueue::new(ring, ALL, true);
    driver.add(&[(HIGH + 0x1ff0, 0x1000)], WRITE);
    driver.add(&[(HIGH + 0x5000, 0x1000)], WRITE);
    push(&mut rx, &[vec![1; 1000]]);
    let mut bits = [0; 4096];
    rustix::io::pread(&log_file, &mut bits, 0).unwrap();
    let dirty: Vec<u64> = (0..8 * 4096)
        .filter(|page| bits[usize::try_from(page / 8).unwrap()] & 1 << (page % 8) != 0)
        .collect();
    assert_eq!(dirty, [0x8, (HIGH >> 12) + 1, (HIGH >> 12) + 2]);
    // Behind the log's end nothing is marked, and nothing breaks.
    log.mark(u64::MAX - 10, 100);
}

#[test]
fn a_used_ring_that_is_logged_behind_all_addresses_breaks_nothing() {
    let guest = Guest::new();
    let log_file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::empty()).unwrap();
    rustix::fs::ftruncate(&log_file, 4096).unwrap();
    let mut driver = Driver::new(&guest, 0, 16);
    let ring = Ring::new(NewRing {
        memory: Arc::clone(&guest.memory),
        addresses: RingAddresses { used_log: Some(u64::MAX), ..driver.addresses() },
        size: QueueSize::try_from(16).unwrap(),
        base: 0,
        features: PLAIN,
        kick: Arc::clone(&driver.kick),
        call: None,
        log: Some(Arc::new(DirtyLog::map(&log_file, 0, 4096).unwrap())),
    });
    let mut rx = super::RxQueue::new(ring.unwrap(), ALL, true);
    driver.add(&[(HIGH, 2048)], WRITE);
    push(&mut rx, &[vec![1; 1000]]);
    assert_eq!(driver.used().len(), 1);
}
