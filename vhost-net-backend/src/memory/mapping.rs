//! One mapped file: guest memory, a dirty log, or the memory of an AF_XDP socket.
//!
//! Only memory files (memfd, tmpfs, hugetlbfs) are taken: pages of any other file may take as long as a disk, or a
//! FUSE server, likes.
#![expect(unsafe_code, reason = "mmap, munmap, and pointers into the mapping")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};

use super::access::{Readable, RingMemory, Writable};
use super::{Region, sigbus};

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` (`linux/magic.h`); memfds are one of them.
const MEMORY_FILES: [i64; 2] = [0x0102_1994, 0x9584_58f6];

/// Why a file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Not memfd, tmpfs or hugetlbfs.
    #[error("the descriptor is no memory file (memfd, tmpfs or hugetlbfs)")]
    NotMemory,
    /// The region ends behind the file.
    #[error("region ends at {end} of a file of {size} bytes")]
    BehindEnd {
        /// Where the region ends in the file, 2^64 − 1 if beyond.
        end: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// Of size 0.
    #[error("region of 0 bytes")]
    Empty,
    /// No more mappings are guarded against SIGBUS.
    #[error("too many memory regions in this process")]
    Guard,
    /// The kernel refused.
    #[error("{operation} failed")]
    Io {
        /// The call.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A part of a memory file, mapped for reading and writing until dropped.
#[derive(Debug)]
pub struct Mapping {
    /// The mapping: whole pages of the file.
    start: NonNull<u8>,
    length: usize,
    /// Where in it the part begins, and its size.
    skip: usize,
    size: u64,
    guard: sigbus::Guard,
}

// SAFETY: the mapping is plain shared memory, owned by this value and reached by raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of `file` at `offset`.
    pub fn new(file: &OwnedFd, offset: u64, size: u64) -> Result<Self, MapError> {
        let failed =
            |operation| move |errno: rustix::io::Errno| MapError::Io { operation, source: errno.into() };
        let kind = rustix::fs::fstatfs(file).map_err(failed("fstatfs"))?.f_type;
        if !MEMORY_FILES.contains(&kind) {
            return Err(MapError::NotMemory);
        }
        let stat = rustix::fs::fstat(file).map_err(failed("fstat"))?;
        let file_size = u64::try_from(stat.st_size).unwrap_or(0);
        let end = offset.saturating_add(size);
        if end > file_size {
            return Err(MapError::BehindEnd { end, size: file_size });
        }
        if size == 0 {
            return Err(MapError::Empty);
        }
        // Huge pages are mapped whole; st_blksize is the page size there, and a multiple of it elsewhere.
        let page = u64::try_from(stat.st_blksize).unwrap_or(4096).max(4096);
        let first = offset - offset % page;
        let whole = (end - first).div_ceil(page).saturating_mul(page);
        let too_long = |_: std::num::TryFromIntError| MapError::BehindEnd { end, size: file_size };
        let length = usize::try_from(whole).map_err(too_long)?;
        let skip = usize::try_from(offset - first).map_err(too_long)?;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                first,
            )
        }
        .map_err(failed("mmap"))?;
        let unmapped = || MapError::Io { operation: "mmap", source: io::ErrorKind::OutOfMemory.into() };
        let start = NonNull::new(address.cast()).ok_or_else(unmapped)?;
        let Some(guard) = sigbus::Guard::new(start.addr().get(), length) else {
            // SAFETY: just mapped, and not handed out.
            let _unmapped = unsafe { rustix::mm::munmap(address, length) };
            return Err(MapError::Guard);
        };
        Ok(Self { start, length, skip, size, guard })
    }

    /// Bytes of the part.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The address of its first byte in this process.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr().expose_provenance() + self.skip
    }

    /// Own memory to write to, cut where the part ends.
    #[inline]
    pub(crate) fn writable(&self, offset: u64, length: u32) -> Writable<'_> {
        self.part(offset, length, 0)
    }

    /// Own memory to read from, cut where the part ends.
    #[inline]
    pub(crate) fn readable(&self, offset: u64, length: u32) -> Readable<'_> {
        self.part(offset, length, 0).into()
    }

    /// Whether a page of it was missing.
    #[inline]
    pub fn is_gone(&self) -> bool {
        self.guard.is_gone()
    }

    /// `length` bytes at `offset`, cut where the part ends. `guest` is the guest's address of the first.
    #[inline]
    pub(super) fn part(&self, offset: u64, length: u32, guest: u64) -> Writable<'_> {
        let (start, length) = self.bounded(offset, length);
        // SAFETY: inside of the mapping, which lives as long as the borrow.
        unsafe { Writable::new(start, length, guest) }
    }

    /// `length` bytes at `offset` of the part, kept mapped by the result.
    pub(super) fn ring(region: &Arc<Region>, offset: u64, length: u32) -> RingMemory {
        let (start, length) = region.mapping.bounded(offset, length);
        // SAFETY: inside of the mapping, which the region owns.
        unsafe { RingMemory::new(start, length, Arc::clone(region)) }
    }

    #[inline]
    fn bounded(&self, offset: u64, length: u32) -> (NonNull<u8>, u32) {
        let offset = offset.min(self.size);
        let length = u32::try_from(self.size - offset).unwrap_or(u32::MAX).min(length);
        // The mapping's length is a usize, and skip + offset is at most that.
        #[expect(clippy::cast_possible_truncation, reason = "at most the mapping's length, a usize")]
        let place = self.skip + offset as usize;
        // SAFETY: skip + size is at most the mapping's length.
        (unsafe { self.start.add(place) }, length)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard.release();
        // SAFETY: mapped by new; whoever was lent a part borrowed it or kept the mapping.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) } {
            tracing::error!(%error, length = self.length, "cannot unmap guest memory");
        }
    }
}
