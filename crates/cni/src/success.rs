//! What an ADD hands back, in the shape of the newest specification. [`crate::output`] writes older shapes.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::json::{self, Unreadable};
use crate::{Code, Error};

/// `RT_SCOPE_LINK` (`linux/rtnetlink.h`).
const SCOPE_LINK: u8 = 253;

/// The result of an ADD; also what the next plugin of a chain gets as `prevResult`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Success {
    /// Interfaces made or configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// One address as 0.1.0 and 0.2.0 have it: `ip4` and `ip6`.
#[derive(Deserialize)]
struct OldIp {
    #[serde(deserialize_with = "with_prefix")]
    ip: IpNetwork,
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

impl Success {
    /// Reads a plugin's answer in the shape of any version.
    ///
    /// # Errors
    /// What of it cannot be read.
    pub fn read(answer: &[u8]) -> Result<Self, ResultError> {
        Self::from_value(serde_json::from_slice(answer)?).map_err(ResultError::Unreadable)
    }

    /// Reads the `prevResult` of any version.
    pub(crate) fn from_json(value: Value) -> Result<Self, Unreadable> {
        Self::from_value(value).map_err(|error| error.of("prevResult"))
    }

    /// The next hop of one of its routes: the route's own, else the gateway that came with an address of its family. None
    /// for a destination on the link, which the unspecified address as next hop says, or the scope.
    pub fn next_hop(&self, route: &Route) -> Option<IpAddr> {
        match (route.gw, route.scope) {
            (Some(gateway), _) => Some(gateway).filter(|gateway| !gateway.is_unspecified()),
            (None, Some(SCOPE_LINK)) => None,
            (None, _) => self.gateway_of_family(route.dst.is_ipv6()),
        }
    }

    /// The gateway that came with an address of the family.
    pub fn gateway_of_family(&self, is_ipv6: bool) -> Option<IpAddr> {
        self.ips.iter().filter(|ip| ip.address.is_ipv6() == is_ipv6).find_map(|ip| ip.gateway)
    }

    fn from_value(mut value: Value) -> Result<Self, Unreadable> {
        let old = ["ip4", "ip6"].map(|key| (key, value.get_mut(key).map(Value::take)));
        let mut success: Self = json::read(value)?;
        for (key, old) in old {
            let Some(old) = old.filter(|old| !old.is_null()) else { continue };
            let OldIp { ip, gateway, routes } = json::read(old).map_err(|error| error.of(key))?;
            success.ips.push(Ip { interface: None, address: ip, gateway });
            success.routes.extend(routes);
        }
        Ok(success)
    }
}

/// Why a plugin's answer is no result.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    /// It is not JSON.
    #[error("it is no JSON")]
    Json(#[from] serde_json::Error),
    /// A member does not fit.
    #[error(transparent)]
    Unreadable(Unreadable),
}

impl From<ResultError> for Error {
    fn from(error: ResultError) -> Self {
        Self::from_error(Code::Decode, &error)
    }
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, as text because a chain may carry what is no Ethernet.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's namespace if it is in there, empty if it is the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket in place of a device (1.1.0).
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI address behind it (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// Index into [`Success::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Address and prefix length.
    #[serde(deserialize_with = "with_prefix")]
    pub address: IpNetwork,
    /// The subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    #[serde(deserialize_with = "with_prefix")]
    pub dst: IpNetwork,
    /// Next hop; none means the gateway of the family's address, and the unspecified address none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along the route in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Maximum segment size to advertise, in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as the kernel numbers it (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

/// Name resolution.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// Name servers in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// An address alone would be read as a subnet of one, which nobody means by leaving the length out.
fn with_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(deserializer)?;
    let length = text.split_once('/').map(|(_, length)| length);
    if !length.is_some_and(|length| length.bytes().all(|byte| byte.is_ascii_digit())) {
        let wrong = format!("{text:?} is no subnet; allowed: an address and the length of its prefix");
        return Err(serde::de::Error::custom(wrong));
    }
    text.parse().map_err(serde::de::Error::custom)
}

impl Dns {
    /// True if it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
