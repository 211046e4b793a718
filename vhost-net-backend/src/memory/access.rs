//! Reading and writing memory that a guest changes meanwhile: the one place where its bytes are touched.
//!
//! Guest memory is reached through raw pointers only; no reference to it is ever made, because a reference promises
//! that nobody else writes. Ring fields are read and written one by one, volatile or atomic, so each is loaded once
//! and cannot change between a check and its use. Frame data is copied as bytes: a guest that writes during the copy
//! spoils its own frame.
#![expect(
    unsafe_code,
    reason = "guest memory is shared with another process: only raw pointers can reach it"
)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use arrayvec::ArrayVec;

use super::Region;
use crate::frame::PIECES;

/// The smallest page.
const PAGE: usize = 4096;

/// Bytes that a CPU fetches at once.
const CACHE_LINE: u32 = 64;

/// Bytes to copy from. They may change at any time.
#[derive(Debug, Clone, Copy)]
pub struct Readable<'m> {
    start: NonNull<u8>,
    length: u32,
    memory: PhantomData<&'m [u8]>,
}

/// Bytes to copy to.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'m> {
    start: NonNull<u8>,
    length: u32,
    guest: u64,
    memory: PhantomData<&'m [u8]>,
}

impl<'m> Readable<'m> {
    /// Own bytes, to be copied like a guest's. At most 4 GiB.
    pub fn own(bytes: &'m [u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self { start: NonNull::from(bytes).cast(), length, memory: PhantomData }
    }

    /// How many.
    #[inline]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Without the first `count`, or with none left if there are not so many.
    #[inline]
    #[must_use]
    pub fn skip(&self, count: u32) -> Self {
        let count = count.min(self.length);
        // SAFETY: count is at most length, so the result points into the same memory or just behind it.
        let start = unsafe { self.start.add(count as usize) };
        Self { start, length: self.length - count, memory: PhantomData }
    }

    /// At most the first `count`.
    #[inline]
    #[must_use]
    pub fn take(&self, count: u32) -> Self {
        Self { length: self.length.min(count), ..*self }
    }

    /// Copies to own bytes; returns how many: the shorter of both.
    #[inline]
    pub fn read(&self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.length as usize);
        // SAFETY: both hold at least count bytes; own bytes are not guest memory, so they do not overlap.
        unsafe { copy_bytes(self.start.as_ptr(), into.as_mut_ptr(), count) };
        count
    }

    /// Copies the first `N`, if there are so many.
    #[inline]
    pub fn read_first<const N: usize>(&self) -> Option<[u8; N]> {
        // SAFETY: readable for N bytes; an array of bytes needs no alignment, and any bytes are one.
        let bytes = (self.length as usize >= N).then(|| unsafe { self.start.cast::<[u8; N]>().read() });
        // Loaded once: what is checked is what is used.
        std::hint::black_box(bytes)
    }

    /// Asks the CPU to fetch the first two cache lines: a header and the beginning of its frame.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.start);
        if self.length > CACHE_LINE {
            // SAFETY: inside of what is readable.
            prefetch(unsafe { self.start.add(CACHE_LINE as usize) });
        }
    }

    /// Reads a byte of every page, so that one that is missing is found out.
    fn touch(&self) {
        let last = self.length.saturating_sub(1);
        for at in (0..self.length).step_by(PAGE).chain((!self.is_empty()).then_some(last)) {
            // SAFETY: at is below length.
            let byte = unsafe { self.start.add(at as usize) };
            // SAFETY: as above; volatile, so that the read is not left out.
            unsafe { byte.read_volatile() };
        }
    }
}

impl<'m> From<Writable<'m>> for Readable<'m> {
    #[inline]
    fn from(bytes: Writable<'m>) -> Self {
        Self { start: bytes.start, length: bytes.length, memory: PhantomData }
    }
}

