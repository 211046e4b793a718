//! SIGBUS from a guest's memory becomes a flag instead of the process's death.
//!
//! The file behind a mapping belongs to the VMM, which can truncate it at any time; the next access then raises
//! SIGBUS in our process. The handler looks up the mapping in a table, puts zero pages in its place, sets its flag and
//! returns: the access is repeated and succeeds. The data path looks at the flag once a batch and ends the link.
//! A SIGBUS elsewhere is a bug of ours, and kills as it would have.
//!
//! The table is a fixed array of atomics because a signal handler may neither lock nor allocate. A slot is filled
//! before its mapping is handed out and emptied before it is unmapped, so the handler never sees a stale one for an
//! address that can still be accessed.
#![expect(unsafe_code, reason = "a signal handler, and the mmap it makes")]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::MAX_REGIONS;

/// As many mappings as can exist at once: 256 guests with all the regions they may have and a log, twice while they change.
const SLOTS: usize = 256 * 2 * (MAX_REGIONS + 1);

/// A slot whose owner has not filled it yet.
const RESERVED: usize = 1;

struct Slot {
    /// 0 while the slot is free.
    start: AtomicUsize,
    length: AtomicUsize,
    gone: AtomicBool,
}

impl Slot {
    /// The length of the mapping that begins at `start`, as long as the slot is that one's. Others come and go meanwhile: with
    /// the start of one and the length of the next, a slot would claim the memory of a third.
    fn length_of(&self, start: usize) -> Option<usize> {
        let length = self.length.load(Ordering::Acquire);
        (self.start.load(Ordering::Relaxed) == start).then_some(length)
    }
}

static TABLE: [Slot; SLOTS] = [const {
    Slot { start: AtomicUsize::new(0), length: AtomicUsize::new(0), gone: AtomicBool::new(false) }
}; SLOTS];

/// A mapping's place in the table.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards a new mapping; `None` if the table is full.
    pub(super) fn new(start: usize, length: usize) -> Option<Self> {
        let slot = TABLE.iter().position(|slot| {
            slot.start.compare_exchange(0, RESERVED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let entry = &TABLE[slot];
        entry.gone.store(false, Ordering::Relaxed);
        entry.length.store(length, Ordering::Release);
        entry.start.store(start, Ordering::Release);
        Some(Self { slot })
    }

    #[inline]
    pub(super) fn is_gone(&self) -> bool {
        TABLE[self.slot].gone.load(Ordering::Relaxed)
    }

    /// Before the mapping is unmapped; once.
    pub(super) fn release(&self) {
        let entry = &TABLE[self.slot];
        entry.length.store(0, Ordering::Relaxed);
        entry.start.store(0, Ordering::Release);
    }
}

/// Installs the handler. Once per process, before any guest memory is mapped.
///
/// # Errors
/// What `sigaction` says.
pub fn install() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    // SAFETY: all zeros is a valid sigaction; the fields that matter are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe: atomics, mmap and sigaction only.
    let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS it has an address.
    let address = unsafe { info.si_addr() }.addr();
    let found = TABLE.iter().find_map(|slot| {
        let start = Some(slot.start.load(Ordering::Acquire)).filter(|start| *start > RESERVED)?;
        let length = slot.length_of(start)?;
        (address.wrapping_sub(start) < length).then_some((slot, start, length))
    });
    let replaced = found.is_some_and(|(slot, start, length)| {
        slot.gone.store(true, Ordering::Relaxed);
        put_zeros(start, length)
    });
    if !replaced {
        // SAFETY: resetting to the default action; the repeated access then kills the process as it should.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

fn put_zeros(start: usize, length: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: replaces exactly one mapping of ours; only raw pointers reach it, and they stay valid.
    unsafe { libc::mmap(address, length, protection, flags, -1, 0) != libc::MAP_FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_has_no_start_of_one_owner_with_the_length_of_the_next() {
        let (first, next) = ((1 << 20, 4096), (1 << 40, 1 << 40));
        let guard = Guard::new(first.0, first.1).unwrap();
        let slot = &TABLE[guard.slot];
        assert_eq!(slot.length_of(first.0), Some(first.1));
        guard.release();
        assert_eq!(slot.length_of(first.0), None);
        let guard = Guard::new(next.0, next.1).unwrap();
        assert!(std::ptr::eq(slot, &raw const TABLE[guard.slot]), "the first free slot is taken");
        assert_eq!((slot.length_of(first.0), slot.length_of(next.0)), (None, Some(next.1)));
        guard.release();
    }
}
