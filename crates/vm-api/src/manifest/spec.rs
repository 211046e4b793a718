//! A VM that has been checked: every value allowed, every reference resolved within the manifest.
//!
//! What only the node can tell (does this image, disk or network exist?) is checked by the launcher.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use net_types::{Mac, PciAddress};
use serde::{Deserialize, Serialize};

use crate::nad::NadName;

/// Everything needed to build and run one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Its name: a DNS subdomain.
    pub name: String,
    /// Its namespace: a DNS label.
    pub namespace: String,
    /// Labels of the instance.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the instance.
    pub annotations: BTreeMap<String, String>,
    /// When it is started and restarted.
    pub run_strategy: RunStrategy,
    /// What cloud-init makes the guest's hostname.
    pub hostname: String,
    /// From the power button to the end: 0 s to a day.
    pub grace_period: Duration,
    /// vCPUs, 1 to 254.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u64,
    /// The kernel to boot, when the manifest names one.
    pub kernel: Option<KernelImage>,
    /// Appended to the kernel's command line; may be empty.
    pub kernel_args: String,
    /// Disks in the guest's order.
    pub disks: Vec<Disk>,
    /// NICs in the guest's order.
    pub nics: Vec<Nic>,
    /// Whether a virtio NIC has as many queue pairs as there are vCPUs, and not one.
    pub multiqueue: bool,
}

/// When a VM is started and restarted (KubeVirt's run strategies).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunStrategy {
    /// It always runs: started again however it ended.
    Always,
    /// Started again when it failed, not when the guest shut down.
    RerunOnFailure,
    /// Started and stopped by people only.
    Manual,
    /// It must not run.
    Halted,
    /// Started once, never again.
    Once,
}

/// A kernel inside an unpacked image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// The image.
    pub image: ImageRef,
    /// The kernel's path in it.
    pub kernel: String,
    /// The initrd's path in it.
    pub initrd: Option<String>,
}

/// An image reference that is also a relative path of plain names: `registry.example/debian:12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef(pub(super) String);

impl ImageRef {
    /// The reference, which is the path of the unpacked image below the images' directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The volume's name.
    pub name: String,
    /// What the guest reads as the disk's serial number: at most 20 bytes of printable ASCII.
    pub serial: Option<String>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Where its contents come from.
    pub source: DiskSource,
}

/// Where a disk's contents come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A NoCloud seed, made for this VM.
    Seed(Seed),
    /// A disk inside an unpacked image; what the guest writes is thrown away.
    ContainerDisk {
        /// The image.
        image: ImageRef,
        /// The disk's path in it; the only file in `/disk` if absent.
        path: Option<String>,
    },
    /// A raw image or block device of the node.
    HostDisk {
        /// Absolute.
        path: PathBuf,
    },
}

/// What goes on a NoCloud seed disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seed {
    /// `user-data`: cloud-config, a script, a MIME archive, possibly compressed.
    pub user_data: Option<Vec<u8>>,
    /// `network-config`.
    pub network_data: Option<Vec<u8>>,
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The network's name, unique in the VM.
    pub name: String,
    /// The guest's address, if the manifest fixes it.
    pub mac: Option<Mac>,
    /// Which network it is on, and how.
    pub binding: Binding,
    /// Where the guest finds it: segment 0, bus 0, function 0, and a device from 1 on.
    pub pci_address: Option<PciAddress>,
    /// What DHCPv4 tells the guest besides its addresses, where it tells it these.
    pub dhcp: DhcpOptions,
}

/// How a NIC is joined to its network. Only pairs that make sense can be written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Binding {
    /// `bridge: {}` on a multus network: the guest is on that network's wire.
    Bridge(NadName),
    /// `sriov: {}` on a multus network: the guest has a virtual function of one of the node's NICs.
    Sriov(NadName),
    /// `binding: {name: vhostuser}` on a multus network: a vhost-user backend has the guest's rings.
    VhostUser(NadName),
    /// `masquerade: {}` on the pod network: the guest shares the pod's address by NAT.
    Masquerade(Masquerade),
}

/// What a masqueraded NIC asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// `pod.vmNetworkCIDR`: the guest's private IPv4 subnet, /8 to /30; none leaves it to the plugin.
    pub v4: Option<Ipv4Net>,
    /// `pod.vmIPv6NetworkCIDR`: the guest's private IPv6 subnet, /8 to /126; none leaves it to the plugin.
    pub v6: Option<Ipv6Net>,
    /// `ports` and `portRanges`: what of the pod's ports is the guest's; all of them if there is none.
    pub ports: Vec<PortRange>,
}

/// Ports of one protocol, from `first` to `last`: 1 to 65535, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortRange {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// What has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// `dhcpOptions` of an interface. Texts have 1 to 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DhcpOptions {
    /// `bootFileName` (option 67).
    pub boot_file_name: Option<String>,
    /// `tftpServerName` (option 66).
    pub tftp_server_name: Option<String>,
    /// `ntpServers` (option 42).
    pub ntp_servers: Vec<Ipv4Addr>,
    /// `privateOptions`: codes 224 to 254, each with its value.
    pub private: Vec<(u8, String)>,
}
