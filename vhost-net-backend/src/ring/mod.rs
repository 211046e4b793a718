//! Virtqueues, split layout (virtio 1.2, 2.7): our own walk, because a batch needs one load of the available index, one
//! store of the used index and one signal, where a general library does all three per packet.
//!
//! [`TxQueue`] is a source of frames (the guest's transmit ring), [`RxQueue`] a sink (its receive ring); both stand on
//! a [`Ring`]. A ring lives in the worker's thread from the start of its queue to its stop; everything it reads from
//! the guest is checked before use, and the first contradiction is a [`Fault`] that ends the guest's end.
//!
//! Absent: the packed layout, and in-flight tracking (frames are completed before the ring can be stopped).

mod chain;
mod layout;
mod rx;
mod tx;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::fault::Fault;
use crate::memory::{DirtyLog, GuestMemory};
use layout::Vring;
pub use layout::{LayoutError, QueueSize, RingAddresses};
pub use rx::{Refused, RxQueue};
pub use tx::TxQueue;

/// What the guest negotiated about its rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFeatures {
    /// Descriptors may point to tables of descriptors.
    pub indirect: bool,
    /// Either side says by index when it wants to be signalled.
    pub event_index: bool,
    /// Bytes of the virtio-net header: 10 or 12.
    pub header_length: u8,
}

/// Everything a ring is made of.
#[derive(Debug)]
pub struct NewRing {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where the ring's parts are.
    pub addresses: RingAddresses,
    /// Its entries.
    pub size: QueueSize,
    /// The first available entry to take, as the frontend knows it.
    pub base: u16,
    /// What was negotiated.
    pub features: RingFeatures,
    /// The guest's doorbell: an eventfd that becomes readable.
    pub kick: Arc<File>,
    /// Its interrupt: an eventfd to write to.
    pub call: Option<File>,
    /// Where written pages are marked, while the VM migrates.
    pub log: Option<Arc<DirtyLog>>,
}

/// One virtqueue, taken over from its guest.
#[derive(Debug)]
pub struct Ring {
    vring: Vring,
    memory: Arc<GuestMemory>,
    features: RingFeatures,
    next_available: u16,
    next_used: u16,
    /// The used index at the last signal; `None` before the first.
    signalled: Option<u16>,
    kick: Arc<File>,
    call: Option<File>,
    log: Option<Arc<DirtyLog>>,
}

/// An entry of the used ring: a chain given back, and how many bytes were written to it.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    head: u16,
    written: u32,
}

impl Ring {
    /// Takes a ring over, kicks off.
    pub fn new(new: NewRing) -> Result<Self, LayoutError> {
        let NewRing { memory, addresses, size, base, features, kick, call, log } = new;
        let vring = Vring::new(&memory, addresses, size, features.event_index)?;
        // Every chain we take is given back before a ring stops, so both indices are one. The ring itself is right when
        // they differ: after a crash of ours, a frontend may know an old base only, or (DPDK) say 0.
        let next_used = vring.used_index();
        if base != next_used {
            tracing::debug!(base, next_used, "resuming a ring where its used index is");
        }
        let ring = Self {
            vring,
            memory,
            features,
            next_available: next_used,
            next_used,
            signalled: None,
            kick,
            call,
            log,
        };
        ring.suppress_kicks();
        Ok(ring)
    }

    /// The next available entry: what `GET_VRING_BASE` answers.
    pub fn next_available(&self) -> u16 {
        self.next_available
    }

    /// The guest's doorbell.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Changes the interrupt; a frontend does so while the ring runs.
    pub fn set_call(&mut self, call: Option<File>) {
        self.call = call;
        // Work may have been completed while there was nobody to tell.
        self.signalled = None;
    }

    /// How many chains the guest has made available and we have not taken. One load of its index.
    #[inline]
    fn available(&self) -> Result<u16, Fault> {
        let index = self.vring.available_index();
        let ahead = index.wrapping_sub(self.next_available);
        // First, because a ring that is gone reads as zeros, and so as a jump.
        if ahead > 0 && self.memory.is_gone() {
            return Err(Fault::MemoryGone);
        }
        if ahead > self.vring.size() {
            return Err(Fault::IndexJump {
                index,
                next: self.next_available,
                ahead,
                size: self.vring.size(),
            });
        }
        Ok(ahead)
    }

    /// The head of the chain that is `ahead` of the next one to take.
    #[inline]
    fn head(&self, ahead: u16) -> u16 {
        self.vring.available_entry(self.next_available.wrapping_add(ahead))
    }

    /// Gives back chains, in the order they were taken. One store of the index; call [`signal`](Self::signal) after.
    #[inline]
    fn complete(&mut self, used: &[Used]) {
        for (entry, at) in used.iter().zip(0..) {
            self.vring.set_used_entry(self.next_used.wrapping_add(at), entry.head, entry.written);
        }
        #[expect(clippy::cast_possible_truncation, reason = "never more than were available, a u16")]
        let count = used.len() as u16;
        self.next_available = self.next_available.wrapping_add(count);
        let first = self.next_used;
        self.next_used = first.wrapping_add(count);
        self.vring.publish_used(self.next_used);
        if let Some(log) = &self.log {
            self.vring.log_used(log, first, count);
        }
    }

    /// Interrupts the guest, if it wants to hear about what was completed since the last time.
    #[inline]
    fn signal(&mut self) -> Result<(), Fault> {
        let Some(call) = &self.call else { return Ok(()) };
        // The index we stored must be visible before we read whether the guest sleeps (virtio 1.2, 2.7.7.2).
        fence(Ordering::SeqCst);
        let wanted = if self.features.event_index {
            let event = self.vring.used_event();
            let last = self.signalled.replace(self.next_used);
            last.is_none_or(|last| {
                self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(last)
            })
        } else {
            self.vring.wants_interrupts()
        };
        if wanted { write_event(call) } else { Ok(()) }
    }

    /// Asks the guest to kick when it adds a chain.
    ///
    /// # Returns
    /// Whether there already is one: then do not sleep.
    pub fn enable_kicks(&self) -> Result<bool, Fault> {
        if self.features.event_index {
            self.vring.set_available_event(self.next_available);
        } else {
            self.vring.set_wants_kicks(true);
        }
        fence(Ordering::SeqCst);
        let pending = self.available()? > 0;
        // Gone memory may look like an empty ring: not to be slept on.
        if self.memory.is_gone() { Err(Fault::MemoryGone) } else { Ok(pending) }
    }

    /// Tells the guest that its ring is polled.
    ///
    /// With the event index nothing needs to be written: the index it compares with is passed, and stays behind.
    pub fn suppress_kicks(&self) {
        if !self.features.event_index {
            self.vring.set_wants_kicks(false);
        }
    }

    #[inline]
    fn mark_written(&self, address: u64, length: u32) {
        if let Some(log) = &self.log {
            log.mark(address, length.into());
        }
    }
}

/// Adds 1 to an eventfd; one whose counter is full is signalled already. It waits only where a VMM has seen to that, and then
/// until the worker's alarm.
fn write_event(event: &File) -> Result<(), Fault> {
    match rustix::io::write(event, &1_u64.to_ne_bytes()) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(rustix::io::Errno::INTR) => Err(Fault::CallBlocked),
        Err(errno) => Err(Fault::io("write to the call eventfd")(errno)),
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
