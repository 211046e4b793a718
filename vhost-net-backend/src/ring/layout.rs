//! Where the fields of a split virtqueue are (virtio 1.2, 2.7), each behind a function.
//!
//! Indices of ring entries are taken modulo the ring's size here, so no caller can leave the ring.

use crate::memory::{DirtyLog, GuestMemory, RingMemory};

/// `VRING_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;
/// `VRING_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// Bytes of flags and index in front of both rings' entries.
const RING_HEADER: u32 = 4;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;

/// Entries of a ring: a power of two up to 32768.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSize(u16);

impl QueueSize {
    /// The most entries (virtio 1.2, 2.7).
    pub const MAX: u16 = 32_768;
}

impl TryFrom<u32> for QueueSize {
    type Error = LayoutError;

    fn try_from(size: u32) -> Result<Self, LayoutError> {
        match u16::try_from(size) {
            Ok(entries) if entries.is_power_of_two() && entries <= Self::MAX => Ok(Self(entries)),
            _ => Err(LayoutError::Size(size)),
        }
    }
}

/// Where a ring's parts are, as the VMM sees its memory (`SET_VRING_ADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    /// The used ring's guest address, if writes to it are to be logged.
    pub used_log: Option<u64>,
}

/// Why a ring cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Its size is no power of two up to 32768.
    #[error("ring of {0} entries; a power of two up to 32768 is allowed")]
    Size(u32),
    /// A part is not all in one region of the guest's memory.
    #[error("the {part} at {address:#x} is not in the guest's memory")]
    NoMemory {
        /// Which part.
        part: &'static str,
        /// Where the VMM says it is.
        address: u64,
    },
    /// A part is not aligned as virtio 1.2, 2.7 asks.
    #[error("the {part} at {address:#x} is not aligned to {align} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Where the VMM says it is.
        address: u64,
        /// The alignment it needs.
        align: usize,
    },
}

/// A descriptor, as read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    pub(super) const NEXT: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const INDIRECT: u16 = 4;

    /// From the descriptor's 16 bytes, read as two words so that each field is read once.
    #[inline]
    pub(super) fn from_words(address: u64, rest: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "three fields cut out of one word")]
        let (length, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
        Self { address: u64::from_le(address), length, flags, next }
    }
}

/// The three parts of a ring.
#[derive(Debug)]
pub(super) struct Vring {
    descriptors: RingMemory,
    available: RingMemory,
    used: RingMemory,
    size: u16,
    mask: u16,
    used_log: Option<u64>,
}

impl Vring {
    pub(super) fn new(
        memory: &GuestMemory,
        addresses: RingAddresses,
        size: QueueSize,
        event_index: bool,
    ) -> Result<Self, LayoutError> {
        let RingAddresses { descriptors, available, used, used_log } = addresses;
        let entries = u32::from(size.0);
        let event = if event_index { 2 } else { 0 };
        let part = |part, address, length, align| {
            let found = memory.ring(address, length).ok_or(LayoutError::NoMemory { part, address })?;
            if found.is_aligned(align) {
                Ok(found)
            } else {
                Err(LayoutError::Alignment { part, address, align })
            }
        };
        Ok(Self {
            descriptors: part("descriptor table", descriptors, DESCRIPTOR * entries, 16)?,
            available: part("available ring", available, RING_HEADER + 2 * entries + event, 2)?,
            used: part("used ring", used, RING_HEADER + 8 * entries + event, 4)?,
            size: size.0,
            mask: size.0 - 1,
            used_log,
        })
    }

    #[inline]
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    /// The descriptor at `index`, which is below the size.
    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Descriptor {
        let at = u32::from(index) * DESCRIPTOR;
        Descriptor::from_words(self.descriptors.load(at), self.descriptors.load(at + 8))
    }

    #[inline]
    pub(super) fn available_index(&self) -> u16 {
        self.available.load_acquire(2)
    }

    #[inline]
    pub(super) fn available_entry(&self, index: u16) -> u16 {
        self.available.load(RING_HEADER + 2 * u32::from(index & self.mask))
    }

    pub(super) fn wants_interrupts(&self) -> bool {
        self.available.load::<u16>(0) & NO_INTERRUPT == 0
    }

    /// The used index at which the guest wants to be interrupted; only with the event index.
    pub(super) fn used_event(&self) -> u16 {
        self.available.load(RING_HEADER + 2 * u32::from(self.size))
    }

    pub(super) fn used_index(&self) -> u16 {
        self.used.load_acquire(2)
    }

    #[inline]
    pub(super) fn set_used_entry(&self, index: u16, head: u16, written: u32) {
        let entry = u64::from(head) | u64::from(written) << 32;
        let at = RING_HEADER + 8 * u32::from(index & self.mask);
        // The ring is aligned to 4, its entries not to 8.
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the entry")]
        let halves = [entry as u32, (entry >> 32) as u32];
        // A ring whose chains come round in order mostly holds it already.
        self.used.update(at, halves);
    }

    #[inline]
    pub(super) fn publish_used(&self, index: u16) {
        self.used.store_release(2, index);
    }

    pub(super) fn set_wants_kicks(&self, wanted: bool) {
        self.used.store(0, if wanted { 0 } else { NO_NOTIFY });
    }

    /// The available index at which we want to be kicked; only with the event index.
    pub(super) fn set_available_event(&self, index: u16) {
        self.used.store(RING_HEADER + 8 * u32::from(self.size), index);
    }

    /// Marks what [`set_used_entry`](Self::set_used_entry) and [`publish_used`](Self::publish_used) wrote.
    pub(super) fn log_used(&self, log: &DirtyLog, first: u16, count: u16) {
        let Some(base) = self.used_log else { return };
        log.mark(base, RING_HEADER.into());
        for at in 0..count {
            let entry = u64::from(first.wrapping_add(at) & self.mask);
            log.mark(base.saturating_add(u64::from(RING_HEADER) + 8 * entry), 8);
        }
    }
}
