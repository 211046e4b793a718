//! Sets a VM up: user slot, record, network namespace, NICs, seed.
//!
//! The caller holds the VM's lock. Each thing is recorded before it is made, so after an error, or a crash at any
//! point, [`super::teardown`] removes all of it; this module undoes nothing itself.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use cni::runtime::{Invocation, NetworkConfigError, NetworkConfigList, Runtime, RuntimeError};
use cni::{Attachment, Code, Success};
use net_types::{IfName, IfNameError, Mac, PciAddress};
use netlink::Netlink;
use netns::{NetNs, NetNsError};
use serde_json::json;
use vm_api::manifest::{Binding, DhcpOptions};

use super::binding;
use super::given::Given;
use super::layout::{Layout, VmDir};
use super::mac::{self, MacStoreError};
use super::node_gateway;
use super::plan::{Plan, PlannedNic};
use super::record::{Record, RecordError, ToGuest, Wired};
use super::resolver;
use super::slot::{self, SlotError};
use crate::control::{Mtu, ValueError};
use crate::file;
use crate::seed::{self, SeedError};

/// How long one plugin may take for one operation.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What `sriov` answers when another attachment has the device (docs/errors.md).
const DEVICE_TAKEN: Code = Code::Plugin(123);

/// Why a VM could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    MacStore(#[from] MacStoreError),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("cannot name the VM to the plugins")]
    Container(#[source] cni::Error),
    #[error("interface {interface}: its chain")]
    Chain { interface: String, source: NetworkConfigError },
    #[error("interface {interface}")]
    Name { interface: String, source: IfNameError },
    #[error("interface {interface}")]
    Attach { interface: String, source: RuntimeError },
    #[error("interface {interface}: others have all of its network's devices: {}", list(devices))]
    NoDevice { interface: String, devices: Vec<PciAddress> },
    #[error("interface {interface}: cannot see what the plugins made")]
    Inspect { interface: String, source: netlink::Error },
    #[error("interface {interface}: the plugins left no {missing} in the VM's namespace")]
    Missing { interface: String, missing: String },
    #[error(
        "interface {interface}: its network's plugins gave it the MAC address {has}, not {asked}; its backend lets a guest use no other"
    )]
    OtherMac { interface: String, asked: Mac, has: Mac },
    #[error(
        "interface {interface}: its network's plugins tell no vhost-user socket; they do from cniVersion 1.1.0 on"
    )]
    NoSocket { interface: String },
    #[error("interface {interface}")]
    Mtu { interface: String, source: ValueError },
    #[error("cannot read {}, which the guest is to resolve names by (--resolv-conf)", path.display())]
    ResolvConf { path: PathBuf, source: io::Error },
}

