//! What the kernel refused.

use std::io;
use std::net::IpAddr;
use std::num::TryFromIntError;

use ipnetwork::IpNetwork;
use netlink_packet_core::DecodeError;
use netns::NetNsError;

/// Why a netlink verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("cannot open a route-netlink socket")]
    Open(#[source] io::Error),
    /// Not in that namespace.
    #[error(transparent)]
    Namespace(#[from] NetNsError),
    /// The kernel said no.
    #[error("cannot {verb} {object}")]
    Refused {
        /// What was asked, in the words of ip(8).
        verb: &'static str,
        /// Of what.
        object: String,
        /// The errno.
        source: io::Error,
    },
    /// The kernel cannot keep VLANs apart on a bridge.
    #[error(
        "cannot {verb} {object}: the kernel has no bridges that filter VLANs \
         (CONFIG_BRIDGE, CONFIG_BRIDGE_VLAN_FILTERING)"
    )]
    NoVlanFiltering {
        /// What was asked, in the words of ip(8).
        verb: &'static str,
        /// Of what.
        object: String,
        /// The errno.
        source: io::Error,
    },
    /// An IPv6 route by way of an IPv4 neighbour.
    #[error("route to {destination} via {gateway}: the gateway is of the other address family")]
    MixedFamilies {
        /// Where to.
        destination: IpNetwork,
        /// By which neighbour.
        gateway: IpAddr,
    },
    /// The kernel answered what cannot be read.
    #[error("cannot {verb} {object}: the answer is malformed")]
    Malformed {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
        /// Where it goes wrong.
        source: DecodeError,
    },
    /// A link has an index that traffic control cannot count to.
    #[error("link index {index} is too large for traffic control")]
    Index {
        /// The index.
        index: u32,
        /// Why.
        source: TryFromIntError,
    },
    /// Events cannot be waited for.
    #[error("cannot wait for events of the kernel")]
    Events(#[source] io::Error),
    /// The exchange itself broke.
    #[error("cannot {verb} {object}: the netlink exchange failed")]
    Exchange {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
        /// How it broke.
        source: rtnetlink::Error,
    },
}

impl Error {
    pub(crate) fn request(verb: &'static str, object: String, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                Self::Refused { verb, object, source: message.to_io() }
            }
            source => Self::Exchange { verb, object, source },
        }
    }

    /// The same of a request for VLAN filtering: "not supported" says nothing to whoever has not got it.
    pub(crate) fn without_vlan_filtering(self) -> Self {
        match self {
            Self::Refused { verb, object, source } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Self::NoVlanFiltering { verb, object, source }
            }
            other => other,
        }
    }

    /// The errno the kernel answered with, if it answered.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::NoVlanFiltering { source, .. } => source.raw_os_error(),
            Self::Open(_)
            | Self::Namespace(_)
            | Self::MixedFamilies { .. }
            | Self::Index { .. }
            | Self::Malformed { .. }
            | Self::Events(_)
            | Self::Exchange { .. } => None,
        }
    }

    /// True if the object is not there (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENXIO | libc::ENOENT | libc::EADDRNOTAVAIL | libc::ESRCH)
        )
    }

    /// True if there is one of that name already.
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}
