//! The four rings between an AF_XDP socket and the kernel (`linux/if_xdp.h`), mapped from the socket.
//!
//! Each has one producer and one consumer; we are one of them. Entries are addressed modulo the size, so no caller can
//! leave the ring.
#![expect(unsafe_code, reason = "memory shared with the kernel, reached by pointers into a mapping")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::XdpRingOffset;

/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// An entry of a ring: an address (fill, completion) or a descriptor (rx, tx).
pub(super) trait Entry: Copy {}

impl Entry for u64 {}

/// `struct xdp_desc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) options: u32,
}

impl Entry for Descriptor {}

/// One ring of `T`.
#[derive(Debug)]
pub(super) struct Ring<T> {
    mapping: NonNull<u8>,
    length: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: Option<NonNull<AtomicU32>>,
    entries: NonNull<T>,
    size: u32,
}

// SAFETY: it owns its mapping; the pointers into it are the same in every thread.
unsafe impl<T> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps a ring of `size` entries, a power of two, that was set up on `socket`.
    pub(super) fn map(socket: &OwnedFd, page: u64, offsets: XdpRingOffset, size: u32) -> io::Result<Self> {
        let place = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let entries = place(offsets.desc)?;
        let length = entries + size as usize * size_of::<T>();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, socket, page) }?;
        let mapping =
            NonNull::new(address.cast::<u8>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the kernel says where in the mapping its fields are; they are aligned.
        let field = |offset: u64| place(offset).map(|offset| unsafe { mapping.add(offset) }.cast());
        let ring = Self {
            mapping,
            length,
            producer: field(offsets.producer)?,
            consumer: field(offsets.consumer)?,
            flags: offsets.flags.map(field).transpose()?,
            // SAFETY: as for the fields.
            entries: unsafe { mapping.add(entries) }.cast(),
            size,
        };
        Ok(ring)
    }

    /// Entries produced and not consumed.
    #[inline]
    pub(super) fn filled(&self) -> u32 {
        Self::load(self.producer).wrapping_sub(Self::load(self.consumer))
    }

    /// Entries that can be produced.
    #[inline]
    pub(super) fn free(&self) -> u32 {
        self.size.saturating_sub(self.filled())
    }

    /// As consumer: the entry `ahead` of the next. Only below [`filled`](Self::filled).
    #[inline]
    pub(super) fn read(&self, ahead: u32) -> T {
        let entry = self.entry(Self::load(self.consumer).wrapping_add(ahead));
        // SAFETY: inside of the ring.
        unsafe { entry.read_volatile() }
    }

    /// As consumer: done with `count` entries.
    #[inline]
    pub(super) fn consume(&mut self, count: u32) {
        Self::advance(self.consumer, count);
    }

    /// As producer: writes the entry `ahead` of the next. Only below [`free`](Self::free).
    #[inline]
    pub(super) fn write(&mut self, ahead: u32, value: T) {
        let entry = self.entry(Self::load(self.producer).wrapping_add(ahead));
        // SAFETY: inside of the ring.
        unsafe { entry.write_volatile(value) };
    }

    /// As producer: hands `count` entries over.
    #[inline]
    pub(super) fn produce(&mut self, count: u32) {
        Self::advance(self.producer, count);
    }

    /// Whether the kernel sleeps and must be called.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.flags.is_none_or(|flags| Self::load(flags) & NEED_WAKEUP != 0)
    }

    #[inline]
    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the size is a power of two, so the index is below it.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }

    #[inline]
    fn load(field: NonNull<AtomicU32>) -> u32 {
        // SAFETY: inside of the mapping and aligned; an atomic may be shared with the kernel.
        unsafe { field.as_ref() }.load(Ordering::Acquire)
    }

    #[inline]
    fn advance(field: NonNull<AtomicU32>, count: u32) {
        // SAFETY: as for load. We are the only writer of the index we advance.
        let field = unsafe { field.as_ref() };
        field.store(field.load(Ordering::Relaxed).wrapping_add(count), Ordering::Release);
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by map; nothing points into it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.length) } {
            tracing::error!(%error, "cannot unmap an AF_XDP ring");
        }
    }
}
