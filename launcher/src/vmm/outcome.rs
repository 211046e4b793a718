//! How a run ends: the first thread that has a reason says so, and the main thread hears it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, OnceLock};

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
