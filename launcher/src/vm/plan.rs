//! What it takes to run a VM on this node: everything found and checked, nothing touched.
//!
//! Made by `up` from a checked manifest ([`Plan::new`]), kept in the VM's record, followed by the supervisor at
//! every start.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::runtime::NetworkConfigList;
use net_types::{Mac, PciAddress};
use serde::{Deserialize, Serialize};
use vm_api::manifest::{self, Binding, DhcpOptions, DiskSource, RunStrategy, Seed, VmSpec};

use super::binding;
use super::devices::{DevicePools, DevicesError};
use super::images::{ImageError, Located};
use super::layout::VmId;
use super::networks::{Networks, NetworksError};
use crate::control::{DiskSerial, MemorySize, PciSlot, QueuePairs, ValueError, VcpuCount};
use crate::expected;

/// Most disks and NICs together: the slots of a PCI bus less what the VMM needs itself.
const MAX_DEVICES: usize = 28;
/// Most queue pairs of all NICs: each costs a thread and half a dozen descriptors.
const MAX_PAIRS: usize = 1024;
/// The guest's console is its first serial port; a guest that panics is started again. (kernelArgs come later, so
/// `loglevel=7` brings the kernel's boot messages back.)
const COMMAND_LINE: &str = "console=ttyS0 panic=1 quiet";

/// A VM, ready to be set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    pub(crate) id: VmId,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) hostname: String,
    pub(crate) run_strategy: RunStrategy,
    pub(crate) grace_seconds: u64,
    pub(crate) vcpus: VcpuCount,
    pub(crate) memory: MemorySize,
    pub(crate) command_line: String,
    pub(crate) kernel: Located,
    pub(crate) initrd: Option<Located>,
    pub(crate) disks: Vec<PlannedDisk>,
    pub(crate) nics: Vec<PlannedNic>,
    /// The node's name resolution, for guests whose network has none of its own.
    pub(crate) resolv_conf: PathBuf,
    /// Contents of the seed disk; taken by the set-up, not recorded.
    #[serde(skip)]
    pub(crate) seed: Option<Seed>,
}

/// One disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlannedDisk {
    pub(crate) name: String,
    pub(crate) serial: DiskSerial,
    pub(crate) read_only: bool,
    pub(crate) backing: Backing,
}

/// Where a disk's contents are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Backing {
    /// The seed made for this VM.
    Seed,
    /// A copy of this file, made anew for every instance of the VM.
    CopyOf(Located),
    /// This file itself.
    File(Located),
}

/// One NIC.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlannedNic {
    pub(crate) name: String,
    /// On which network, and how.
    pub(crate) binding: Binding,
    /// The network's chain, without the binding's plugin.
    pub(crate) network: NetworkConfigList,
    /// The manifest's address.
    pub(crate) mac: Option<Mac>,
    /// PCI functions of the node, one of which the guest gets; none unless the binding is `sriov`.
    #[serde(default)]
    pub(crate) devices: Vec<PciAddress>,
    /// Where the guest finds it.
    #[serde(default)]
    pub(crate) slot: Option<PciSlot>,
    /// How many queue pairs a virtio NIC has.
    #[serde(default)]
    pub(crate) pairs: QueuePairs,
    /// Addresses that cloud-init configures on it: worth asking the guest about.
    pub(crate) expected: Vec<IpAddr>,
    /// What DHCPv4 tells besides the addresses.
    #[serde(default)]
    pub(crate) dhcp: DhcpOptions,
}

/// Where things are on this node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub(crate) networks: &'a Networks,
    /// PCI functions that guests may have.
    pub(crate) devices: &'a DevicePools,
    /// What `pod: {}` means.
    pub(crate) pod_network: &'a NetworkConfigList,
    /// The node's name resolution.
    pub(crate) resolv_conf: &'a Path,
    pub(crate) images: Option<&'a Path>,
    /// For a VM whose manifest names no kernel.
    pub(crate) kernel: Option<&'a Path>,
    /// Goes with `kernel`.
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) plugin_path: &'a [PathBuf],
}