impl Writable<'_> {
    /// # Safety
    /// `start` is valid for reads and writes of `length` bytes while `'m` lasts, and only reached by raw pointers.
    #[inline]
    pub(super) unsafe fn new(start: NonNull<u8>, length: u32, guest: u64) -> Self {
        Self { start, length, guest, memory: PhantomData }
    }

    /// How many.
    #[inline]
    pub fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Asks the CPU to fetch where a header and the beginning of its frame will be written. A header alone in its cache line
    /// is seldom written, see [`set_words`].
    #[inline]
    pub fn prefetch(&self, header_length: u8) {
        prefetch(self.start);
        let frame = self.skip(header_length.into());
        if !frame.is_empty() {
            prefetch_to_write(frame.start);
        }
    }

    /// The guest's address of the first, for the dirty log.
    #[inline]
    pub fn guest_address(&self) -> u64 {
        self.guest
    }

    /// Without the first `count`, or with none left if there are not so many.
    #[inline]
    #[must_use]
    pub fn skip(&self, count: u32) -> Self {
        let count = count.min(self.length);
        // SAFETY: count is at most length, so the result points into the same memory or just behind it.
        let start = unsafe { self.start.add(count as usize) };
        Self { start, length: self.length - count, guest: self.guest.wrapping_add(count.into()), ..*self }
    }

    /// Sets bits of the first byte, if there is one; others may set theirs at the same time.
    pub(super) fn set_bits(&self, bits: u8) {
        if self.length > 0 {
            // SAFETY: valid for one byte; an atomic may be shared with other writers, even another process.
            unsafe { self.start.cast::<AtomicU8>().as_ref() }.fetch_or(bits, Ordering::Relaxed);
        }
    }
}

/// Copies the front of a frame that is in pieces, as much as both have; what was copied.
#[inline]
pub(crate) fn read_front<'b, const N: usize>(pieces: &[Readable<'_>], into: &'b mut [u8; N]) -> &'b [u8] {
    let mut have = 0;
    for piece in pieces {
        have += piece.read(into.get_mut(have..).unwrap_or_default());
        if have == N {
            break;
        }
    }
    into.get(..have).unwrap_or_default()
}

/// Copies as much as both have; returns how many bytes.
///
/// Two guests may share pages behind different mappings; then the bytes are theirs to spoil, but the two ranges of
/// addresses are still distinct.
#[inline]
pub fn copy(from: Readable<'_>, to: Writable<'_>) -> u32 {
    let count = from.length.min(to.length);
    // SAFETY: both are valid for count bytes; a frame is never copied within one mapping.
    unsafe { copy_bytes(from.start.as_ptr(), to.start.as_ptr(), count as usize) };
    count
}

/// Makes two words of a guest's memory, little endian and one behind the other, what they should be; says whether there was
/// room for both.
///
/// What is right already is only read: a cache line that nobody writes stays with both CPUs. What is not is written from
/// registers: a CPU forwards no load that several stores make up.
#[inline]
pub(crate) fn set_words(first: u64, second: u32, to: Writable<'_>) -> bool {
    let room = to.length >= 12;
    if room {
        let front = to.start.cast::<u64>();
        // SAFETY: 12 bytes are readable and writable; whatever the guest does meanwhile spoils its own frame.
        if unsafe { front.read_unaligned() } != first.to_le() {
            // SAFETY: as above.
            unsafe { front.write_unaligned(first.to_le()) };
        }
        // SAFETY: behind the first 8 of 12 bytes.
        let back = unsafe { to.start.add(8) }.cast::<u32>();
        // SAFETY: as above.
        if unsafe { back.read_unaligned() } != second.to_le() {
            // SAFETY: as above.
            unsafe { back.write_unaligned(second.to_le()) };
        }
    }
    room
}

/// Small copies inline: a call of `memcpy` costs more than to move a 64-byte frame.
///
/// # Safety
/// `from` is readable and `to` writable for `count` bytes, and they do not overlap.
#[inline]
unsafe fn copy_bytes(from: *const u8, to: *mut u8, count: usize) {
    type Block = [u64; 4];
    const BLOCK: usize = size_of::<Block>();
    if (BLOCK..=4 * BLOCK).contains(&count) {
        let mut at = 0;
        // The last block overlaps the one before, unless count is a multiple.
        while at < count {
            let start = at.min(count - BLOCK);
            let (from, to) = (from.wrapping_add(start), to.wrapping_add(start));
            // SAFETY: start + BLOCK <= count.
            let block = unsafe { from.cast::<Block>().read_unaligned() };
            // SAFETY: as above.
            unsafe { to.cast::<Block>().write_unaligned(block) };
            at += BLOCK;
        }
    } else {
        // SAFETY: the caller's promise.
        unsafe { from.copy_to_nonoverlapping(to, count) };
    }
}

