//! What can go wrong while tuning, and the code each has in the protocol (`docs/errors.md`).

use std::io;
use std::path::PathBuf;

use cni::Code;
use net_types::IfName;
use netns::NetNsError;

use crate::compare::Difference;
use crate::journal::JournalError;
use nf_tables::NfTablesError;

/// Why an interface could not be tuned, checked or restored.
#[derive(Debug, thiserror::Error)]
pub(super) enum TuningError {
    /// CNI_NETNS is missing.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// There is nothing to tune.
    #[error("the container has no interface {0}")]
    NoInterface(IfName),
    /// The node's administrator has not allowed this setting.
    #[error("sysctl {0:?} is not in the node's allowlist /etc/cni/tuning/allowlist.conf")]
    NotAllowed(String),
    /// The allowlist has a line that is no pattern.
    #[error("the allowlist /etc/cni/tuning/allowlist.conf has {line:?}, which is no regular expression")]
    Allowlist {
        /// The line.
        line: String,
        /// What is wrong with it.
        source: regex_lite::Error,
    },
    /// A file could not be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interface's own values could not be kept or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// nf_tables refused.
    #[error(transparent)]
    NfTables(#[from] NfTablesError),
    /// CHECK found a difference.
    #[error(transparent)]
    Differs(#[from] Difference),
}

impl From<TuningError> for cni::Error {
    fn from(error: TuningError) -> Self {
        let code = match &error {
            TuningError::NoNetns => Code::InvalidEnvironment,
            TuningError::Netns(_) => Code::UnknownContainer,
            TuningError::NoInterface(_) => Code::NO_INTERFACE,
            TuningError::NotAllowed(_) | TuningError::Allowlist { .. } => Code::Plugin(113),
            TuningError::File { .. } => Code::UNUSABLE_FILE,
            TuningError::Journal(error) => error.code(),
            TuningError::Netlink(_) | TuningError::NfTables(_) => Code::KERNEL_REFUSED,
            TuningError::Differs(_) => Code::DIFFERS,
        };
        Self::from_error(code, &error)
    }
}
