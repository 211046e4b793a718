//! `SriovNetworkNodePolicy`, read and checked.
//!
//! Source: the SR-IOV operator's `api/v1/sriovnetworknodepolicy_types.go`, and its webhook for what is allowed.

use std::collections::BTreeMap;

use net_types::{IfName, PciAddress};
use serde::Deserialize;
use serde_json::Value;

use super::node::Nic;

const API_VERSION: &str = "sriovnetwork.openshift.io/v1";
const KIND: &str = "SriovNetworkNodePolicy";
/// Priorities; lower numbers win.
const PRIORITIES: std::ops::RangeInclusive<i64> = 0..=99;
/// MTU that a policy may ask for, in bytes.
const MTU: std::ops::RangeInclusive<i64> = 68..=65535;

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) name: String,
    /// 0 to 99; lower numbers win.
    pub(super) priority: u8,
    pub(super) resource: String,
    pub(super) num_vfs: u32,
    /// In bytes.
    pub(super) mtu: Option<u32>,
    pub(super) device_type: DeviceType,
    pub(super) selector: Selector,
    node_selector: BTreeMap<String, String>,
    /// The PF is somebody else's to change.
    pub(super) externally_managed: bool,
}

/// What is to drive a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceType {
    /// Its network driver.
    Netdevice,
    /// vfio-pci.
    VfioPci,
}

/// Which NICs; all that is given must fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selector {
    /// PCI vendor, four hexadecimal digits.
    vendor: Option<String>,
    /// PCI device, four hexadecimal digits.
    device: Option<String>,
    /// Interfaces of physical functions.
    pub(super) pf_names: Vec<PfName>,
    /// Physical functions.
    root_devices: Vec<PciAddress>,
}

/// `ens1f0`, or some of its VFs: `ens1f0#2-5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PfName {
    pub(super) name: IfName,
    /// First and last VF.
    pub(super) range: Option<(u32, u32)>,
}

