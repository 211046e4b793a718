//! The wish that the VM ends: SIGTERM (or SIGINT) to the supervisor.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Remembers whether somebody asked.
#[derive(Debug)]
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    asked: bool,
}

impl Stop {
    /// From now on the signals do not end the process. To be called inside a Tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            asked: false,
        })
    }

    /// Waits until somebody asks (again).
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.asked = true;
    }

    /// Whether anybody has asked.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }
}
