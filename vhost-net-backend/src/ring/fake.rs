//! A guest for tests: memory in a memfd, and a driver's side of rings in it.
//!
//! Guest-physical memory is 1 MiB at 0, 1 MiB right behind it in another region, a hole, and 1 MiB at 4 MiB.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a harness, of which the fuzzers use a part; what fails in it is to be seen"
)]

use std::fs::File;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::layout::Descriptor;
use super::{NewRing, QueueSize, Ring, RingAddresses, RingFeatures, RxQueue, TxQueue};
use crate::frame::Offloads;
use crate::memory::{DirtyLog, GuestMemory, NewRegion, Readable, Region, copy};

pub(crate) const MIB: u64 = 1 << 20;
/// VMM addresses are guest addresses plus this.
pub(crate) const USER: u64 = 0x7f00_0000_0000;
/// The first address that is no memory.
pub(crate) const HOLE: u64 = 2 * MIB;
/// The last region.
pub(crate) const HIGH: u64 = 4 * MIB;

pub(crate) const NEXT: u16 = Descriptor::NEXT;
pub(crate) const WRITE: u16 = Descriptor::WRITE;
pub(crate) const INDIRECT: u16 = Descriptor::INDIRECT;

pub(crate) const PLAIN: RingFeatures = RingFeatures { indirect: true, event_index: false, header_length: 12 };

/// All offloads.
pub(crate) const ALL: Offloads =
    Offloads::CHECKSUM.with(Offloads::TSO4).with(Offloads::TSO6).with(Offloads::USO).with(Offloads::ECN);

/// A guest's memory, written and read as the guest itself would.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) file: Arc<File>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(&[(0, MIB), (MIB, MIB), (HIGH, MIB)])
    }

    /// One whose regions begin at these guest addresses and have these sizes.
    pub(crate) fn with(regions: &[(u64, u64)]) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, regions.iter().map(|(_, size)| size).sum()).unwrap();
        let mut offset = 0;
        let region = |&(guest, size): &(u64, u64)| {
            let (user, file) = (guest + USER, file.try_clone().unwrap());
            let region = Region::map(NewRegion { guest, size, user, offset, file }).unwrap();
            offset += size;
            Arc::new(region)
        };
        let regions = regions.iter().map(region).collect();
        Self { memory: Arc::new(GuestMemory::new(regions).unwrap()), file: Arc::new(file.into()) }
    }

    pub(crate) fn write(&self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let target = self.memory.writable(address, u32::try_from(bytes.len()).unwrap()).unwrap();
            let written = copy(Readable::own(bytes), target);
            address += u64::from(written);
            bytes = &bytes[written as usize..];
        }
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read_into(address, &mut bytes);
        bytes
    }

    pub(crate) fn read_into(&self, address: u64, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let left = u32::try_from(bytes.len() - at).unwrap();
            let source = self.memory.readable(address + at as u64, left).unwrap();
            at += source.read(&mut bytes[at..]);
        }
    }

    /// In one load: of an index that is copied byte by byte, half may be older.
    pub(crate) fn read_u16(&self, address: u64) -> u16 {
        self.memory.ring(address + USER, 2).unwrap().load_acquire(0)
    }

    /// In one store, after everything before it.
    fn publish(&self, address: u64, value: u16) {
        self.memory.ring(address + USER, 2).unwrap().store_release(0, value);
    }
}

/// The driver's side of a ring: it sits at `at` and takes 64 KiB at most.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) guest: Guest,
    pub(crate) at: u64,
    pub(crate) size: u16,
    pub(crate) kick: Arc<File>,
    pub(crate) call: File,
    next_descriptor: u16,
    pub(crate) available: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new(guest: &Guest, at: u64, size: u16) -> Self {
        let event = || File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        let (kick, call) = (Arc::new(event()), event());
        Self { guest: guest.clone(), at, size, kick, call, next_descriptor: 0, available: 0, seen: 0 }
    }

    fn available_at(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    fn used_at(&self) -> u64 {
        (self.available_at() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    pub(crate) fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: self.at + USER,
            available: self.available_at() + USER,
            used: self.used_at() + USER,
            used_log: Some(self.used_at()),
        }
    }

    pub(crate) fn ring(&self, features: RingFeatures) -> Ring {
        self.logged_ring(features, None)
    }

    pub(crate) fn logged_ring(&self, features: RingFeatures, log: Option<Arc<DirtyLog>>) -> Ring {
        Ring::new(NewRing {
            memory: Arc::clone(&self.guest.memory),
            addresses: self.addresses(),
            size: QueueSize::try_from(u32::from(self.size)).unwrap(),
            base: 0,
            features,
            kick: Arc::clone(&self.kick),
            call: Some(self.call.try_clone().unwrap()),
            log,
        })
        .unwrap()
    }

    pub(crate) fn tx(&self) -> TxQueue {
        TxQueue::new(self.ring(PLAIN), ALL)
    }

    pub(crate) fn rx(&self, mergeable: bool) -> RxQueue {
        RxQueue::new(self.ring(PLAIN), ALL, mergeable)
    }

    pub(crate) fn set_descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.guest.write(self.at + 16 * u64::from(index), &descriptor(address, length, flags, next));
    }

    /// Makes a chain of buffers available; returns its head.
    pub(crate) fn add(&mut self, buffers: &[(u64, u32)], flags: u16) -> u16 {
        let head = self.next_descriptor % self.size;
        for (at, (address, length)) in buffers.iter().enumerate() {
            let index = self.next_descriptor % self.size;
            self.next_descriptor = self.next_descriptor.wrapping_add(1);
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            self.set_descriptor(index, *address, *length, flags | more, (index + 1) % self.size);
        }
        self.offer(head);
        head
    }

    /// Makes whatever is at `head` available.
    pub(crate) fn offer(&mut self, head: u16) {
        let entry = self.available_at() + 4 + 2 * u64::from(self.available % self.size);
        self.guest.write(entry, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        self.guest.publish(self.available_at() + 2, index);
    }

    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.guest.publish(self.available_at(), flags);
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        self.guest.write(self.available_at() + 4 + 2 * u64::from(self.size), &index.to_le_bytes());
    }

    pub(crate) fn available_event(&self) -> u16 {
        self.guest.read_u16(self.used_at() + 4 + 8 * u64::from(self.size))
    }

    pub(crate) fn used_flags(&self) -> u16 {
        self.guest.read_u16(self.used_at())
    }

    /// What came back since the last look: heads and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.next_used()).collect()
    }

    /// The next of what came back.
    pub(crate) fn next_used(&mut self) -> Option<(u16, u32)> {
        if self.seen == self.guest.read_u16(self.used_at() + 2) {
            return None;
        }
        let mut entry = [0; 8];
        self.guest.read_into(self.used_at() + 4 + 8 * u64::from(self.seen % self.size), &mut entry);
        self.seen = self.seen.wrapping_add(1);
        let (head, length) = entry.split_at(4);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        Some((u16::try_from(word(head)).unwrap(), word(length)))
    }

    /// How often the guest was interrupted since the last look.
    pub(crate) fn interrupts(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(rustix::io::Errno::AGAIN) => 0,
            Err(error) => panic!("read eventfd: {error}"),
        }
    }
}

pub(crate) fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// A frame with its 12-byte header: zeros, then bytes that differ from one `seed` to the next.
pub(crate) fn frame(length: usize, seed: u8) -> Vec<u8> {
    let body = (0..length).map(|at| seed.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0]));
    std::iter::repeat_n(0, 12).chain(body).collect()
}
