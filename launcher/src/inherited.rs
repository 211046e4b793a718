//! Descriptors that a process finds open when it starts.
#![expect(unsafe_code, reason = "only the caller of exec knows what an inherited descriptor number means")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Takes over descriptor `number`, which the parent process left open for this one. It is closed on exec from now on.
///
/// To be called once per number, before anything else opens descriptors.
///
/// # Errors
/// Nothing is open at that number.
pub(crate) fn take(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the borrow ends with the next statement; fcntl on a closed number fails with EBADF and does no harm.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, as fcntl has shown, and by contract with the parent it is ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
