//! How a run ends: the first thread that has a reason says so, and the main thread hears it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VmmError;

/// Why the VMM ends.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The guest powered off.
    Shutdown,
    /// The guest wants to start again.
    Reset,
    /// The supervisor wants it to end.
    Stopped,
    /// It cannot go on.
    Failed(VmmError),
}

/// A shared end that comes once; later reasons are dropped.
#[derive(Debug, Clone)]
pub(crate) struct End {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outcome: OnceLock<Outcome>,
    event: EventFd,
}

impl End {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { shared: Arc::new(Shared { outcome: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? }) })
    }

    /// Ends the run with `outcome` unless it has ended already.
    pub(crate) fn come(&self, outcome: Outcome) {
        if self.shared.outcome.set(outcome).is_ok() {
            // The counter was zero, so there is room.
            let _ = self.shared.event.write(1);
        }
    }

    pub(crate) fn has_come(&self) -> bool {
        self.outcome().is_some()
    }

    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.shared.outcome.get()
    }
}

/// Readable once the end has come.
impl AsRawFd for End {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

/// Turns a panic of the thread that has this on its stack into the end of the run, instead of a guest that hangs.
pub(crate) struct DeathWatch {
    end: End,
    error: Option<VmmError>,
}

impl DeathWatch {
    /// `error` says whose thread it was.
    pub(crate) fn new(end: End, error: VmmError) -> Self {
        Self { end, error: Some(error) }
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if let (true, Some(error)) = (thread::panicking(), self.error.take()) {
            self.end.come(Outcome::Failed(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let end = End::new().unwrap();
        end.come(Outcome::Reset);
        end.clone().come(Outcome::Shutdown);
        assert!(matches!(end.outcome(), Some(Outcome::Reset)));
    }

    #[test]
    fn a_thread_that_panics_ends_the_run() {
        let end = End::new().unwrap();
        let watched = end.clone();
        let thread = thread::spawn(move || {
            let _watch = DeathWatch::new(watched, VmmError::NoOutcome);
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert!(matches!(end.outcome(), Some(Outcome::Failed(VmmError::NoOutcome))));
    }
}