#[inline]
fn prefetch(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, without effect on any address that is not mapped; SSE is part of x86_64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[inline]
fn prefetch_to_write(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // The intrinsic is a plain prefetch unless the whole program is built for CPUs that have this one; others ignore it.
    // SAFETY: as for prefetch.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at.as_ptr(), options(nostack, preserves_flags, readonly));
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A part of a ring: its fields are read and written one by one, at offsets that are checked.
///
/// Offsets beyond the part read as 0 and write nothing; the ring's own arithmetic never produces one.
#[derive(Debug)]
pub(crate) struct RingMemory {
    start: NonNull<u8>,
    length: u32,
    /// Keeps `start` valid.
    _region: Arc<Region>,
}

// SAFETY: it is an address of shared memory, the same from any thread; fields are accessed volatile or atomic.
unsafe impl Send for RingMemory {}

impl RingMemory {
    /// # Safety
    /// `start` is valid for `length` bytes as long as `region` is.
    pub(super) unsafe fn new(start: NonNull<u8>, length: u32, region: Arc<Region>) -> Self {
        Self { start, length, _region: region }
    }

    /// Whether it begins at a multiple of `align` in our address space, as it must in the guest's.
    pub(crate) fn is_aligned(&self, align: usize) -> bool {
        self.start.as_ptr().addr().is_multiple_of(align)
    }

    #[inline]
    fn at<T>(&self, offset: u32) -> Option<NonNull<T>> {
        let end = offset as usize + size_of::<T>();
        // SAFETY: offset is inside of the part.
        (end <= self.length as usize).then(|| unsafe { self.start.add(offset as usize) }.cast())
    }

    /// Reads a field (little endian, as is all of virtio 1).
    #[inline]
    pub(crate) fn load<T: Copy + Default>(&self, offset: u32) -> T {
        // SAFETY: valid for a T; volatile tolerates the guest's writes; the ring checked its alignment.
        self.at::<T>(offset).map_or_else(T::default, |field| unsafe { field.read_volatile() })
    }

    /// Writes a field.
    #[inline]
    pub(crate) fn store<T: Copy>(&self, offset: u32, value: T) {
        if let Some(field) = self.at::<T>(offset) {
            // SAFETY: as for load.
            unsafe { field.write_volatile(value) };
        }
    }

    /// Writes a field unless it holds the value already: a cache line that is only read stays with both CPUs.
    #[inline]
    pub(crate) fn update<T: Copy + Default + PartialEq>(&self, offset: u32, value: T) {
        if self.load::<T>(offset) != value {
            self.store(offset, value);
        }
    }

    /// Reads an index; what the guest wrote before publishing it is visible after.
    #[inline]
    pub(crate) fn load_acquire(&self, offset: u32) -> u16 {
        self.index(offset).map_or(0, |index| index.load(Ordering::Acquire))
    }

    /// Publishes an index: what was written before is visible to the guest when it sees it.
    #[inline]
    pub(crate) fn store_release(&self, offset: u32, value: u16) {
        if let Some(index) = self.index(offset) {
            index.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn index(&self, offset: u32) -> Option<&AtomicU16> {
        // SAFETY: valid and aligned; an atomic may be shared with other writers, even another process.
        self.at::<AtomicU16>(offset).map(|index| unsafe { index.as_ref() })
    }
}

/// Writes own bytes and pieces to a descriptor as one message (`writev`).
///
/// # Errors
/// The kernel's; EFAULT if a piece's memory is gone, which its mapping then knows too.
pub(crate) fn write_pieces(to: BorrowedFd<'_>, first: &[u8], pieces: &[Readable<'_>]) -> io::Result<usize> {
    let part = |bytes: &Readable<'_>| libc::iovec {
        iov_base: bytes.start.as_ptr().cast(),
        iov_len: bytes.length as usize,
    };
    // Filled where it is: it is 8 KiB long, and `collect` would move it.
    let mut parts: ArrayVec<libc::iovec, { PIECES + 1 }> = ArrayVec::new();
    parts.extend(std::iter::once(&Readable::own(first)).chain(pieces).take(PIECES + 1).map(part));
    let count = libc::c_int::try_from(parts.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: each part is readable for its length; the kernel only reads.
    let written = unsafe { libc::writev(to.as_raw_fd(), parts.as_ptr(), count) };
    usize::try_from(written).map_err(|_negative| {
        let error = io::Error::last_os_error();
        // The kernel raises no SIGBUS where it reads itself.
        if error.raw_os_error() == Some(libc::EFAULT) {
            pieces.iter().for_each(Readable::touch);
        }
        error
    })
}
