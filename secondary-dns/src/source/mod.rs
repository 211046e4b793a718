//! Where VMs come from. A source owns the [`crate::zone::ZoneWriter`] and publishes every change.

pub mod dir;
pub mod kube;
mod state;

use std::path::PathBuf;
use std::str::FromStr;

pub use state::State;

/// `--source`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The VMI status directory at a path.
    Dir(PathBuf),
    /// The cluster's API server.
    Kube,
}

/// A source nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source (kube, or dir:PATH)")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            None if text == "kube" => Ok(Self::Kube),
            _ => Err(SourceError(text.to_owned())),
        }
    }
}
