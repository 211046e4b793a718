//! One virtqueue of an active device: chains in, used buffers out, the interrupt that tells the driver.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT as _, QueueT as _};

use vmm_sys_util::eventfd::EventFd;

use super::segments::{Direction, Segments};
use crate::vmm::memory::GuestRam;
use crate::vmm::pci::Msix;

/// A live queue. Owned by its device's worker.
pub(crate) struct VirtQueue {
    queue: Queue,
    ram: Arc<GuestRam>,
    msix: Arc<Msix>,
    vector: u16,
    /// The guest has broken its ring; it is left alone until a reset.
    broken: bool,
}

/// A ring that somebody outside this process serves, and its events.
#[derive(Debug)]
pub(crate) struct LentRing {
    /// The queue's number.
    pub(super) index: usize,
    pub(super) size: u16,
    /// Guest-physical addresses, each checked to lie in RAM with all that belongs to it.
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// The guest signals it.
    pub(super) kick: EventFd,
    /// Interrupts the guest.
    pub(super) call: EventFd,
}

/// A chain of descriptors that the driver has made available, by its head's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head(u16);

impl VirtQueue {
    /// A queue whose addresses have been checked to lie in `ram`.
    pub(super) fn new(queue: Queue, ram: Arc<GuestRam>, msix: Arc<Msix>, vector: u16) -> Self {
        Self { queue, ram, msix, vector, broken: false }
    }

    /// The guest's memory, which chains point into.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Takes the next chain, and appends what it has in `direction` to `segments`. `None` if there is none.
    pub(crate) fn pop(&mut self, direction: Direction, segments: &mut Segments) -> Option<Head> {
        let chain = self.next_chain()?;
        let head = Head(chain.head_index());
        segments.append(chain, direction);
        Some(head)
    }

    /// Takes the next chain, with both of its halves: what the device may read, and what it may write.
    pub(crate) fn pop_both(&mut self, readable: &mut Segments, writable: &mut Segments) -> Option<Head> {
        let chain = self.next_chain()?;
        let head = Head(chain.head_index());
        readable.append(chain.clone(), Direction::Readable);
        writable.append(chain, Direction::Writable);
        Some(head)
    }

    fn next_chain(&mut self) -> Option<DescriptorChain<&GuestRam>> {
        if self.broken {
            return None;
        }
        match self.queue.iter(self.ram.as_ref()) {
            Ok(mut chains) => chains.next(),
            Err(error) => {
                tracing::debug!("a guest broke its ring: {error}");
                self.broken = true;
                None
            }
        }
    }

    /// Gives back the last `count` chains popped, as if they never had been.
    pub(crate) fn unpop(&mut self, count: usize) {
        (0..count).for_each(|_| self.queue.go_to_previous_position());
    }

    /// Hands a chain back to the driver, `written` bytes of which are new.
    pub(crate) fn push(&mut self, Head(head): Head, written: usize) {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        if let Err(error) = self.queue.add_used(self.ram.as_ref(), head, written) {
            tracing::debug!("a guest broke its ring: {error}");
            self.broken = true;
        }
    }

    /// Asks the driver for a notification of the next chain. True if there is one already: then look again.
    pub(crate) fn wait(&mut self) -> bool {
        !self.broken && self.queue.enable_notification(self.ram.as_ref()).unwrap_or(false)
    }

    /// Asks the driver not to notify while the queue is served.
    pub(crate) fn quiet(&mut self) {
        // A ring that cannot be written is found broken at the next pop.
        let _ = self.queue.disable_notification(self.ram.as_ref());
    }

    /// Interrupts the driver, if it wants to be, for all chains pushed since the last call.
    pub(crate) fn flush(&mut self) {
        if !self.broken && self.queue.needs_notification(self.ram.as_ref()).unwrap_or(false) {
            self.msix.signal(self.vector);
        }
    }
}

#[cfg(test)]
mod tests;