/// Why a document is no policy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    /// No YAML.
    #[error(transparent)]
    Yaml(#[from] vm_api::yaml::YamlError),
    /// Nothing in the file.
    #[error("there is no {KIND}")]
    Empty,
    /// Another kind or version.
    #[error("apiVersion {api_version:?}, kind {kind:?}; expected {API_VERSION} {KIND}")]
    Kind {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// A field has the wrong type.
    #[error("{path} cannot be read")]
    Shape {
        /// Which.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A value that cannot be.
    #[error("policy {policy:?}: spec.{field}: {what}")]
    Value {
        /// The policy's name.
        policy: String,
        /// Which.
        field: &'static str,
        /// What is wrong, and what is allowed.
        what: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    api_version: String,
    kind: String,
    metadata: RawMetadata,
    spec: RawSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMetadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    resource_name: String,
    node_selector: BTreeMap<String, String>,
    priority: Option<i64>,
    mtu: Option<i64>,
    num_vfs: Option<i64>,
    nic_selector: RawSelector,
    device_type: Option<String>,
    externally_managed: bool,
    link_type: Option<String>,
    e_switch_mode: Option<String>,
    vdpa_type: Option<String>,
    bridge: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSelector {
    vendor: Option<String>,
    #[serde(rename = "deviceID")]
    device: Option<String>,
    pf_names: Vec<String>,
    root_devices: Vec<String>,
    net_filter: Option<String>,
}

/// The policies of a YAML stream.
pub(super) fn policies(text: &str) -> Result<Vec<Policy>, SpecError> {
    let documents = vm_api::yaml::documents(text)?;
    if documents.is_empty() {
        return Err(SpecError::Empty);
    }
    documents.into_iter().map(policy).collect()
}

fn policy(document: Value) -> Result<Policy, SpecError> {
    let Raw { api_version, kind, metadata, spec } = serde_path_to_error::deserialize(document)
        .map_err(|error| SpecError::Shape { path: error.path().to_string(), source: error.into_inner() })?;
    if api_version != API_VERSION || kind != KIND {
        return Err(SpecError::Kind { api_version, kind });
    }
    let name = metadata.name;
    let wrong = |field, what: String| SpecError::Value { policy: name.clone(), field, what };
    refuse_unsupported(&spec, wrong)?;
    let number = |field, given: i64, allowed: std::ops::RangeInclusive<i64>| {
        let fitting = u32::try_from(given).ok().filter(|_| allowed.contains(&given));
        fitting.ok_or_else(|| {
            wrong(field, format!("is {given}; allowed: {} to {}", allowed.start(), allowed.end()))
        })
    };
    let priority = number("priority", spec.priority.unwrap_or(*PRIORITIES.end()), PRIORITIES)?;
    let num_vfs = spec.num_vfs.ok_or_else(|| wrong("numVfs", "is missing".to_owned()))?;
    let num_vfs = number("numVfs", num_vfs, 0..=i64::from(u16::MAX))?;
    let mtu = spec.mtu.filter(|mtu| *mtu != 0).map(|mtu| number("mtu", mtu, MTU)).transpose()?;
    let device_type = match spec.device_type.as_deref() {
        None | Some("" | "netdevice") => DeviceType::Netdevice,
        Some("vfio-pci") => DeviceType::VfioPci,
        Some(other) => {
            return Err(wrong("deviceType", format!("is {other:?}; allowed: \"netdevice\", \"vfio-pci\"")));
        }
    };
    Ok(Policy {
        selector: selector(spec.nic_selector, num_vfs, wrong)?,
        priority: u8::try_from(priority).unwrap_or(u8::MAX),
        resource: spec.resource_name,
        num_vfs,
        mtu,
        device_type,
        node_selector: spec.node_selector,
        externally_managed: spec.externally_managed,
        name,
    })
}

/// What this release does not do changes what the VFs are, so it is refused, not ignored.
fn refuse_unsupported(
    spec: &RawSpec,
    wrong: impl Fn(&'static str, String) -> SpecError,
) -> Result<(), SpecError> {
    let table = [
        ("linkType", &spec.link_type, &["", "eth", "ETH"][..]),
        ("eSwitchMode", &spec.e_switch_mode, &["", "legacy"]),
        ("vdpaType", &spec.vdpa_type, &[""]),
        ("nicSelector.netFilter", &spec.nic_selector.net_filter, &[""]),
    ];
    for (field, value, supported) in table {
        if let Some(value) = value.as_deref().filter(|value| !supported.contains(value)) {
            return Err(wrong(field, format!("{value:?} is not supported")));
        }
    }
    match &spec.bridge {
        Some(bridge) if *bridge != serde_json::json!({}) && !bridge.is_null() => {
            Err(wrong("bridge", "is not supported".to_owned()))
        }
        _ => Ok(()),
    }
}

fn selector(
    raw: RawSelector,
    num_vfs: u32,
    wrong: impl Fn(&'static str, String) -> SpecError,
) -> Result<Selector, SpecError> {
    let id = |field, id: Option<String>| match id.filter(|id| !id.is_empty()) {
        Some(id) if id.len() == 4 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(Some(id.to_ascii_lowercase()))
        }
        Some(id) => Err(wrong(field, format!("is {id:?}; allowed: four hexadecimal digits"))),
        None => Ok(None),
    };
    let pf_name = |text: &String| {
        pf_name(text, num_vfs).map_err(|what| wrong("nicSelector.pfNames", format!("{text:?} {what}")))
    };
    let root_device = |text: &String| {
        text.parse()
            .map_err(|error: net_types::PciAddressError| wrong("nicSelector.rootDevices", error.to_string()))
    };
    let selector = Selector {
        vendor: id("nicSelector.vendor", raw.vendor)?,
        device: id("nicSelector.deviceID", raw.device)?,
        pf_names: raw.pf_names.iter().map(pf_name).collect::<Result<_, _>>()?,
        root_devices: raw.root_devices.iter().map(root_device).collect::<Result<_, _>>()?,
    };
    if selector == Selector::default() {
        return Err(wrong(
            "nicSelector",
            "selects nothing; give vendor, deviceID, pfNames or rootDevices".to_owned(),
        ));
    }
    Ok(selector)
}

fn pf_name(text: &str, num_vfs: u32) -> Result<PfName, String> {
    let (name, range) = match text.split_once('#') {
        None => (text, None),
        Some((name, range)) => {
            let bounds = range
                .split_once('-')
                .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
            let (first, last): (u32, u32) = bounds.ok_or("has no range such as #2-5 after its name")?;
            if first > last || last >= num_vfs {
                return Err(format!("has VFs {first} to {last} of {num_vfs}, counted from 0"));
            }
            (name, Some((first, last)))
        }
    };
    let name =
        name.parse().map_err(|error: net_types::IfNameError| format!("names no interface: {error}"))?;
    Ok(PfName { name, range })
}

impl Policy {
    /// True if it is for a node with `labels`; without any, every policy is.
    pub(super) fn is_for(&self, labels: &[(String, String)]) -> bool {
        let has = |(key, value): (&String, &String)| labels.iter().any(|(k, v)| k == key && v == value);
        labels.is_empty() || self.node_selector.iter().all(has)
    }
}

impl Selector {
    /// True if `nic` is meant.
    pub(super) fn selects(&self, nic: &Nic) -> bool {
        let Self { vendor, device, pf_names, root_devices } = self;
        vendor.as_ref().is_none_or(|vendor| *vendor == nic.vendor)
            && device.as_ref().is_none_or(|device| *device == nic.device)
            && (pf_names.is_empty() || pf_names.iter().any(|pf| Some(&pf.name) == nic.link.as_ref()))
            && (root_devices.is_empty() || root_devices.contains(&nic.address))
    }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
pub(super) mod tests;
