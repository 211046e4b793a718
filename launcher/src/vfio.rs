//! Linux VFIO (`Documentation/driver-api/vfio.rst`): PCI functions as processes can drive them.
//!
//! The supervisor opens functions ([`open`]): it checks that nobody else has a part of their IOMMU groups, and puts
//! the groups into one container, the set of devices that share a view of memory. The VMM gets the descriptors and
//! does the rest without privileges: a [`Container`] that it maps the guest's memory into, and [`Device`]s.
//!
//! The older of the two interfaces, with groups and containers, is used: the newer one, iommufd, is not in every
//! kernel that has it enabled as a module, and offers nothing that is needed here.

mod device;
mod memory_lock;
mod open;
mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use net_types::PciAddress;
use vm_memory::GuestMemoryBackend as _;

pub(crate) use device::{Device, Msix, Region};
pub use memory_lock::LockedMemory;
pub(crate) use memory_lock::{allow as allow_locked_memory, allow_of as allow_locked_memory_of};
pub(crate) use open::check_free;
pub use open::{Opened, OpenedDevice, open};
pub(crate) use sys::{Mapping, REQUESTS_OF_A_VMM};

use crate::vmm::GuestRam;

/// Why a PCI function cannot be handed to a guest.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// No such function, or no IOMMU.
    #[error(
        "PCI device {address} is in no IOMMU group: it does not exist, or the node's IOMMU is off \
         (firmware setting, and intel_iommu=on on the kernel's command line)"
    )]
    NoGroup {
        /// Which.
        address: PciAddress,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another driver has it.
    #[error(
        "PCI device {address} is driven by {driver}; give it to vfio-pci first (sriov policy apply does)"
    )]
    Driver {
        /// Which.
        address: PciAddress,
        /// The driver's name, or "nothing".
        driver: String,
    },
    /// A guest with one of a group's devices could reach the memory of whoever has the others.
    #[error(
        "PCI device {address} shares IOMMU group {group} with {}; only whole groups can be handed to a guest",
        others.join(", ")
    )]
    Foreign {
        /// Which.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The others, each with its driver.
        others: Vec<String>,
    },
    /// A device file cannot be opened.
    #[error("cannot open {}{hint}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The group has a device that is driven by the host.
    #[error("IOMMU group {0} cannot be used: not all of its devices belong to VFIO")]
    NotViable(u32),
    /// An age-old or future kernel.
    #[error("/dev/vfio/vfio answers with API version {found}; version {known} is needed", known = sys::API_VERSION)]
    ApiVersion {
        /// The version.
        found: i32,
    },
    /// An IOMMU of another model.
    #[error("this host's VFIO does not offer the IOMMU model of x86 (type 1, version 2)")]
    NoType1,
    /// A request failed.
    #[error("{operation} failed")]
    Request {
        /// The request's name.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guest memory could not be pinned.
    #[error(transparent)]
    LockedMemory(#[from] LockedMemory),
    /// Not a PCI function, or one without MSI-X.
    #[error("{0}")]
    Unfit(&'static str),
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| VfioError::Request { operation, source }
}

/// The devices that share a view of memory.
#[derive(Debug)]
pub(crate) struct Container(OwnedFd);

impl From<OwnedFd> for Container {
    fn from(container: OwnedFd) -> Self {
        Self(container)
    }
}

impl Container {
    /// Lets the devices reach all of the guest's memory, which is pinned from now on.
    pub(crate) fn map(&self, ram: &GuestRam) -> Result<(), VfioError> {
        for region in ram.iter() {
            sys::map_dma(&self.0, region).map_err(|source| match source.raw_os_error() {
                // The kernel's answer when RLIMIT_MEMLOCK is too low.
                Some(libc::ENOMEM) => LockedMemory::too_little(ram, source).into(),
                _ => failed("VFIO_IOMMU_MAP_DMA")(source),
            })?;
        }
        Ok(())
    }
}
