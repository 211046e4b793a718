//! The dirty log: a bitmap shared with the VMM, one bit for each 4 KiB page of guest memory that was written.
//!
//! Kept while a VM migrates (`VHOST_F_LOG_ALL`). The bitmap is memory of the VMM's, so it is treated as the guest's:
//! bounds are checked, and a page behind its end is not marked (the VMM sized it, and only harms its migration).

use std::os::fd::OwnedFd;

use super::mapping::{MapError, Mapping};

/// `VHOST_LOG_PAGE` (`drivers/vhost/vhost.h`; vhost-user, "Migration").
const PAGE_SHIFT: u32 = 12;

/// The longest log, in bytes: for guest addresses of 49 bits.
const MAX_LOG: u64 = 1 << (49 - PAGE_SHIFT - 3);

/// Why a log could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Longer than [`MAX_LOG`].
    #[error("a dirty log of {0} bytes; at most {MAX_LOG} are allowed")]
    TooLong(u64),
    /// It could not be mapped.
    #[error("dirty log")]
    Map(#[from] MapError),
}

/// A mapped log.
#[derive(Debug)]
pub struct DirtyLog {
    mapping: Mapping,
}

impl DirtyLog {
    /// Maps the log a VMM lent.
    pub fn map(file: &OwnedFd, offset: u64, size: u64) -> Result<Self, LogError> {
        if size > MAX_LOG {
            return Err(LogError::TooLong(size));
        }
        Ok(Self { mapping: Mapping::new(file, offset, size)? })
    }

    /// Marks the pages of `[address, address + length)`.
    pub fn mark(&self, address: u64, length: u64) {
        let Some(last) = length.checked_sub(1) else { return };
        for page in address >> PAGE_SHIFT..=address.saturating_add(last) >> PAGE_SHIFT {
            self.mapping.part(page / 8, 1, 0).set_bits(1 << (page % 8));
        }
    }
}
