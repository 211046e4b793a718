//! What can go wrong between a pod interface and a guest's socket, and the code each has (`docs/errors.md`).

use std::io;
use std::path::PathBuf;

use cni::Code;
use cni::device_info::DeviceInfoError;
use net_types::IfName;
use netns::NetNsError;

use crate::control::client::ClientError;
use crate::control::message::ErrorCode;
use crate::spec::SpecError;

/// Why an interface could not be joined to a socket, checked or let go.
#[derive(Debug, thiserror::Error)]
pub(super) enum PluginError {
    /// The request itself is wrong.
    #[error(transparent)]
    Request(#[from] cni::Error),
    /// CNI_NETNS is missing.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// Its path has a character that a link's text cannot have.
    #[error("CNI_NETNS is {}; allowed: an absolute path without ',', '?' and '&'", .0.display())]
    NetnsPath(PathBuf),
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// There is nothing to join.
    #[error("the container has no Ethernet interface {0}")]
    NoInterface(IfName),
    /// Its frames are longer than AF_XDP's.
    #[error("{name} has an MTU of {mtu}; AF_XDP carries up to {most}")]
    Mtu {
        /// The interface.
        name: IfName,
        /// Its MTU.
        mtu: u32,
        /// The largest that is possible.
        most: u32,
    },
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A name of ours is none; never.
    #[error(transparent)]
    Name(#[from] SpecError),
    /// The other side of the interface goes on leaving checksums to it.
    #[error("checksum offload of {link} cannot be switched off")]
    Checksums {
        /// The node's end of the pod's link.
        link: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder for sockets.
    #[error("cannot create the folder for guests' sockets, {}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file that tells of a link, or the socket of one that has ended.
    #[error("cannot make or remove {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon.
    #[error("vhost-net-backend")]
    Daemon(#[from] ClientError),
    /// The daemon answered something else than was asked.
    #[error("vhost-net-backend answered another question")]
    Answer,
    /// The device-info file.
    #[error(transparent)]
    DeviceInfo(#[from] DeviceInfoError),
    /// CHECK found a difference.
    #[error("{what} is {found}, expected {expected}")]
    Differs {
        /// Of what.
        what: String,
        /// What it is.
        found: String,
        /// What ADD made it.
        expected: String,
    },
    /// STATUS: the daemon is not there.
    #[error("there is no daemon to join interfaces")]
    NotReady(#[source] ClientError),
}

impl PluginError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code,
            Self::NoNetns | Self::NetnsPath(_) => Code::InvalidEnvironment,
            Self::Netns(_) => Code::UnknownContainer,
            Self::NoInterface(_) => Code::Plugin(110),
            Self::Mtu { .. } => Code::Plugin(141),
            Self::Netlink(_) => Code::Plugin(104),
            Self::Checksums { .. } => Code::Plugin(112),
            Self::Folder { .. } | Self::File { .. } | Self::Name(_) => Code::Io,
            Self::Daemon(ClientError::Connect { .. } | ClientError::Io(_)) => Code::TryAgainLater,
            Self::Daemon(error) if error.code() == Some(ErrorCode::Exists) => Code::Plugin(103),
            Self::Daemon(_) | Self::Answer => Code::Plugin(140),
            Self::DeviceInfo(_) => Code::Plugin(126),
            Self::Differs { .. } => Code::Plugin(105),
            // Guests' packets pass by the daemon, those of the guests that are there too.
            Self::NotReady(_) => Code::LimitedConnectivity,
        }
    }
}

impl From<PluginError> for cni::Error {
    fn from(error: PluginError) -> Self {
        match error {
            PluginError::Request(error) => error,
            error => Self::from_error(error.code(), &error),
        }
    }
}