fn list(devices: &[PciAddress]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Sets `plan` up as a user from `uid_base` on. The VM is then ready for its supervisor.
pub(crate) fn set_up(
    layout: &Layout,
    mut plan: Plan,
    uid_base: u32,
    plugin_path: &[PathBuf],
) -> Result<Record, SetupError> {
    let id = plan.id.clone();
    let directory = layout.vm_dir(&id);
    let slot = slot::take(&layout.slots(), &id.key())?;
    let container = uuid::Uuid::new_v4().to_string().parse().map_err(SetupError::Container)?;
    let seed = plan.seed.take();
    let mut record = Record::new(container, slot, uid_base + slot, plugin_path.to_vec(), plan);
    record.write(&directory)?;
    private(&directory)?;
    if let Some(seed) = seed {
        seed::write(&directory.seed(), &seed, &id.name, &id.namespace, &record.plan.hostname)?;
    }
    let nics: Vec<_> = record.plan.nics.iter().map(manifest_nic).collect();
    let macs = mac::assign(&layout.macs(&id), &nics)?;
    let netns = create_netns(&layout.netns(&id))?;
    for (nic, mac) in record.plan.nics.clone().iter().zip(macs) {
        record.nics.push(attach(layout, &record, &netns, nic, mac)?);
    }
    record.write(&directory)?;
    Ok(record)
}

/// The runtime that attaches a VM's NICs and takes them off again.
fn runtime(layout: &Layout, plugin_path: &[PathBuf]) -> Runtime {
    Runtime { plugin_path: plugin_path.to_vec(), cache: layout.cni_cache(), timeout: PLUGIN_TIMEOUT }
}

/// How the plugins are told which NIC is meant.
fn attachment(layout: &Layout, record: &Record, nic: &PlannedNic) -> Result<Attachment, IfNameError> {
    Ok(Attachment {
        container: record.container.clone(),
        if_name: nic.names()?.pod,
        netns: Some(layout.netns(&record.plan.id)),
    })
}

fn attach(
    layout: &Layout,
    record: &Record,
    netns: &NetNs,
    nic: &PlannedNic,
    mac: Mac,
) -> Result<Wired, SetupError> {
    if matches!(nic.binding, Binding::Sriov(_)) {
        return attach_function(layout, record, nic, mac);
    }
    let interface = || nic.name.clone();
    let named = |source| SetupError::Name { interface: interface(), source };
    let (chain, invocation) = invocation(layout, record, nic, mac)?;
    let pod_interface = invocation.attachment.if_name.clone();
    let runtime = runtime(layout, &record.plugin_path);
    let success = runtime
        .add(&chain, &invocation)
        .map_err(|source| SetupError::Attach { interface: interface(), source })?;
    let tap = nic.names().map_err(named)?.tap;
    let link = Netlink::open_in(netns)
        .and_then(|netlink| netlink.link_by_name(pod_interface.as_str()))
        .map_err(|source| SetupError::Inspect { interface: interface(), source })?
        .ok_or_else(|| SetupError::Missing { interface: interface(), missing: pod_interface.to_string() })?;
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    let mtu = Mtu::try_from(mtu).map_err(|source| SetupError::Mtu { interface: interface(), source })?;
    let to_guest = match binding::vhost_control(&nic.network) {
        Some(control) if matches!(nic.binding, Binding::VhostUser(_)) => {
            own_mac(nic, link.mac)?;
            let socket = socket(&success, &pod_interface)
                .ok_or_else(|| SetupError::NoSocket { interface: interface() })?;
            ToGuest::VhostUser { socket, control, mtu }
        }
        _ if reports(&success, &tap) => ToGuest::Tap { tap, mtu },
        _ => return Err(SetupError::Missing { interface: interface(), missing: tap.to_string() }),
    };
    // A plugin that cannot set a MAC leaves its own, and the network may know no other; a manifest's stands.
    let mac = nic.mac.or(link.mac).unwrap_or(mac);
    let given =
        given(nic, &success).map_err(|source| SetupError::Inspect { interface: interface(), source })?;
    let is_told = matches!(nic.binding, Binding::Masquerade(_)) || !given.is_empty();
    let resolv_conf = if is_told { resolv_conf(&record.plan.resolv_conf, &success)? } else { String::new() };
    Ok(Wired { pod_interface, mac, to_guest, resolv_conf, given })
}

/// What the guest is told that its network gave it.
fn given(nic: &PlannedNic, success: &Success) -> Result<Given, netlink::Error> {
    let given = Given::of(success);
    match &nic.binding {
        Binding::Bridge(_) => {
            if given.is_empty() && nic.dhcp != DhcpOptions::default() {
                tracing::warn!(
                    interface = nic.name,
                    "the guest is not told dhcpOptions: its network gives no address, and is left to its own DHCP server"
                );
            }
            given.with_router(|gateway| node_gateway::link_local(success, gateway))
        }
        Binding::VhostUser(_) => {
            let untold = given.addresses().map(|address| address.to_string()).collect::<Vec<_>>().join(", ");
            if !untold.is_empty() {
                tracing::warn!(
                    interface = nic.name,
                    "the guest is not told {untold}: what it says goes to its backend, past our DHCP server; use networkData"
                );
            }
            Ok(Given::default())
        }
        Binding::Masquerade(_) | Binding::Sriov(_) => Ok(Given::default()),
    }
}

/// The pod interface has the address that the manifest wants, if it wants one.
fn own_mac(nic: &PlannedNic, has: Option<Mac>) -> Result<(), SetupError> {
    match (nic.mac, has) {
        (Some(asked), Some(has)) if asked != has => {
            Err(SetupError::OtherMac { interface: nic.name.clone(), asked, has })
        }
        _ => Ok(()),
    }
}

/// Where a backend listens for the guest, as the plugin at the end of the chain says.
fn socket(success: &Success, pod_interface: &IfName) -> Option<PathBuf> {
    let ours = success
        .interfaces
        .iter()
        .find(|interface| interface.name == pod_interface.as_str() && !interface.socket_path.is_empty())?;
    Some(PathBuf::from(&ours.socket_path))
}

/// What the plugins of `nic` are called with.
fn invocation(
    layout: &Layout,
    record: &Record,
    nic: &PlannedNic,
    mac: Mac,
) -> Result<(NetworkConfigList, Invocation), SetupError> {
    let interface = || nic.name.clone();
    let chain =
        nic.chain(record.owner).map_err(|source| SetupError::Chain { interface: interface(), source })?;
    let attachment = attachment(layout, record, nic)
        .map_err(|source| SetupError::Name { interface: interface(), source })?;
    let invocation = Invocation {
        attachment,
        args: arguments(record, mac),
        capabilities: json!({"mac": mac}).as_object().cloned().unwrap_or_default(),
    };
    Ok((chain, invocation))
}

/// Attaches a PCI function to a NIC that is to have one: the first of its devices that is free.
pub(crate) fn attach_function(
    layout: &Layout,
    record: &Record,
    nic: &PlannedNic,
    mac: Mac,
) -> Result<Wired, SetupError> {
    let (chain, invocation) = invocation(layout, record, nic, mac)?;
    let runtime = runtime(layout, &record.plugin_path);
    let (address, success) = attach_device(&runtime, nic, &chain, &invocation)?;
    let assigned = success.interfaces.first().and_then(|interface| interface.mac.parse().ok());
    Ok(Wired {
        pod_interface: invocation.attachment.if_name,
        mac: assigned.unwrap_or(mac),
        to_guest: ToGuest::Function(address),
        resolv_conf: String::new(),
        given: Given::default(),
    })
}

/// Takes a NIC off. One that is not attached is fine.
pub(crate) fn detach(layout: &Layout, record: &Record, nic: &PlannedNic) -> Result<(), SetupError> {
    let interface = || nic.name.clone();
    let attachment = attachment(layout, record, nic)
        .map_err(|source| SetupError::Name { interface: interface(), source })?;
    runtime(layout, &record.plugin_path)
        .del(nic.network.name(), &attachment)
        .map_err(|source| SetupError::Attach { interface: interface(), source })
}

fn attach_device(
    runtime: &Runtime,
    nic: &PlannedNic,
    chain: &NetworkConfigList,
    invocation: &Invocation,
) -> Result<(PciAddress, Success), SetupError> {
    for device in &nic.devices {
        match runtime.add(&chain.clone().with_device(&device.to_string()), invocation) {
            Ok(success) => return Ok((*device, success)),
            Err(RuntimeError::Plugin { source, .. }) if source.code == DEVICE_TAKEN => {
                tracing::debug!(interface = nic.name, "{device}: {}", source.msg);
            }
            Err(source) => return Err(SetupError::Attach { interface: nic.name.clone(), source }),
        }
    }
    Err(SetupError::NoDevice { interface: nic.name.clone(), devices: nic.devices.clone() })
}

/// The network's name resolution, else the node's from `path`.
fn resolv_conf(path: &Path, success: &Success) -> Result<String, SetupError> {
    match resolver::of_network(&success.dns) {
        Some(text) => Ok(text),
        None => {
            resolver::of_node(path).map_err(|source| SetupError::ResolvConf { path: path.to_owned(), source })
        }
    }
}

fn reports(success: &Success, tap: &IfName) -> bool {
    success.interfaces.iter().any(|interface| interface.name == tap.as_str() && !interface.sandbox.is_empty())
}

/// `CNI_ARGS` as Multus gives them.
fn arguments(record: &Record, mac: Mac) -> Vec<(String, String)> {
    let id = &record.plan.id;
    [
        ("IgnoreUnknown", "1".to_owned()),
        ("K8S_POD_NAMESPACE", id.namespace.clone()),
        ("K8S_POD_NAME", id.name.clone()),
        ("K8S_POD_INFRA_CONTAINER_ID", record.container.to_string()),
        ("MAC", mac.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn manifest_nic(nic: &PlannedNic) -> vm_api::manifest::Nic {
    vm_api::manifest::Nic {
        name: nic.name.clone(),
        mac: nic.mac,
        binding: nic.binding.clone(),
        pci_address: None,
        dhcp: nic.dhcp.clone(),
    }
}

/// The VM's directory holds what its owner wrote into user-data: passwords, keys.
fn private(directory: &VmDir) -> Result<(), SetupError> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.path();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|source| {
        RecordError::Io { operation: "set permissions of", path: path.to_owned(), source }.into()
    })
}

/// Again if its directory was removed just before by a VM that was the last.
fn create_netns(path: &Path) -> Result<NetNs, SetupError> {
    let made = file::in_directory(path, || match NetNs::create(path) {
        Err(NetNsError::Create { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(source),
        other => Ok(other),
    });
    match made {
        Ok(made) => Ok(made?),
        Err(source) => Err(NetNsError::Create { path: path.to_owned(), source }.into()),
    }
}
