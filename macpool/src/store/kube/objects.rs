//! The Kubernetes objects of the protocol, and the fields read of others. Where they live in the API.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::events::Regarding;
use crate::index::Sighting;
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
    /// Tells the object from later ones of its name; empty in a new one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) uid: String,
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
    /// The object of this kind of KubeVirt's with this metadata, for an event.
    pub(super) fn regarding(&self, kind: &'static str) -> Regarding {
        Regarding {
            api_version: "kubevirt.io/v1",
            kind,
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
    metadata: AnyMeta<'a>,
    #[serde(borrow, default)]
    spec: vm::InstanceSpec<'a>,
    #[serde(borrow, default)]
    status: InstanceStatus<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct InstanceStatus<'a> {
    #[serde(borrow)]
    phase: Cow<'a, str>,
    #[serde(borrow)]
    migration_state: Option<MigrationState<'a>>,
}

/// A live migration that the instance is the source or the target of.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MigrationState<'a> {
    #[serde(borrow)]
    source_state: Option<MigrationHalf<'a>>,
    #[serde(borrow)]
    target_state: Option<MigrationHalf<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MigrationHalf<'a> {
    // KubeVirt spells it both ways.
    #[serde(borrow, rename = "migrationUID", alias = "migrationUid")]
    uid: Cow<'a, str>,
}

/// Reads the NICs of a VirtualMachine.
pub(super) fn of_vm(json: &[u8]) -> Result<Sighting, serde_json::Error> {
    let vm: vm::Vm<'_> = serde_json::from_slice(json)?;
    Ok(Sighting { nics: vm.nics(vm.namespace()), migrations: Vec::new() })
}

/// Reads the NICs of a VirtualMachineInstance: none once its guest has ended.
pub(super) fn of_vmi(json: &[u8]) -> Result<Sighting, serde_json::Error> {
    let Instance { metadata, spec, status } = serde_json::from_slice(json)?;
    if matches!(&*status.phase, "Succeeded" | "Failed") {
        return Ok(Sighting::default());
    }
    let state = status.migration_state.unwrap_or_default();
    let halves = [state.source_state, state.target_state].into_iter().flatten();
    let uids = halves.map(|half| half.uid).filter(|uid| !uid.is_empty());
    Ok(Sighting { nics: spec.nics(&metadata.namespace), migrations: uids.map(Into::into).collect() })
}

/// Reads the NICs of a pod: none of a VM's, which are the VM's own.
pub(super) fn of_pod(json: &[u8]) -> Result<Sighting, serde_json::Error> {
    let pod: pod::Pod<'_> = serde_json::from_slice(json)?;
    Ok(Sighting { nics: pod.nics(pod.namespace()), migrations: Vec::new() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn instance(status: &Value) -> Sighting {
        let interfaces = json!([{"name": "red", "bridge": {}, "macAddress": "02:00:00:00:00:01"}]);
        let networks = json!([{"name": "red", "multus": {"networkName": "br1"}}]);
        let spec = json!({"domain": {"devices": {"interfaces": interfaces}}, "networks": networks});
        let metadata = json!({"name": "vm", "namespace": "ns"});
        of_vmi(json!({"metadata": metadata, "spec": spec, "status": status}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_instance_has_its_addresses_until_its_guest_has_ended() {
        for phase in ["", "Pending", "Running", "Unknown"] {
            assert_eq!(instance(&json!({"phase": phase})).nics.len(), 1, "{phase:?}");
        }
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(instance(&json!({"phase": phase})), Sighting::default(), "{phase}");
        }
    }

    #[test]
    fn a_migration_is_known_by_its_halves() {
        let state = |source: Value, target: Value| {
            instance(&json!({"migrationState": {"sourceState": source, "targetState": target}})).migrations
        };
        let both = state(json!({"migrationUID": "s"}), json!({"migrationUid": "t"}));
        assert_eq!(both, ["s".into(), "t".into()]);
        assert!(state(json!({"migrationUID": ""}), json!(null)).is_empty(), "two such are not one");
    }
}
