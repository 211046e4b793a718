//! A manifest as it is written: the honoured fields only, nothing checked but the JSON types.
//!
//! [`super::check`] turns these into a [`super::VmSpec`]. Fields left out here are the business of
//! [`super::fields`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::vmi::Network;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub(super) metadata: Metadata,
    pub(super) spec: MachineSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct MachineSpec {
    pub(super) running: Option<bool>,
    pub(super) run_strategy: Option<String>,
    pub(super) template: Option<Instance>,
}

/// A `VirtualMachineInstance`, or the template of a `VirtualMachine`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Instance {
    pub(super) metadata: Metadata,
    pub(super) spec: InstanceSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct InstanceSpec {
    pub(super) hostname: Option<String>,
    pub(super) termination_grace_period_seconds: Option<i64>,
    pub(super) domain: Domain,
    pub(super) networks: Vec<Network>,
    pub(super) volumes: Vec<Volume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Domain {
    pub(super) cpu: Cpu,
    pub(super) memory: Memory,
    pub(super) resources: Resources,
    pub(super) firmware: Firmware,
    pub(super) devices: Devices,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cpu {
    pub(super) cores: Option<u32>,
    pub(super) sockets: Option<u32>,
    pub(super) threads: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    pub(super) guest: Option<Quantity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    pub(super) requests: ResourceList,
    pub(super) limits: ResourceList,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ResourceList {
    pub(super) memory: Option<Quantity>,
}

/// Kubernetes takes quantities as text and as plain numbers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Quantity {
    Number(serde_json::Number),
    Text(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Firmware {
    pub(super) kernel_boot: Option<KernelBoot>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct KernelBoot {
    pub(super) container: Option<KernelContainer>,
    pub(super) kernel_args: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct KernelContainer {
    pub(super) image: String,
    pub(super) kernel_path: Option<String>,
    pub(super) initrd_path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Devices {
    pub(super) disks: Vec<Disk>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) autoattach_pod_interface: Option<bool>,
    pub(super) network_interface_multiqueue: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) serial: Option<String>,
    pub(super) disk: DiskTarget,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DiskTarget {
    pub(super) bus: Option<String>,
    pub(super) readonly: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) bridge: Option<Value>,
    pub(super) masquerade: Option<Value>,
    pub(super) sriov: Option<Value>,
    pub(super) binding: Option<PluginBinding>,
    pub(super) pci_address: Option<String>,
    pub(super) mac_address: Option<String>,
    pub(super) model: Option<String>,
    pub(super) state: Option<String>,
    pub(super) ports: Vec<Port>,
    pub(super) port_ranges: Vec<PortRange>,
    pub(super) dhcp_options: DhcpOptions,
}

/// KubeVirt's `PluginBinding`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PluginBinding {
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) port: i64,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PortRange {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct DhcpOptions {
    pub(super) boot_file_name: Option<String>,
    pub(super) tftp_server_name: Option<String>,
    pub(super) ntp_servers: Vec<String>,
    pub(super) private_options: Vec<PrivateOption>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PrivateOption {
    pub(super) option: i64,
    pub(super) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) cloud_init_no_cloud: Option<CloudInit>,
    pub(super) container_disk: Option<ContainerDisk>,
    pub(super) host_disk: Option<HostDisk>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct CloudInit {
    pub(super) user_data: Option<String>,
    pub(super) user_data_base64: Option<String>,
    pub(super) network_data: Option<String>,
    pub(super) network_data_base64: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerDisk {
    pub(super) image: String,
    pub(super) path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HostDisk {
    pub(super) path: String,
    pub(super) r#type: Option<String>,
}
