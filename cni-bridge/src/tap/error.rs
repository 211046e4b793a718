//! What can go wrong at a tap, and the code each has in the protocol (`docs/errors.md`).

use std::io;

use cni::Code;
use net_types::{IfName, IfNameError};
use netns::NetNsError;
use tap::TapError;

use crate::compare::Difference;
use crate::journal::JournalError;

/// Why a tap could not be made, checked or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmTapError {
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] cni::Error),
    /// CNI_NETNS is missing.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// There is nothing to turn into a tap.
    #[error("the container has no interface {}", names(.0))]
    NoPodInterface(Vec<IfName>),
    /// It is a tap already.
    #[error("interface {0} of the container has a tap already")]
    AlreadyATap(IfName),
    /// A name that is needed is taken.
    #[error("the container has an interface {0} that vm-tap did not make")]
    NameTaken(IfName),
    /// Somebody else's traffic control is there.
    #[error("interface {0} of the container has an ingress queueing discipline already")]
    HasIngress(IfName),
    /// A name cannot be formed.
    #[error("an interface name cannot be formed")]
    Name(#[from] IfNameError),
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The tap could not be made.
    #[error("tap {name}")]
    Tap {
        /// Its name.
        name: IfName,
        /// Why.
        source: TapError,
    },
    /// A setting or device of the kernel could not be used.
    #[error("cannot use {path}")]
    Setting {
        /// The file in /proc/sys or /dev.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What the interface was could not be kept or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A link just made is not there.
    #[error("interface {0} vanished while it was being set up")]
    Vanished(IfName),
    /// CHECK found a difference.
    #[error(transparent)]
    Differs(#[from] Difference),
}

fn names(names: &[IfName]) -> String {
    names.iter().map(IfName::to_string).collect::<Vec<_>>().join(" or ")
}

impl VmTapError {
    /// True if the container's namespace is not there (any more), so that nothing of ours can be.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::NoNetns => true,
            Self::Netns(error) => error.is_gone(),
            _ => false,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code,
            Self::NoNetns => Code::InvalidEnvironment,
            Self::Netns(_) => Code::UnknownContainer,
            Self::NoPodInterface(_) => Code::NO_INTERFACE,
            Self::AlreadyATap(_) | Self::NameTaken(_) | Self::HasIngress(_) => Code::INTERFACE_EXISTS,
            Self::Name(_) => Code::InvalidConfig,
            Self::Netlink(_) => Code::KERNEL_REFUSED,
            Self::Tap { .. } => Code::NO_TAP,
            Self::Setting { .. } => Code::UNUSABLE_FILE,
            Self::Journal(error) => error.code(),
            Self::Vanished(_) => Code::TryAgainLater,
            Self::Differs(_) => Code::DIFFERS,
        }
    }
}

impl From<VmTapError> for cni::Error {
    fn from(error: VmTapError) -> Self {
        match error {
            VmTapError::Request(error) => error,
            error => Self::from_error(error.code(), &error),
        }
    }
}
