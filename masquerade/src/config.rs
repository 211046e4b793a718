//! The configuration of `masquerade`, checked.

mod ports;
mod subnet;

use cni::{Code, Error, Request};
use net_types::IfName;
use serde::Deserialize;

pub(crate) use ports::{Forwarded, PortRange, PortSet, Protocol};
pub(crate) use subnet::{Subnet, SubnetError};

use ports::{RawPort, RawRange};

/// What is asked of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The IPv4 subnet, for a pod that has an IPv4 address.
    pub(crate) v4: Subnet,
    /// The IPv6 subnet, for a pod that has an IPv6 address.
    pub(crate) v6: Subnet,
    /// What reaches the guest.
    pub(crate) rules: Rules,
    /// MTU in bytes; none means the pod interface's.
    pub(crate) mtu: Option<u32>,
    /// The guest's tap.
    pub(crate) tap: Tap,
    /// The interfaces of the pod that may be meant, the likeliest first.
    pub(crate) candidates: Vec<IfName>,
}

/// What of the pod's traffic is the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The ports that are forwarded.
    pub(crate) forwarded: Forwarded,
    /// The ports that never are.
    pub(crate) reserved: PortSet,
    /// There is an Istio proxy in the pod, which takes what comes in and hands it on.
    pub(crate) istio: bool,
}

/// Who may open the tap, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tap {
    /// The user who may.
    pub(crate) owner: Option<u32>,
    /// The group whose members may.
    pub(crate) group: Option<u32>,
    /// Queue pairs.
    pub(crate) queues: u16,
}

/// The configuration as it is written. Names are KubeVirt's where it has one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "vmNetworkCIDR")]
    v4: Option<String>,
    #[serde(rename = "vmIPv6NetworkCIDR")]
    v6: Option<String>,
    #[serde(default)]
    ports: Vec<RawPort>,
    #[serde(default)]
    port_ranges: Vec<RawRange>,
    reserved_ports: Option<Vec<i64>>,
    #[serde(default)]
    istio: bool,
    mtu: Option<i64>,
    owner: Option<i64>,
    group: Option<i64>,
    queues: Option<i64>,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Logical,
}

#[derive(Default, Deserialize)]
struct Logical {
    #[serde(rename = "logicNetworkName")]
    network: Option<String>,
}

const KEYS: [&str; 10] = [
    "vmNetworkCIDR",
    "vmIPv6NetworkCIDR",
    "ports",
    "portRanges",
    "reservedPorts",
    "istio",
    "mtu",
    "owner",
    "group",
    "queues",
];

/// KubeVirt's defaults.
const V4: &str = "10.0.2.0/24";
const V6: &str = "fd10:0:2::/120";
/// The ports a live migration uses: the manual promises that they never reach the guest.
const MIGRATION_PORTS: [i64; 2] = [49152, 49153];
/// `ETH_MIN_MTU`, and the largest MTU of a tap (`ETH_MAX_MTU` less its link header), in bytes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65521;
/// `MAX_TAP_QUEUES` (drivers/net/tun.c).
const MAX_QUEUES: u16 = 256;

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        let Raw { v4, v6, ports, port_ranges, reserved_ports, istio, mtu, owner, group, queues, args } =
            request.config_of(&KEYS)?;
        let subnet = |field: &'static str, subnet: Result<Subnet, SubnetError>| {
            subnet.map_err(|error| invalid(&format!("{field}: {error}")))
        };
        let reserved = reserved_ports.unwrap_or(MIGRATION_PORTS.to_vec());
        let reserved =
            PortSet::tcp("reservedPorts", &reserved).map_err(|error| invalid(&error.to_string()))?;
        let forwarded = Forwarded::parse(ports, port_ranges, &reserved);
        Ok(Self {
            v4: subnet("vmNetworkCIDR", Subnet::v4(v4.as_deref().unwrap_or(V4)))?,
            v6: subnet("vmIPv6NetworkCIDR", Subnet::v6(v6.as_deref().unwrap_or(V6)))?,
            rules: Rules {
                forwarded: forwarded.map_err(|error| invalid(&error.to_string()))?,
                reserved,
                istio,
            },
            mtu: mtu_of(mtu)?,
            tap: Tap { owner: id("owner", owner)?, group: id("group", group)?, queues: queues_of(queues)? },
            candidates: candidates(request, args.cni.network.as_deref())?,
        })
    }
}

/// KubeVirt runs a binding after the network's own plugin and names the VM's network, not the interface: that is the
/// hashed name of a secondary network, else the pod's primary interface. In a chain the runtime names the interface.
fn candidates(request: &Request, logical: Option<&str>) -> Result<Vec<IfName>, Error> {
    let named =
        |name: Result<IfName, net_types::IfNameError>| name.map_err(|error| invalid(&error.to_string()));
    match (logical, &request.attachment) {
        (Some(network), _) => {
            Ok(vec![named(kubevirt_names::secondary(network))?, named(kubevirt_names::primary())?])
        }
        (None, Some(attachment)) => Ok(vec![attachment.if_name.clone()]),
        // STATUS and GC are about no interface.
        (None, None) => Ok(Vec::new()),
    }
}

fn mtu_of(mtu: Option<i64>) -> Result<Option<u32>, Error> {
    match mtu {
        None | Some(0) => Ok(None),
        Some(mtu) => {
            let fitting = u32::try_from(mtu).ok().filter(|mtu| MTU.contains(mtu));
            let (low, high) = (MTU.start(), MTU.end());
            let refused =
                || invalid(&format!("mtu: is {mtu}; allowed: 0 (the pod interface's), {low} to {high}"));
            fitting.map(Some).ok_or_else(refused)
        }
    }
}

/// 4294967295 is `(uid_t) -1`, "nobody is meant" to the kernel.
fn id(field: &str, id: Option<i64>) -> Result<Option<u32>, Error> {
    let checked = |id: i64| {
        let fitting = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        fitting.ok_or_else(|| invalid(&format!("{field}: is {id}; allowed: 0 to 4294967294")))
    };
    id.map(checked).transpose()
}

fn queues_of(queues: Option<i64>) -> Result<u16, Error> {
    let queues = queues.unwrap_or(1);
    let fitting = u16::try_from(queues).ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
    fitting.ok_or_else(|| invalid(&format!("queues: is {queues}; allowed: 1 to {MAX_QUEUES}")))
}

fn invalid(message: &str) -> Error {
    Error::new(Code::InvalidConfig, message)
}

#[cfg(test)]
mod tests;