/// Why a VM cannot run on this node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Nothing to boot.
    #[error(
        "there is no kernel: the manifest has no firmware.kernelBoot.container, and --kernel is not given"
    )]
    NoKernel,
    /// A kernel, an initrd or a disk.
    #[error("{what}")]
    File {
        /// What it should be.
        what: String,
        /// What is wrong with it.
        source: ImageError,
    },
    /// A network.
    #[error("interface {interface}")]
    Network {
        /// Whose.
        interface: String,
        /// What is wrong.
        source: NetworksError,
    },
    /// A device of the node.
    #[error("interface {interface}")]
    Devices {
        /// Whose.
        interface: String,
        /// What is wrong.
        source: DevicesError,
    },
    /// A plugin that is not installed.
    #[error(
        "interface {interface}: network {network} needs CNI plugin {plugin}, which is not in {}",
        join(path)
    )]
    Plugin {
        /// Whose.
        interface: String,
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        path: Vec<PathBuf>,
    },
    /// A network without a vhost-user backend.
    #[error(
        "interface {interface}: the binding vhostuser needs a network whose last plugin is {}; {network} has another",
        binding::VHOST_USER
    )]
    NoVhostUser {
        /// Whose.
        interface: String,
        /// The network.
        network: String,
    },
    /// Two NICs on one CNI network name would be one attachment.
    #[error("{disks} disks and {nics} NICs; at most {MAX_DEVICES} together are supported")]
    TooManyDevices {
        /// How many disks.
        disks: usize,
        /// How many NICs.
        nics: usize,
    },
    /// More queues than a VMM is to serve.
    #[error(
        "networkInterfaceMultiqueue: {nics} NICs with {pairs} queue pairs each; at most {MAX_PAIRS} together are supported"
    )]
    TooManyPairs {
        /// How many NICs.
        nics: usize,
        /// How many pairs each.
        pairs: u16,
    },
    /// A number outside what the VMM can do.
    #[error(transparent)]
    Value(#[from] ValueError),
}

fn join(path: &[PathBuf]) -> String {
    path.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
}

impl Plan {
    /// Finds and checks everything `spec` needs.
    pub(crate) fn new(spec: VmSpec, sources: Sources<'_>) -> Result<Self, PlanError> {
        let VmSpec {
            name,
            namespace,
            labels,
            annotations,
            run_strategy,
            hostname,
            grace_period,
            vcpus,
            memory_mib,
            kernel,
            kernel_args,
            disks,
            nics,
            multiqueue,
        } = spec;
        if disks.len() + nics.len() > MAX_DEVICES {
            return Err(PlanError::TooManyDevices { disks: disks.len(), nics: nics.len() });
        }
        let vcpus = vcpus.try_into()?;
        let pairs = if multiqueue { QueuePairs::from(vcpus) } else { QueuePairs::ONE };
        if nics.len() * pairs.count() > MAX_PAIRS {
            return Err(PlanError::TooManyPairs { nics: nics.len(), pairs: pairs.into() });
        }
        let (kernel, initrd) = boot_files(kernel, sources)?;
        let seed = disks.iter().find_map(|disk| match &disk.source {
            DiskSource::Seed(seed) => Some(seed.clone()),
            DiskSource::ContainerDisk { .. } | DiskSource::HostDisk { .. } => None,
        });
        let network_data = seed.as_ref().and_then(|seed| seed.network_data.as_deref());
        let expected = expected::addresses(network_data.unwrap_or_default(), &nics);
        let nics = nics.into_iter().zip(expected);
        Ok(Self {
            id: VmId { namespace, name },
            labels,
            annotations,
            hostname,
            run_strategy,
            grace_seconds: grace_period.as_secs(),
            vcpus,
            memory: (memory_mib << 20).try_into()?,
            command_line: format!("{COMMAND_LINE} {kernel_args}").trim_end().to_owned(),
            kernel,
            initrd,
            disks: disks.into_iter().map(|disk| planned_disk(disk, sources)).collect::<Result<_, _>>()?,
            nics: nics
                .map(|(nic, expected)| planned_nic(nic, expected, pairs, sources))
                .collect::<Result<_, _>>()?,
            resolv_conf: sources.resolv_conf.to_owned(),
            seed,
        })
    }
}

