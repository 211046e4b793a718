//! The Kubernetes objects of the protocol, and the fields read of others. Where they live in the API.

use std::borrow::Cow;
use std::collections::BTreeMap;

use net_types::Mac;
use serde::{Deserialize, Serialize};

use super::events::Regarding;
use crate::record::Record;
use crate::review::{pod, vm};

/// Group and version of our custom object.
pub(super) const GROUP_VERSION: &str = "macpool.guestwire.io/v1";
/// The blocks' records.
pub(super) const BLOCKS: &str = "/apis/macpool.guestwire.io/v1/macblocks";
/// VirtualMachines of all namespaces.
pub(super) const VMS: &str = "/apis/kubevirt.io/v1/virtualmachines";
/// VirtualMachineInstances of all namespaces.
pub(super) const VMIS: &str = "/apis/kubevirt.io/v1/virtualmachineinstances";
/// Pods of all namespaces.
pub(super) const PODS: &str = "/api/v1/pods";

/// The leases of a namespace.
pub(super) fn leases(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

/// The label that tells our leases from others.
pub(super) const LEASE_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "macpool");

/// An object's metadata, as far as we write it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    /// Its name.
    pub(super) name: String,
    /// Its namespace; empty for cluster-scoped ones.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    /// The version that was read; empty in a new object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) resource_version: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, String>,
}

/// A `MacBlock`: the record of one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MacBlock {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// Name: the block. Version: what swaps compare.
    pub(super) metadata: Meta,
    /// The record.
    pub(super) spec: Record,
}

impl MacBlock {
    /// The object to write.
    pub(super) fn new(name: String, version: Option<&str>, record: Record) -> Self {
        Self {
            api_version: GROUP_VERSION.to_owned(),
            kind: "MacBlock".to_owned(),
            metadata: Meta {
                name,
                resource_version: version.unwrap_or_default().to_owned(),
                ..Meta::default()
            },
            spec: record,
        }
    }
}

/// A `Lease` (coordination.k8s.io/v1): the life of one identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lease {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    /// Name: the identity.
    pub(super) metadata: Meta,
    /// What it says.
    pub(super) spec: LeaseSpec,
}

/// For people and dashboards; the protocol looks at the object's version only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LeaseSpec {
    /// The identity again.
    #[serde(default)]
    pub(super) holder_identity: String,
    /// Seconds.
    #[serde(default)]
    pub(super) lease_duration_seconds: u32,
    /// When it was last renewed, RFC 3339 with microseconds.
    #[serde(default)]
    pub(super) renew_time: String,
}

impl Lease {
    /// The object to write.
    pub(super) fn new(metadata: Meta, spec: LeaseSpec) -> Self {
        Self { api_version: "coordination.k8s.io/v1".to_owned(), kind: "Lease".to_owned(), metadata, spec }
    }
}

/// The metadata of any object, borrowed from a list or a watch.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct AnyMeta<'a> {
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) resource_version: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) uid: Cow<'a, str>,
}

impl AnyMeta<'_> {
    /// The VirtualMachine with this metadata, for an event.
    pub(super) fn virtual_machine(&self) -> Regarding {
        Regarding {
            api_version: "kubevirt.io/v1",
            kind: "VirtualMachine",
            namespace: self.namespace.clone().into_owned(),
            name: self.name.clone().into_owned(),
            uid: self.uid.clone().into_owned(),
        }
    }

    /// `namespace/name`.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// An object of which only its name counts.
#[derive(Debug, Deserialize)]
pub(super) struct Named<'a> {
    /// Its metadata.
    #[serde(borrow, default)]
    pub(super) metadata: AnyMeta<'a>,
}

#[derive(Deserialize)]
struct Instance<'a> {
    #[serde(borrow, default)]
    spec: vm::InstanceSpec<'a>,
    #[serde(borrow, default)]
    status: InstanceStatus<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct InstanceStatus<'a> {
    #[serde(borrow)]
    phase: Cow<'a, str>,
}

/// Reads the addresses of a VirtualMachine.
pub(super) fn vm_macs(json: &[u8]) -> Result<Vec<Mac>, serde_json::Error> {
    Ok(serde_json::from_slice::<vm::Vm<'_>>(json)?.macs())
}

/// Reads the addresses of a VirtualMachineInstance: none once its guest has ended.
pub(super) fn vmi_macs(json: &[u8]) -> Result<Vec<Mac>, serde_json::Error> {
    let instance: Instance<'_> = serde_json::from_slice(json)?;
    let ended = matches!(&*instance.status.phase, "Succeeded" | "Failed");
    Ok(if ended { Vec::new() } else { instance.spec.macs() })
}

/// Reads the addresses of a pod: none of a VM's, which are the VM's own.
pub(super) fn pod_macs(json: &[u8]) -> Result<Vec<Mac>, serde_json::Error> {
    let pod: pod::Pod<'_> = serde_json::from_slice(json)?;
    Ok(pod.macs())
}
