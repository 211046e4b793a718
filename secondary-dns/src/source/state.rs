//! What the rest of the process may ask about a source: is it read, is it followed, since when not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Shared between a source and those who ask.
#[derive(Debug)]
pub struct State {
    synced: watch::Sender<bool>,
    broken: AtomicBool,
    start: Instant,
    /// Milliseconds after `start`; 0: in contact.
    out_of_contact_since: AtomicU64,
    /// Times that following failed.
    failures: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            synced: watch::Sender::new(false),
            broken: AtomicBool::new(false),
            start: Instant::now(),
            out_of_contact_since: AtomicU64::new(1),
            failures: AtomicU64::new(0),
        }
    }
}

impl State {
    /// True once the source has been read whole.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Returns once the source has been read whole.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender is ours: it cannot be gone.
        let _synced = synced.wait_for(|synced| *synced).await;
    }

    /// True if changes can never again be followed: the process must be started anew.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// How long what is served may have been out of date; zero while the source is followed.
    pub fn staleness(&self) -> Duration {
        match self.out_of_contact_since.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => self.start.elapsed().saturating_sub(Duration::from_millis(since)),
        }
    }

    /// Attempts to follow the source that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(super) fn synced(&self) {
        self.synced.send_replace(true);
    }

    pub(super) fn connected(&self) {
        self.out_of_contact_since.store(0, Ordering::Release);
    }

    pub(super) fn disconnected(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        // Only the first failure counts: staleness grows from there.
        let _already =
            self.out_of_contact_since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(super) fn broken(&self, error: &str) {
        tracing::error!(error, "the source can no longer be followed");
        self.disconnected();
        self.broken.store(true, Ordering::Release);
    }
}
