//! Descriptor chains: from a head to pieces of guest memory, believing nothing.
//!
//! Ends on the first descriptor that does not exist, points to no memory, has the wrong direction or makes the chain
//! longer than its table, which it can only be by looping, or than [`LONGEST`].

use super::layout::{DESCRIPTOR, Descriptor, Vring};
use crate::fault::Fault;
use crate::memory::{GuestMemory, Writable};

/// Most descriptors of a chain, those without a byte included; the same as QEMU's and as that of Linux's vhost. A table may
/// have more, and while a worker walks them it serves no other link.
pub(super) const LONGEST: u16 = 1024;

/// Which way a ring's buffers go, for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads: a transmit ring.
    Read,
    /// The device writes: a receive ring.
    Write,
}

impl Direction {
    fn ring(self) -> &'static str {
        match self {
            Self::Read => "transmit",
            Self::Write => "receive",
        }
    }

    fn found(self) -> &'static str {
        match self {
            Self::Read => "device-writable",
            Self::Write => "device-readable",
        }
    }
}

/// A chain to walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain<'m> {
    pub(super) vring: &'m Vring,
    pub(super) memory: &'m GuestMemory,
    pub(super) head: u16,
    pub(super) direction: Direction,
    pub(super) indirect_allowed: bool,
}

/// What a chain has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walked {
    /// Of all its pieces together.
    pub(super) bytes: u32,
    /// Those without a byte included.
    pub(super) descriptors: u16,
}

impl<'m> Chain<'m> {
    /// Hands each piece to `take`, in order.
    #[inline]
    pub(super) fn walk(self, mut take: impl FnMut(Writable<'m>)) -> Result<Walked, Fault> {
        let size = self.vring.size();
        if self.head >= size {
            return Err(Fault::NoSuchDescriptor { index: self.head, size });
        }
        let descriptor = self.vring.descriptor(self.head);
        // Nearly all: one descriptor, in one region.
        if descriptor.flags & (Descriptor::NEXT | Descriptor::INDIRECT) == 0 && descriptor.length > 0 {
            self.check_direction(descriptor)?;
            if let Some(piece) = self.memory.writable(descriptor.address, descriptor.length)
                && piece.len() == descriptor.length
            {
                take(piece);
                return Ok(Walked { bytes: descriptor.length, descriptors: 1 });
            }
        }
        self.walk_slowly(descriptor, take)
    }

    fn walk_slowly(self, first: Descriptor, mut take: impl FnMut(Writable<'m>)) -> Result<Walked, Fault> {
        let mut walked = Walked { bytes: 0, descriptors: 0 };
        let mut descriptor = first;
        let mut left = self.vring.size();
        loop {
            if descriptor.flags & Descriptor::INDIRECT != 0 {
                self.walk_table(descriptor, &mut walked, &mut take)?;
            } else {
                self.add(descriptor, &mut walked, &mut take)?;
            }
            if descriptor.flags & Descriptor::NEXT == 0 {
                break;
            }
            left = left.checked_sub(1).filter(|left| *left > 0).ok_or(Fault::Loop { head: self.head })?;
            let (index, size) = (descriptor.next, self.vring.size());
            if index >= size {
                return Err(Fault::NoSuchDescriptor { index, size });
            }
            descriptor = self.vring.descriptor(index);
        }
        Ok(walked)
    }

    /// The table of an indirect descriptor (virtio 1.2, 2.7.5.3).
    fn walk_table(
        self,
        table: Descriptor,
        walked: &mut Walked,
        take: &mut impl FnMut(Writable<'m>),
    ) -> Result<(), Fault> {
        let wrong = |why| Fault::Indirect { head: self.head, why };
        if !self.indirect_allowed {
            return Err(wrong("not negotiated"));
        }
        if table.flags & Descriptor::NEXT != 0 {
            return Err(wrong("followed by another"));
        }
        let entries = u16::try_from(table.length / DESCRIPTOR).unwrap_or(0);
        if entries == 0 || !table.length.is_multiple_of(DESCRIPTOR) {
            return Err(wrong("no whole number of descriptors, 1 to 65535, long"));
        }
        let mut index = 0;
        for _ in 0..entries {
            let descriptor = self.table_entry(table.address, index)?;
            if descriptor.flags & Descriptor::INDIRECT != 0 {
                return Err(wrong("in an indirect table"));
            }
            self.add(descriptor, walked, take)?;
            if descriptor.flags & Descriptor::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if index >= entries {
                return Err(Fault::NoSuchDescriptor { index, size: entries });
            }
        }
        Err(Fault::Loop { head: self.head })
    }

    fn table_entry(self, table: u64, index: u16) -> Result<Descriptor, Fault> {
        let address = table.wrapping_add(u64::from(index) * u64::from(DESCRIPTOR));
        let mut words = [[0; 8]; 2];
        for (word, at) in words.iter_mut().zip([0, 8]) {
            let address = address.wrapping_add(at);
            let read = self.memory.readable(address, 8).map_or(0, |bytes| bytes.read(word));
            if read < 8 {
                return Err(Fault::NoMemory { address, length: 8 });
            }
        }
        let [address, rest] = words.map(u64::from_le_bytes);
        Ok(Descriptor::from_words(address, rest))
    }

    /// One buffer; it may go over from one region to the next.
    fn add(
        self,
        descriptor: Descriptor,
        walked: &mut Walked,
        take: &mut impl FnMut(Writable<'m>),
    ) -> Result<(), Fault> {
        let too_long = Fault::ChainLength { head: self.head };
        if walked.descriptors == LONGEST {
            return Err(too_long);
        }
        walked.descriptors += 1;
        self.check_direction(descriptor)?;
        let Descriptor { mut address, length, .. } = descriptor;
        let mut left = length;
        while left > 0 {
            let piece = self
                .memory
                .writable(address, left)
                .ok_or(Fault::NoMemory { address: descriptor.address, length })?;
            left -= piece.len();
            address = address.wrapping_add(piece.len().into());
            take(piece);
        }
        walked.bytes = walked.bytes.checked_add(length).ok_or(too_long)?;
        Ok(())
    }

    #[inline]
    fn check_direction(self, descriptor: Descriptor) -> Result<(), Fault> {
        let writable = descriptor.flags & Descriptor::WRITE != 0;
        if writable == (self.direction == Direction::Write) {
            Ok(())
        } else {
            let (found, ring) = (self.direction.found(), self.direction.ring());
            Err(Fault::Direction { head: self.head, found, ring })
        }
    }
}
