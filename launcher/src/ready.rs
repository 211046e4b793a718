//! Waiting for a descriptor of ours in a Tokio runtime.
#![expect(unsafe_code, reason = "Tokio cannot see that a descriptor stays open while it is registered")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::unix::AsyncFd;

/// Something with one descriptor, which can be waited for.
#[derive(Debug)]
pub(crate) struct Ready<T: AsFd>(AsyncFd<Fixed<T>>);

#[derive(Debug)]
struct Fixed<T>(T);

impl<T: AsFd> AsRawFd for Fixed<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<T: AsFd> Ready<T> {
    /// Registers `inner`, whose descriptor is non-blocking, with the current runtime.
    pub(crate) fn new(inner: T) -> io::Result<Self> {
        // SAFETY: the types used here own one descriptor as long as they live; `inner` is only lent out by shared
        // reference, so it is neither replaced nor closed while it is registered.
        let registered = unsafe { AsyncFd::register(Fixed(inner)) };
        Ok(Self(registered?))
    }

    /// What was registered.
    pub(crate) fn get(&self) -> &T {
        &self.0.get_ref().0
    }

    /// Waits until there is something to read. The caller then reads until there is nothing left, or comes back by
    /// itself: what it leaves does not wake it again.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}
