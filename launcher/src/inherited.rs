//! Descriptors that a process finds open when it starts, and those that it leaves to others.
#![expect(unsafe_code, reason = "only the caller of exec knows what an inherited descriptor number means")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

/// Keeps what this process has open, standard input, output and error aside, from the programs that it starts from now on.
///
/// # Errors
/// What the kernel says; it has refused nobody since 5.11, which brought this.
pub(crate) fn keep() -> io::Result<()> {
    let cloexec = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).map_err(io::Error::other)?;
    // SAFETY: only flags of descriptors change, which nobody can own.
    let answer = unsafe { libc::close_range(3, libc::c_uint::MAX, cloexec) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

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
