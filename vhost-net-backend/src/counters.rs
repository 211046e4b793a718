//! What a link counted: written by its worker only, read by anyone at any time.

#![expect(
    clippy::disallowed_types,
    reason = "taken for a fault, which ends an end; counts of frames are atomic"
)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. One writer: no locked instruction on the packet path.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.get().wrapping_add(count), Ordering::Relaxed);
    }

    /// Reads.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why frames were not passed on.
#[derive(Debug, Default)]
pub struct Drops {
    /// The receiving guest made no buffers available for too long.
    pub no_room: Counter,
    /// The other end is not connected.
    pub peer_down: Counter,
    /// Too big for the receiving guest's buffers, or refused by the kernel.
    pub refused: Counter,
    /// Shorter than an Ethernet header.
    pub short: Counter,
    /// Longer than any IP packet.
    pub long: Counter,
    /// In too many pieces of memory.
    pub pieces: Counter,
    /// From a tap, with a header that contradicts it.
    pub header: Counter,
    /// Could not be finished in software for an end without the offload.
    pub unfinished: Counter,
    /// From another address than the end's own.
    pub spoofed: Counter,
    /// More than the end may send.
    pub rate_limit: Counter,
}

impl Drops {
    /// Each reason and its count.
    pub fn each(&self) -> [(&'static str, u64); 10] {
        let Self {
            no_room,
            peer_down,
            refused,
            short,
            long,
            pieces,
            header,
            unfinished,
            spoofed,
            rate_limit,
        } = self;
        [
            ("no-room", no_room),
            ("peer-down", peer_down),
            ("refused", refused),
            ("short", short),
            ("long", long),
            ("pieces", pieces),
            ("header", header),
            ("unfinished", unfinished),
            ("spoofed", spoofed),
            ("rate-limit", rate_limit),
        ]
        .map(|(reason, counter)| (reason, counter.get()))
    }
}

/// One direction of a link.
#[derive(Debug, Default)]
pub struct Direction {
    /// Frames passed on.
    pub packets: Counter,
    /// Their bytes, without headers of ours.
    pub bytes: Counter,
    /// Batches they came in.
    pub batches: Counter,
    /// Times the source woke us from sleep.
    pub wakes: Counter,
    /// Frames not passed on.
    pub drops: Drops,
}

/// One link.
#[derive(Debug, Default)]
pub struct LinkCounters {
    /// From the first end to the second, and back.
    pub directions: [Direction; 2],
    faults: Mutex<BTreeMap<(usize, &'static str), u64>>,
}

impl LinkCounters {
    /// Counts a fault of an end.
    pub fn fault(&self, end: usize, label: &'static str) {
        let mut faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *faults.entry((end, label)).or_default() += 1;
    }

    /// Each fault: which end, what, how often.
    pub fn faults(&self) -> Vec<(usize, &'static str, u64)> {
        let faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        faults.iter().map(|((end, label), count)| (*end, *label, *count)).collect()
    }
}
