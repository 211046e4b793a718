//! The driver's side of a virtqueue, for tests: rings written by hand, right or wrong.

use std::sync::Arc;

use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::Queues;
use super::queue::VirtQueue;
use crate::vmm::machine::tests::machine;
use crate::vmm::memory::GuestRam;
use crate::vmm::pci::{Msix, Wiring};

pub(super) const DESCRIPTORS: u64 = 0x10_0000;
pub(super) const AVAILABLE: u64 = 0x11_0000;
pub(super) const USED: u64 = 0x12_0000;
/// Where tests put their buffers.
pub(super) const BUFFERS: u64 = 0x20_0000;
/// The end of guest memory.
pub(super) const END: u64 = 32 << 20;
pub(super) const SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// One descriptor, as its driver wrote it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffer {
    pub(super) at: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// For the device to read.
pub(super) fn readable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, flags: 0, next: 0 }
}

/// For the device to write.
pub(super) fn writable(at: u64, length: u32) -> Buffer {
    Buffer { at, length, flags: WRITE, next: 0 }
}

/// A driver and its one queue.
pub(super) struct Driver {
    pub(super) ram: Arc<GuestRam>,
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

impl Driver {
    /// A driver with an empty ring, and the device's end of it as queue 0.
    pub(super) fn new() -> (Self, VirtQueue) {
        let machine = machine();
        let msix = Arc::new(Msix::new(Arc::new(Wiring::new(machine.vm)), 2).unwrap());
        let ram = machine.ram;
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(DESCRIPTORS)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let live = VirtQueue::new(queue, Arc::clone(&ram), msix, 0);
        (Self { ram, next_descriptor: 0, available: 0, seen: 0 }, live)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Writes a descriptor as it is to slot `index`.
    pub(super) fn descriptor(&self, index: u16, buffer: Buffer) {
        let Buffer { at, length, flags, next } = buffer;
        let slot = DESCRIPTORS + u64::from(index) * 16;
        self.write(slot, &at.to_le_bytes());
        self.write(slot + 8, &length.to_le_bytes());
        self.write(slot + 12, &flags.to_le_bytes());
        self.write(slot + 14, &next.to_le_bytes());
    }

    /// Makes a proper chain of `buffers` available; returns its head.
    pub(super) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            let more = position + 1 < buffers.len();
            self.next_descriptor = (index + 1) % SIZE;
            let flags = buffer.flags | if more { NEXT } else { 0 };
            self.descriptor(index, Buffer { flags, next: self.next_descriptor, ..*buffer });
        }
        self.publish(head);
        head
    }

    /// Puts any number into the available ring.
    pub(super) fn publish(&mut self, head: u16) {
        self.write(AVAILABLE + 4 + u64::from(self.available % SIZE) * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Claims any number of available chains.
    pub(super) fn set_available(&self, index: u16) {
        self.write(AVAILABLE + 2, &index.to_le_bytes());
    }

    /// The chains the device has handed back since the last time: head and bytes written.
    pub(super) fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.ram.read_obj(GuestAddress(USED + 2)).unwrap();
        let mut used = Vec::new();
        while self.seen != index {
            let at = USED + 4 + u64::from(self.seen % SIZE) * 8;
            let entry: [u32; 2] = self.ram.read_obj(GuestAddress(at)).unwrap();
            used.push((entry[0], entry[1]));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

/// The queues of a device that has this one only.
pub(super) fn only(queue: VirtQueue) -> Queues {
    Queues { first: 0, queues: vec![Some(queue)] }
}

/// What is wrong, and a driver that does it.
pub(super) type Nonsense = (&'static str, fn(&mut Driver));

/// Rings that no driver should write, each by its name.
pub(super) fn nonsense() -> Vec<Nonsense> {
    vec![
        ("a chain that loops", |driver| {
            driver.descriptor(0, Buffer { flags: NEXT | WRITE, next: 1, ..writable(BUFFERS, 64) });
            driver.descriptor(1, Buffer { flags: NEXT | WRITE, next: 0, ..writable(BUFFERS, 64) });
            driver.publish(0);
        }),
        ("a readable chain that loops on itself", |driver| {
            driver.descriptor(0, Buffer { flags: NEXT, next: 0, ..readable(BUFFERS, 64) });
            driver.publish(0);
        }),
        ("a head that is no descriptor", |driver| driver.publish(0xffff)),
        ("a next that is no descriptor", |driver| {
            driver.descriptor(0, Buffer { flags: NEXT, next: 999, ..readable(BUFFERS, 16) });
            driver.publish(0);
        }),
        ("buffers outside of memory", |driver| {
            driver.offer(&[readable(END, 16), writable(u64::MAX, 1)]);
            driver.offer(&[readable(u64::MAX - 3, 16), writable(END - 1, 100)]);
        }),
        ("buffers of 4 GiB", |driver| {
            driver.offer(&[readable(0, u32::MAX), writable(0, u32::MAX), writable(0, u32::MAX)]);
        }),
        ("buffers of nothing", |driver| {
            driver.offer(&[readable(BUFFERS, 0), writable(BUFFERS, 0)]);
        }),
        ("an indirect table outside of memory", |driver| {
            driver.offer(&[Buffer { flags: INDIRECT, ..readable(END - 16, 64) }]);
        }),
        ("an indirect table of an odd size", |driver| {
            driver.offer(&[Buffer { flags: INDIRECT, ..readable(BUFFERS, 17) }]);
        }),
        ("an indirect table that is itself", |driver| {
            driver.descriptor(0, Buffer { flags: INDIRECT, ..readable(DESCRIPTORS, 16) });
            driver.publish(0);
        }),
        ("a huge indirect table of zeroes", |driver| {
            driver.offer(&[Buffer { flags: INDIRECT, ..readable(BUFFERS, 16 * 65535) }]);
        }),
        ("more chains than the ring holds", |driver| driver.set_available(0x8000)),
        ("an index that runs backwards", |driver| driver.set_available(0xfff0)),
    ]
}
