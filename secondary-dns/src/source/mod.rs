//! Where VMs come from. A source owns the [`crate::zone::ZoneWriter`] and publishes every change.

pub mod dir;

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// `--source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The VMI status directory at a path.
    Dir(PathBuf),
}

/// A source nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source (dir:PATH)")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(SourceError(text.to_owned())),
        }
    }
}

/// What the rest of the process may ask about a source.
#[derive(Debug, Default)]
pub struct State {
    synced: AtomicBool,
    broken: AtomicBool,
}

impl State {
    /// True once the source has been read whole.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// True if changes can no longer be followed.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    fn broken(&self, error: &str) {
        tracing::error!(error, "the source can no longer be followed");
        self.broken.store(true, Ordering::Release);
    }
}
