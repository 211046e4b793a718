//! What a NodeNetworkConfigurationPolicy wants, as far as it is about Linux bridges.

use std::collections::BTreeSet;

use net_types::{IfName, VlanId};
use netlink::{PortVlan, VlanRange};
use serde::Deserialize;
use vm_api::yaml::{YamlError, documents};

use crate::bridge::Vlans;

/// Why a policy is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// The text.
    #[error("the policy cannot be read")]
    Yaml(#[from] YamlError),
    /// There is none.
    #[error("there is no policy in the file")]
    Empty,
    /// A document is of another kind.
    #[error(
        "document {number} is {found}; allowed: NodeNetworkConfigurationPolicy of nmstate.io/v1 or v1beta1"
    )]
    Kind {
        /// Counted from 1.
        number: usize,
        /// Its kind and version.
        found: String,
    },
    /// A field has the wrong type, or is one that we do not do.
    #[error("{policy}: {field} cannot be used")]
    Field {
        /// The policy's name.
        policy: String,
        /// Where.
        field: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A value is not allowed.
    #[error("{policy}: {field}: {what}")]
    Value {
        /// The policy's name.
        policy: String,
        /// Where.
        field: String,
        /// What it is, and what is allowed.
        what: String,
    },
}

/// One policy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) policy: String,
    pub(super) bridges: Vec<Bridge>,
    /// Bridges that shall not be there.
    pub(super) absent: Vec<IfName>,
}

/// A bridge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bridge {
    pub(super) name: IfName,
    /// In bytes; none leaves it as it is.
    pub(super) mtu: Option<u32>,
    pub(super) stp: bool,
    pub(super) ports: Vec<Port>,
}

/// A port of a bridge.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: IfName,
    /// Its VLANs; none leaves them as the bridge makes them.
    pub(super) vlans: Option<Vlans>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    desired_state: State,
    node_selector: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(rename = "maxUnavailable")]
    _max_unavailable: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Interface {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    state: Wanted,
    #[serde(rename = "description")]
    _description: Option<String>,
    mtu: Option<u32>,
    ipv4: Option<NoAddresses>,
    ipv6: Option<NoAddresses>,
    #[serde(default)]
    bridge: RawBridge,
}

#[derive(Deserialize)]
enum Kind {
    #[serde(rename = "linux-bridge")]
    LinuxBridge,
}

#[derive(Deserialize, Default, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    #[default]
    Up,
    Absent,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
