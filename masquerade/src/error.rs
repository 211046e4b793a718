//! What can go wrong, and the code each has in the protocol (`docs/errors.md`).

use std::io;

use cni::Code;
use ipnetwork::IpNetwork;
use net_types::{IfName, IfNameError};
use netns::NetNsError;
use nf_tables::NfTablesError;
use tap::TapError;

use crate::settings::SettingError;

/// Why a guest could not be connected, checked or disconnected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MasqueradeError {
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] cni::Error),
    /// CNI_NETNS is missing.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// There is nothing to masquerade by.
    #[error("the container has no interface {}", names(.0))]
    NoPodInterface(Vec<IfName>),
    /// Nothing to translate to.
    #[error("interface {0} of the container has no IPv4 or IPv6 address that others can reach")]
    NoAddress(IfName),
    /// The guest's subnet hides something.
    #[error("{field}: {network} overlaps {other} of {link} in the container")]
    Overlap {
        /// The key to change.
        field: &'static str,
        /// The guest's subnet.
        network: IpNetwork,
        /// What is there.
        other: IpNetwork,
        /// Where.
        link: String,
    },
    /// More than the way out carries.
    #[error("mtu: is {mtu}; allowed: up to {own}, that of {name}")]
    MtuTooLarge {
        /// As configured.
        mtu: u32,
        /// The pod interface.
        name: String,
        /// Its MTU.
        own: u32,
    },
    /// Less than IPv6 needs.
    #[error("mtu: is {mtu}; the pod has IPv6, which needs 1280 at least")]
    MtuTooSmall {
        /// As configured, or the pod interface's.
        mtu: u32,
    },
    /// A name that is needed is taken.
    #[error("the container has an interface {0} that masquerade did not make")]
    NameTaken(IfName),
    /// A name cannot be formed.
    #[error("an interface name cannot be formed")]
    Name(#[from] IfNameError),
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// nf_tables refused.
    #[error(transparent)]
    NfTables(#[from] NfTablesError),
    /// The tap could not be made.
    #[error("tap {name}")]
    Tap {
        /// Its name.
        name: IfName,
        /// Why.
        source: TapError,
    },
    /// A setting could not be made.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// A device is missing.
    #[error("cannot use {path}")]
    Device {
        /// The device.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A link just made is not there.
    #[error("interface {0} vanished while it was being set up")]
    Vanished(IfName),
    /// CHECK found a difference.
    #[error("{what} is {found}, expected {expected}")]
    Differs {
        /// Which property of what.
        what: String,
        /// What it is.
        found: String,
        /// What ADD made it.
        expected: String,
    },
    /// Several failures of one DEL.
    #[error("{count} things could not be removed, the first because: {first}")]
    Several {
        /// How many.
        count: usize,
        /// The first.
        first: Box<MasqueradeError>,
    },
}

fn names(names: &[IfName]) -> String {
    names.iter().map(IfName::to_string).collect::<Vec<_>>().join(" or ")
}

impl MasqueradeError {
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
            Self::Overlap { .. } | Self::MtuTooLarge { .. } | Self::MtuTooSmall { .. } | Self::Name(_) => {
                Code::InvalidConfig
            }
            Self::NameTaken(_) => Code::INTERFACE_EXISTS,
            Self::Netlink(_) => Code::KERNEL_REFUSED,
            Self::Differs { .. } => Code::DIFFERS,
            Self::NoPodInterface(_) => Code::NO_INTERFACE,
            Self::Tap { .. } => Code::NO_TAP,
            Self::Setting(_) | Self::Device { .. } => Code::UNUSABLE_FILE,
            Self::NoAddress(_) => Code::Plugin(130),
            Self::NfTables(_) => Code::Plugin(131),
            Self::Vanished(_) => Code::TryAgainLater,
            Self::Several { first, .. } => first.code(),
        }
    }
}

impl From<MasqueradeError> for cni::Error {
    fn from(error: MasqueradeError) -> Self {
        match error {
            MasqueradeError::Request(error) => error,
            error => Self::from_error(error.code(), &error),
        }
    }
}