fn boot_files(
    kernel: Option<manifest::KernelImage>,
    sources: Sources<'_>,
) -> Result<(Located, Option<Located>), PlanError> {
    let (kernel, initrd) = match (kernel, sources.kernel) {
        (Some(manifest::KernelImage { image, kernel, initrd }), _) => {
            let in_image = |path: &str, what: &str| {
                Located::in_image(sources.images, &image, path)
                    .map_err(|source| PlanError::File { what: what.to_owned(), source })
            };
            (in_image(&kernel, "kernel")?, initrd.map(|path| in_image(&path, "initrd")).transpose()?)
        }
        (None, Some(kernel)) => (Located::on_node(kernel), sources.initrd.map(Located::on_node)),
        (None, None) => return Err(PlanError::NoKernel),
    };
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| PlanError::File { what, source }
    };
    kernel.check_kernel().map_err(failed("kernel"))?;
    if let Some(initrd) = &initrd {
        initrd.check_initrd().map_err(failed("initrd"))?;
    }
    Ok((kernel, initrd))
}

fn planned_disk(disk: manifest::Disk, sources: Sources<'_>) -> Result<PlannedDisk, PlanError> {
    let manifest::Disk { name, serial, read_only, source } = disk;
    let failed = |source| PlanError::File { what: format!("disk {name}"), source };
    let backing = match source {
        DiskSource::Seed(_) => Backing::Seed,
        DiskSource::ContainerDisk { image, path } => {
            let file = match path {
                Some(path) => Located::in_image(sources.images, &image, &path),
                None => Located::disk_of_image(sources.images, &image),
            };
            let file = file.map_err(failed)?;
            file.check_disk(false).map_err(failed)?;
            if read_only { Backing::File(file) } else { Backing::CopyOf(file) }
        }
        DiskSource::HostDisk { path } => {
            let file = Located::on_node(&path);
            file.check_disk(!read_only).map_err(failed)?;
            Backing::File(file)
        }
    };
    let serial = serial.unwrap_or_default().try_into()?;
    Ok(PlannedDisk { name, serial, read_only, backing })
}

fn planned_nic(
    nic: manifest::Nic,
    expected: Vec<IpAddr>,
    pairs: QueuePairs,
    sources: Sources<'_>,
) -> Result<PlannedNic, PlanError> {
    let manifest::Nic { name, mac, binding, pci_address, dhcp } = nic;
    let (network, label) = match &binding {
        Binding::Bridge(nad) | Binding::Sriov(nad) | Binding::VhostUser(nad) => {
            let found = sources.networks.network(nad);
            (found.map_err(|source| PlanError::Network { interface: name.clone(), source })?, nad.to_string())
        }
        Binding::Masquerade(_) => {
            (sources.pod_network.clone(), format!("{} (pod)", sources.pod_network.name()))
        }
    };
    let kinds = network.plugins().iter().flat_map(|plugin| [Some(plugin.kind()), plugin.ipam()]).flatten();
    let is_missing =
        |kind: &&str| !sources.plugin_path.iter().any(|directory| directory.join(kind).is_file());
    if let Some(plugin) = kinds.chain(binding::plugin(&binding)).find(is_missing) {
        let (plugin, path) = (plugin.to_owned(), sources.plugin_path.to_owned());
        return Err(PlanError::Plugin { interface: name, network: label, plugin, path });
    }
    if matches!(binding, Binding::VhostUser(_)) && binding::vhost_control(&network).is_none() {
        return Err(PlanError::NoVhostUser { interface: name, network: label });
    }
    let devices = match &binding {
        Binding::Sriov(nad) => {
            let resource = sources.networks.resource(nad);
            let devices = sources.devices.of_network(&network, resource);
            devices.map_err(|source| PlanError::Devices { interface: name.clone(), source })?
        }
        Binding::Bridge(_) | Binding::Masquerade(_) | Binding::VhostUser(_) => Vec::new(),
    };
    // A backend's rings are for its network to say; others are made as they are wanted.
    let pairs = match &binding {
        Binding::VhostUser(_) => pairs.min(binding::vhost_queues(&network)),
        Binding::Bridge(_) | Binding::Masquerade(_) | Binding::Sriov(_) => pairs,
    };
    let slot = pci_address.map(|address| PciSlot::try_from(address.device())).transpose()?;
    Ok(PlannedNic { name, binding, network, mac, devices, slot, pairs, expected, dhcp })
}