struct NoAddresses {
    #[serde(default)]
    enabled: bool,
    #[serde(rename = "dhcp", default)]
    _dhcp: bool,
    #[serde(rename = "autoconf", default)]
    _autoconf: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawBridge {
    #[serde(default)]
    options: Options,
    #[serde(default)]
    port: Vec<RawPort>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    stp: Stp,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Stp {
    #[serde(default)]
    enabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    name: String,
    vlan: Option<RawVlan>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawVlan {
    mode: Option<Mode>,
    tag: Option<u16>,
    #[serde(default)]
    enable_native: bool,
    #[serde(default)]
    trunk_tags: Vec<Tags>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Access,
    Trunk,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tags {
    Id(u16),
    IdRange(Range),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    min: u16,
    max: u16,
}

/// The smallest and largest MTU of a bridge, in bytes (`ETH_MIN_MTU`, `ETH_MAX_MTU`).
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// The policies of a file, in order.
pub(super) fn read(yaml: &str) -> Result<Vec<Desired>, PolicyError> {
    let documents = documents(yaml)?;
    if documents.is_empty() {
        return Err(PolicyError::Empty);
    }
    documents.into_iter().zip(1..).map(|(document, number)| policy(document, number)).collect()
}

fn policy(document: serde_json::Value, number: usize) -> Result<Desired, PolicyError> {
    let text = |field: &str| document.get(field).and_then(serde_json::Value::as_str).unwrap_or("nothing");
    let (kind, version) = (text("kind"), text("apiVersion"));
    if kind != "NodeNetworkConfigurationPolicy" || !["nmstate.io/v1", "nmstate.io/v1beta1"].contains(&version)
    {
        return Err(PolicyError::Kind { number, found: format!("{kind} of {version}") });
    }
    let name =
        document.pointer("/metadata/name").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let raw: Raw = serde_path_to_error::deserialize(document).map_err(|error| PolicyError::Field {
        policy: name,
        field: error.path().to_string(),
        source: error.into_inner(),
    })?;
    let Raw { metadata: Metadata { name: policy }, spec } = raw;
    let Spec { desired_state: State { interfaces }, node_selector, _max_unavailable } = spec;
    if node_selector.is_some_and(|selector| !selector.is_empty()) {
        tracing::warn!("{policy}: nodeSelector is not looked at: the policy is applied to this node");
    }
    let mut desired = Desired { policy, bridges: Vec::new(), absent: Vec::new() };
    let mut taken = BTreeSet::new();
    for (index, interface) in interfaces.into_iter().enumerate() {
        let place = Place { policy: &desired.policy, field: format!("interfaces[{index}]") };
        let (state, bridge) = bridge(interface, &place)?;
        place.below("name").once(&bridge.name, &mut taken)?;
        for (port, index) in bridge.ports.iter().zip(0..) {
            place.below(&format!("bridge.port[{index}].name")).once(&port.name, &mut taken)?;
        }
        match state {
            Wanted::Up => desired.bridges.push(bridge),
            Wanted::Absent => desired.absent.push(bridge.name),
        }
    }
    Ok(desired)
}

/// Where in a policy a value stands.
struct Place<'a> {
    policy: &'a str,
    field: String,
}

impl Place<'_> {
    fn below(&self, field: &str) -> Self {
        Self { policy: self.policy, field: format!("{}.{field}", self.field) }
    }

    fn error(&self, what: impl Into<String>) -> PolicyError {
        PolicyError::Value { policy: self.policy.to_owned(), field: self.field.clone(), what: what.into() }
    }

    fn name(&self, text: &str) -> Result<IfName, PolicyError> {
        text.parse().map_err(|error: net_types::IfNameError| self.error(error.to_string()))
    }

    /// No interface is a bridge twice, a port twice, or both.
    fn once(&self, name: &IfName, taken: &mut BTreeSet<IfName>) -> Result<(), PolicyError> {
        if taken.insert(name.clone()) {
            return Ok(());
        }
        Err(self.error(format!("is {name}, which stands in the policy before; allowed: once")))
    }

    fn vlan(&self, id: u16) -> Result<VlanId, PolicyError> {
        VlanId::try_from(id).map_err(|error| self.error(error.to_string()))
    }
}

fn bridge(interface: Interface, place: &Place<'_>) -> Result<(Wanted, Bridge), PolicyError> {
    let Interface { name, kind: Kind::LinuxBridge, state, _description, mtu, ipv4, ipv6, bridge } = interface;
    for (field, addresses) in [("ipv4", ipv4), ("ipv6", ipv6)] {
        if addresses.is_some_and(|addresses| addresses.enabled) {
            return Err(place.below(field).error("is enabled; allowed: enabled: false"));
        }
    }
    let RawBridge { options: Options { stp: Stp { enabled: stp } }, port } = bridge;
    let ports = port.into_iter().enumerate().map(|(index, RawPort { name, vlan })| {
        let place = place.below(&format!("bridge.port[{index}]"));
        Ok::<_, PolicyError>(Port {
            name: place.below("name").name(&name)?,
            vlans: vlans(vlan, &place.below("vlan"))?,
        })
    });
    let mtu_out_of_range = mtu.filter(|mtu| !MTU.contains(mtu));
    if let Some(mtu) = mtu_out_of_range {
        return Err(place.below("mtu").error(format!("is {mtu}; allowed: {} to {}", MTU.start(), MTU.end())));
    }
    let bridge =
        Bridge { name: place.below("name").name(&name)?, mtu, stp, ports: ports.collect::<Result<_, _>>()? };
    Ok((state, bridge))
}

/// Without a word on VLANs a port is a trunk for all of them, with VLAN 1 untagged, as kubernetes-nmstate has it. An
/// empty `vlan` leaves the port alone.
fn vlans(vlan: Option<RawVlan>, place: &Place<'_>) -> Result<Option<Vlans>, PolicyError> {
    let Some(RawVlan { mode, tag, enable_native, trunk_tags }) = vlan else {
        let all = VlanRange { first: place.vlan(2)?, last: VlanId::MAX };
        return Ok(Some(Vlans::from_list(vec![PortVlan::access(VlanId::DEFAULT), PortVlan::tagged(all)])));
    };
    let native = || {
        let tag = tag.ok_or_else(|| place.below("tag").error("is missing"))?;
        Ok::<_, PolicyError>(PortVlan::access(place.below("tag").vlan(tag)?))
    };
    match mode {
        None if tag.is_none() && !enable_native && trunk_tags.is_empty() => Ok(None),
        None => Err(place.below("mode").error("is missing; allowed: access, trunk")),
        Some(Mode::Access) if !trunk_tags.is_empty() || enable_native => {
            Err(place.below("mode").error("is access next to trunk-tags or enable-native; allowed: with tag"))
        }
        Some(Mode::Access) => Ok(Some(Vlans::from_list(vec![native()?]))),
        Some(Mode::Trunk) => {
            let mut list =
                trunk_tags.iter().map(|tags| tagged(tags, place)).collect::<Result<Vec<_>, _>>()?;
            match (enable_native, tag) {
                (true, _) => list.push(native()?),
                (false, None) => {}
                (false, Some(_)) => {
                    return Err(place
                        .below("tag")
                        .error("is set in a trunk; allowed: with enable-native: true"));
                }
            }
            Ok(Some(Vlans::from_list(list)))
        }
    }
}

fn tagged(tags: &Tags, place: &Place<'_>) -> Result<PortVlan, PolicyError> {
    let place = place.below("trunk-tags");
    let range = match tags {
        Tags::Id(id) => place.vlan(*id)?.into(),
        Tags::IdRange(Range { min, max }) if min <= max => {
            VlanRange { first: place.vlan(*min)?, last: place.vlan(*max)? }
        }
        Tags::IdRange(Range { min, max }) => {
            return Err(place.error(format!("has the range {min} to {max}; allowed: min up to max")));
        }
    };
    Ok(PortVlan::tagged(range))
}

#[cfg(test)]
mod tests;
