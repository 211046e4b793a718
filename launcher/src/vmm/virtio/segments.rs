//! The buffers of descriptor chains as one run of bytes in guest memory.
//!
//! Bytes are copied in and out, never lent: the guest may change its memory at any time, and what was copied stays
//! what it was when it was checked. A [`Segments`] is made once and reused, so serving a chain allocates nothing.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes as _, GuestAddress};

use crate::vmm::memory::GuestRam;

/// The most buffers looked at; what comes behind is not seen. Linux uses at most 19 for a packet (MAX_SKB_FRAGS and
/// two) and 256 for a disk request.
const LIMIT: usize = 1024;

/// Which descriptors of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Those with content from the driver.
    Readable,
    /// Those for content from the device.
    Writable,
}

/// A list of buffers.
#[derive(Debug, Default)]
pub(crate) struct Segments {
    list: Vec<(GuestAddress, usize)>,
    length: usize,
}

/// A buffer lies outside of guest memory, or the run is shorter than asked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a buffer is outside of guest memory or too short")]
pub(crate) struct BadBuffer;

impl Segments {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.length = 0;
    }

    /// The number of bytes in all buffers.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Adds what `chain` has in `direction`, as far as it can be followed.
    pub(super) fn append(&mut self, chain: DescriptorChain<&GuestRam>, direction: Direction) {
        for descriptor in chain {
            if descriptor.is_write_only() != (direction == Direction::Writable) {
                continue;
            }
            if self.list.len() == LIMIT {
                return;
            }
            // At most 1024 times 4 GiB.
            let length = descriptor.len() as usize;
            self.list.push((descriptor.addr(), length));
            self.length += length;
        }
    }

    /// Copies `data.len()` bytes from `offset` on out of guest memory.
    pub(crate) fn read(&self, ram: &GuestRam, offset: usize, data: &mut [u8]) -> Result<(), BadBuffer> {
        self.visit(offset, data.len(), |at, range| ram.read_slice(&mut data[range], at).is_ok())
    }

    /// Copies `data` to `offset` in guest memory.
    pub(crate) fn write(&self, ram: &GuestRam, offset: usize, data: &[u8]) -> Result<(), BadBuffer> {
        self.visit(offset, data.len(), |at, range| ram.write_slice(&data[range], at).is_ok())
    }

    /// Calls `copy` for each piece of the `length` bytes at `offset`, with its address and its range in those bytes.
    fn visit(
        &self,
        offset: usize,
        length: usize,
        mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<(), BadBuffer> {
        let mut skip = offset;
        let mut done = 0;
        for (address, size) in &self.list {
            if done == length {
                break;
            }
            if skip >= *size {
                skip -= size;
                continue;
            }
            let piece = (size - skip).min(length - done);
            let at = GuestAddress(address.0.checked_add(skip as u64).ok_or(BadBuffer)?);
            if !copy(at, done..done + piece) {
                return Err(BadBuffer);
            }
            done += piece;
            skip = 0;
        }
        if done == length { Ok(()) } else { Err(BadBuffer) }
    }
}
