//! What can go wrong at a port, and the code each has in the protocol (`docs/errors.md`).

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use cni::Code;
use ipnetwork::IpNetwork;
use net_types::IfName;
use netns::NetNsError;

use crate::compare::Difference;
use nf_tables::NfTablesError;

/// Why a port could not be made, checked or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    /// The bridge does not exist.
    #[error("bridge {0} does not exist on this node")]
    NoBridge(IfName),
    /// Something of that name exists, but is no bridge.
    #[error("{name} is no bridge but {}", if kind.is_empty() { "a hardware interface" } else { kind })]
    NotABridge {
        /// Its name.
        name: IfName,
        /// What it is.
        kind: String,
    },
    /// The bridge does not keep VLANs apart.
    #[error("bridge {0} does not filter VLANs, so they cannot be kept apart on it")]
    NoVlanFiltering(IfName),
    /// A gateway's link would have a name that none can have; the configuration is checked for that.
    #[error("the gateway's interface has no usable name")]
    GatewayName(#[source] net_types::IfNameError),
    /// What has the name of a VLAN's gateway is something else.
    #[error("{name} is no gateway of the bridge's VLAN but {}", if kind.is_empty() { "a hardware interface" } else { kind })]
    NoGateway {
        /// Its name.
        name: IfName,
        /// What it is.
        kind: String,
    },
    /// The bridge has another address.
    #[error("{bridge} has the address {found}, which is in the way of {wanted}")]
    OtherAddress {
        /// The bridge, or its gateway's link.
        bridge: String,
        /// Its address.
        found: IpNetwork,
        /// The gateway's.
        wanted: IpNetwork,
    },
    /// The uplink is no port of the bridge.
    #[error("uplink {name} is no port of bridge {bridge}")]
    NotAPort {
        /// The uplink.
        name: IfName,
        /// The bridge.
        bridge: IfName,
    },
    /// IPAM answered without addresses.
    #[error("the IPAM plugin assigned no address")]
    NoAddresses,
    /// The bridge shall be the gateway of a subnet with one address.
    #[error("the IPAM plugin assigned {0} without a gateway, and the subnet has no other address to be one")]
    NoRoomForGateway(IpNetwork),
    /// IPAM refused.
    #[error(transparent)]
    Ipam(#[from] cni::Error),
    /// Somebody has the address already.
    #[error("another host answers to an assigned IPv6 address")]
    DuplicateAddress,
    /// Nobody knows whether somebody has it.
    #[error("IPv6 duplicate address detection is not done after {} s", .0.as_secs())]
    Undetected(Duration),
    /// A setting of the kernel could not be used.
    #[error("cannot use {path}")]
    Setting {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// CNI_NETNS is missing where it is needed.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// The container has an interface of that name.
    #[error("the container has an interface {if_name} already ({})", netns.display())]
    InterfaceExists {
        /// Its name.
        if_name: IfName,
        /// Where.
        netns: PathBuf,
    },
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// nf_tables refused.
    #[error(transparent)]
    NfTables(#[from] NfTablesError),
    /// A link just made is not there.
    #[error("interface {0} vanished while it was being set up")]
    Vanished(IfName),
    /// CHECK found a difference.
    #[error(transparent)]
    Differs(#[from] Difference),
    /// CHECK has nothing to compare with.
    #[error("prevResult is missing or does not have interface {0} of the container")]
    NoPrevResult(IfName),
    /// Several failures of one clean-up.
    #[error("{count} parts of the clean-up failed, the first because: {first}")]
    Several {
        /// How many.
        count: usize,
        /// The first.
        first: Box<BridgeError>,
    },
}

impl BridgeError {
    fn code(&self) -> Code {
        match self {
            Self::NoPrevResult(_) | Self::GatewayName(_) => Code::InvalidConfig,
            Self::NoBridge(_) => Code::Plugin(100),
            Self::NotABridge { .. } => Code::Plugin(101),
            Self::NoVlanFiltering(_) => Code::Plugin(102),
            Self::OtherAddress { .. } => Code::Plugin(106),
            Self::NotAPort { .. } => Code::Plugin(108),
            Self::NoGateway { .. } => Code::Plugin(109),
            Self::NoAddresses | Self::NoRoomForGateway(_) | Self::DuplicateAddress | Self::Undetected(_) => {
                Code::Plugin(107)
            }
            Self::Ipam(error) => error.code,
            Self::Setting { .. } => Code::UNUSABLE_FILE,
            Self::Netns(_) => Code::UnknownContainer,
            Self::NoNetns => Code::InvalidEnvironment,
            Self::InterfaceExists { .. } => Code::INTERFACE_EXISTS,
            Self::Netlink(_) | Self::NfTables(_) => Code::KERNEL_REFUSED,
            Self::Vanished(_) => Code::TryAgainLater,
            Self::Differs(_) => Code::DIFFERS,
            Self::Several { first, .. } => first.code(),
        }
    }

    /// True if the node's bridge is not what the network's ports need, those that are there included.
    pub(super) fn cuts_off_ports(&self) -> bool {
        matches!(
            self,
            Self::NoBridge(_) | Self::NotABridge { .. } | Self::NoVlanFiltering(_) | Self::NotAPort { .. }
        )
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoBridge(name) => Some(format!(
                "create it with a NodeNetworkConfigurationPolicy, or: ip link add {name} type bridge vlan_filtering 1"
            )),
            Self::NoVlanFiltering(bridge) => Some(format!(
                "set enableVlanFiltering, or switch it on: ip link set {bridge} type bridge vlan_filtering 1"
            )),
            Self::OtherAddress { .. } => Some("forceAddress replaces it".to_owned()),
            Self::NotAPort { name, bridge } => {
                Some(format!("make it one: ip link set {name} master {bridge}"))
            }
            _ => None,
        }
    }
}

impl From<BridgeError> for cni::Error {
    fn from(error: BridgeError) -> Self {
        // Another plugin's refusal is passed on in its own words.
        if let BridgeError::Ipam(refusal) = error {
            return refusal;
        }
        let answer = Self::from_error(error.code(), &error);
        match error.hint() {
            Some(hint) => answer.details(hint),
            None => answer,
        }
    }
}
