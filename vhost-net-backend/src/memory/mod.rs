//! A guest's memory as the backend sees it: regions of files that the VMM lent, mapped, looked up by guest address.
//!
//! [`GuestMemory`] is immutable: a changed table is a new one, and rings hold theirs by `Arc` as long as they run.
//! What it hands out ([`Readable`], [`Writable`]) cannot outlive it and lies wholly inside one region; the guest may
//! change those bytes at any time, so they are only ever copied, never borrowed as slices.
//!
//! A page that cannot be had (the file was truncated, huge pages ran out) raises SIGBUS; [`sigbus`] turns it into
//! [`GuestMemory::is_gone`].

mod access;
mod log;
mod mapping;
pub mod sigbus;

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use access::{Readable, Writable, copy};
pub(crate) use access::{RingMemory, read_front, set_words, write_pieces};
pub use log::{DirtyLog, LogError};
pub use mapping::{MapError, Mapping};

/// The most regions a guest may have: what `GET_MAX_MEM_SLOTS` answers.
pub const MAX_REGIONS: usize = 32;

/// The most memory of a guest, in bytes. Address space is the process's, not the guest's: there are 128 TiB of it.
const MAX_MEMORY: u64 = 8 << 40;

/// A region as a VMM announces it: the file's part `[offset, offset + size)` is the guest's memory at `guest`.
#[derive(Debug)]
pub struct NewRegion {
    /// Guest physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Where the VMM has it mapped; ring addresses are given in these terms.
    pub user: u64,
    /// Offset in `file`.
    pub offset: u64,
    /// The memory itself.
    pub file: OwnedFd,
}

/// Why a memory table was refused.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// More regions than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// More memory than [`MAX_MEMORY`].
    #[error("more than {} TiB of memory", MAX_MEMORY >> 40)]
    TooLarge,
    /// Two regions overlap in guest or in VMM addresses.
    #[error("memory region at {0:#x} overlaps another")]
    Overlap(u64),
    /// A region could not be mapped.
    #[error("memory region at {guest:#x}")]
    Map {
        /// The region's guest address.
        guest: u64,
        /// Why.
        source: MapError,
    },
}

/// One mapped region.
#[derive(Debug)]
pub struct Region {
    guest: u64,
    size: u64,
    user: u64,
    mapping: Mapping,
}

impl Region {
    /// Maps what a VMM announced.
    pub fn map(new: NewRegion) -> Result<Self, TableError> {
        let NewRegion { guest, size, user, offset, file } = new;
        let mapping =
            Mapping::new(&file, offset, size).map_err(|source| TableError::Map { guest, source })?;
        Ok(Self { guest, size, user, mapping })
    }

    /// Whether there may be so many regions with so many bytes together. To be asked before they are mapped.
    pub fn check_all(sizes: impl Iterator<Item = u64> + Clone) -> Result<(), TableError> {
        if sizes.clone().count() > MAX_REGIONS {
            return Err(TableError::TooMany);
        }
        let all = sizes.fold(0, u64::saturating_add);
        if all <= MAX_MEMORY { Ok(()) } else { Err(TableError::TooLarge) }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether this is the region a VMM means by these addresses.
    pub fn is(&self, guest: u64, size: u64, user: u64) -> bool {
        (self.guest, self.size, self.user) == (guest, size, user)
    }
}

/// All of a guest's memory.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    /// Puts regions together.
    pub fn new(regions: Vec<Arc<Region>>) -> Result<Self, TableError> {
        Region::check_all(regions.iter().map(|region| region.size))?;
        for (index, region) in regions.iter().enumerate() {
            for other in regions.iter().take(index) {
                let apart =
                    |a: u64, b: u64| a >= b.saturating_add(other.size) || b >= a.saturating_add(region.size);
                if !apart(region.guest, other.guest) || !apart(region.user, other.user) {
                    return Err(TableError::Overlap(region.guest));
                }
            }
        }
        Ok(Self { regions })
    }

    /// The regions, to make another table from.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// Whether any page of it turned out to be missing. Then what was read of it is zeros.
    #[inline]
    pub fn is_gone(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_gone())
    }

    /// The part of `[address, address + length)` that lies in the region of `address`: at least one byte, or `None`
    /// where there is no memory. `length` must not be 0.
    #[inline]
    pub fn writable(&self, address: u64, length: u32) -> Option<Writable<'_>> {
        self.regions.iter().find_map(|region| {
            let offset = address.wrapping_sub(region.guest);
            if offset >= region.size {
                return None;
            }
            let within = u32::try_from(region.size - offset).unwrap_or(u32::MAX);
            Some(region.mapping.part(offset, length.min(within), address))
        })
    }

    /// Like [`writable`](Self::writable), to read from.
    #[inline]
    pub fn readable(&self, address: u64, length: u32) -> Option<Readable<'_>> {
        self.writable(address, length).map(Readable::from)
    }

    /// The memory of a ring part at a VMM address: all of it in one region, or `None`.
    pub(crate) fn ring(&self, user: u64, length: u32) -> Option<RingMemory> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            let end = offset.checked_add(length.into())?;
            (end <= region.size).then(|| Mapping::ring(region, offset, length))
        })
    }
}

#[cfg(test)]
mod tests;
