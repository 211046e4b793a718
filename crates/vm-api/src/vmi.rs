//! The `VirtualMachineInstance` object as far as its status goes.
//!
//! Field names and meanings are KubeVirt's (`kubevirt.io/v1`, `staging/src/kubevirt.io/api/core/v1/types.go`), so
//! that one reader serves objects written by our supervisor and by KubeVirt. Fields not listed are ignored.

use std::collections::BTreeMap;

use net_types::Mac;
use serde::{Deserialize, Serialize};

/// A `VirtualMachineInstance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vmi {
    /// Always `kubevirt.io/v1` when we write it.
    pub api_version: String,
    /// Always `VirtualMachineInstance` when we write it.
    pub kind: String,
    /// Who it is.
    pub metadata: Metadata,
    /// What was asked for, as far as readers need it.
    #[serde(default)]
    pub spec: Spec,
    /// What was observed.
    #[serde(default)]
    pub status: Status,
}

/// The part of Kubernetes' `ObjectMeta` used here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The VM's name.
    pub name: String,
    /// Its namespace.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Differs between two VMs that had one name after each other.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Labels, as given in the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, as given in the manifest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

/// Which networks the VM has: all of a VMI's `spec` that a reader of its status needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spec {
    /// `spec.networks`, joined with `status.interfaces` by name.
    #[serde(default)]
    pub networks: Vec<Network>,
}

/// One of a VM's networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The name that interfaces refer to.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub source: NetworkSource,
}

/// What a network is. Exactly one is set in a valid object; a network with none is KubeVirt's error to report.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkSource {
    /// The pod network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodNetwork>,
    /// A NetworkAttachmentDefinition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multus: Option<MultusNetwork>,
}

/// `pod: {}` with its two options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodNetwork {
    /// The guest's private IPv4 subnet.
    #[serde(default, rename = "vmNetworkCIDR", skip_serializing_if = "Option::is_none")]
    pub vm_network_cidr: Option<String>,
    /// The guest's private IPv6 subnet.
    #[serde(default, rename = "vmIPv6NetworkCIDR", skip_serializing_if = "Option::is_none")]
    pub vm_ipv6_network_cidr: Option<String>,
}

/// `multus: {networkName: …}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MultusNetwork {
    /// `<namespace>/<name>`, or `<name>` in the VM's own namespace.
    pub network_name: String,
    /// True if this network replaces the pod network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
}

/// `status` of a VMI.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where the VM is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Why it is there, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Conditions, such as `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// One entry per NIC.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
}

/// The life of a VMI, in KubeVirt's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// Known, nothing done.
    #[default]
    Pending,
    /// Networks and disks are being prepared.
    Scheduling,
    /// The VMM has everything and is about to start.
    Scheduled,
    /// The guest's vCPUs run.
    Running,
    /// The guest shut itself down, or was asked to.
    Succeeded,
    /// The VMM ended in any other way.
    Failed,
    /// A phase this release does not know.
    #[serde(other)]
    Unknown,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// One NIC as observed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// The network's name in the spec; empty for a NIC that only the guest knows of.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The guest's Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// First of `ip_addresses`.
    #[serde(default, skip_serializing_if = "String::is_empty", rename = "ipAddress")]
    pub ip_address: String,
    /// All addresses. May carry a prefix length, which readers strip; text, because guests report what they like.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "ipAddresses")]
    pub ip_addresses: Vec<String>,
    /// The NIC's name inside the guest, known only from an agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface_name: String,
    /// The NIC's name in the pod's network namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod_interface_name: String,
    /// Where this is known from, joined by `", "`: `domain`, `guest-agent`, `multus-status`, `wire`, and `pod` for the
    /// addresses of the pod's own interface, which a masqueraded guest is reached by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub info_source: String,
    /// Queue pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_count: Option<u32>,
    /// `up` or `down`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub link_state: String,
}
