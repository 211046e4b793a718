//! What can go wrong with a VF, and the code each has in the protocol (`docs/errors.md`).

use std::path::PathBuf;

use cni::Code;
use cni::device_info::DeviceInfoError;
use net_types::{IfName, Mac, PciAddress};
use netns::NetNsError;

use crate::attribute::AttributeError;
use crate::journal::{JournalError, Owner};
use crate::sysfs::SysfsError;

/// Why a VF could not be handed over, checked or taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SriovError {
    /// ADD was not told which VF.
    #[error("deviceID is missing")]
    NoDevice,
    /// The PCI function is not one to hand over.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// A driver that is neither for networks nor for virtual machines, or whose interface is not to be seen.
    #[error("virtual function {address} has driver {driver:?} and no network interface on the host")]
    NoLink {
        /// The VF.
        address: PciAddress,
        /// What drives it.
        driver: String,
    },
    /// Another attachment has it.
    #[error("virtual function {address} belongs to {owner}")]
    InUse {
        /// The VF.
        address: PciAddress,
        /// Who has it.
        owner: Owner,
    },
    /// The address would be there twice.
    #[error("address {mac} is that of {holder} already")]
    MacInUse {
        /// The address.
        mac: Mac,
        /// Who has it.
        holder: String,
    },
    /// An attribute is not as wanted.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// The VF's own driver did not take the address.
    #[error("interface {link} has address {found} and does not take {wanted}")]
    MacNotTaken {
        /// The VF's interface.
        link: String,
        /// The address it was to have.
        wanted: Mac,
        /// The one it has.
        found: Mac,
    },
    /// The container's namespace is not there.
    #[error("the container's network namespace cannot be used")]
    Netns(#[source] NetNsError),
    /// CNI_NETNS is missing where it is needed.
    #[error("CNI_NETNS is not set")]
    NoNetns,
    /// The container has an interface of that name.
    #[error("the container has an interface {if_name} already ({})", netns.display())]
    InterfaceExists {
        /// Its name.
        if_name: IfName,
        /// Where.
        netns: PathBuf,
    },
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The VF's interface is nowhere.
    #[error("the interface of virtual function {0} is in no network namespace that has a name")]
    Lost(PciAddress),
    /// An interface vanished meanwhile.
    #[error("interface {0} vanished while it was being set up")]
    Vanished(IfName),
    /// The device-info file.
    #[error(transparent)]
    DeviceInfo(#[from] DeviceInfoError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The IPAM plugin's answer.
    #[error("{0}")]
    Ipam(cni::Error),
    /// CHECK found a difference.
    #[error("{what} is {found}, expected {expected}")]
    Differs {
        /// Of what.
        what: String,
        /// What it is.
        found: String,
        /// What ADD made it.
        expected: String,
    },
    /// STATUS: nothing to hand over.
    #[error("this node has no virtual functions")]
    NoVirtualFunctions,
    /// Several failures of one clean-up.
    #[error("{count} steps failed, the first because: {first}")]
    Several {
        /// How many.
        count: usize,
        /// The first.
        first: Box<SriovError>,
    },
}

impl SriovError {
    /// All of `failures` as one.
    pub(crate) fn all(failures: Vec<Self>) -> Result<(), Self> {
        let count = failures.len();
        match failures.into_iter().next() {
            None => Ok(()),
            Some(only) if count == 1 => Err(only),
            Some(first) => Err(Self::Several { count, first: Box::new(first) }),
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoDevice => Code::InvalidConfig,
            Self::NoNetns => Code::InvalidEnvironment,
            Self::Netns(_) => Code::UnknownContainer,
            Self::Vanished(_) => Code::TryAgainLater,
            Self::InterfaceExists { .. } => Code::INTERFACE_EXISTS,
            Self::Netlink(_) | Self::Attribute(AttributeError::Netlink(_)) => Code::KERNEL_REFUSED,
            Self::Differs { .. } => Code::DIFFERS,
            Self::Sysfs(SysfsError::Absent(_)) => Code::Plugin(120),
            Self::Sysfs(SysfsError::Physical(_) | SysfsError::NotVirtual(_)) => Code::Plugin(121),
            Self::Sysfs(SysfsError::NoDriver(_) | SysfsError::NoPfLink(_)) | Self::NoLink { .. } => {
                Code::Plugin(122)
            }
            Self::Sysfs(SysfsError::Read { .. } | SysfsError::Write { .. }) => Code::Io,
            Self::InUse { .. } => Code::Plugin(123),
            Self::MacInUse { .. } => Code::Plugin(124),
            Self::Attribute(_) | Self::MacNotTaken { .. } => Code::Plugin(125),
            Self::DeviceInfo(_) => Code::Plugin(126),
            Self::Journal(JournalError::Io { .. }) => Code::Io,
            Self::Journal(_) => Code::Plugin(127),
            Self::Lost(_) => Code::Plugin(128),
            Self::Ipam(error) => error.code,
            Self::NoVirtualFunctions => Code::NotAvailable,
            Self::Several { first, .. } => first.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoDevice => Some("Multus fills it in from the network's resourceName annotation".to_owned()),
            Self::Sysfs(SysfsError::NoDriver(address)) => Some(format!(
                "have the kernel bind one: echo {address} > /sys/bus/pci/drivers_probe (vfio-pci: write it to the \
                 device's driver_override first)"
            )),
            Self::Sysfs(SysfsError::NoPfLink(_)) => {
                Some("the physical function needs its network driver, and its interface in the host".to_owned())
            }
            Self::NoLink { .. } => Some(
                "its interface may be in another network namespace; else it needs a network driver, or vfio-pci"
                    .to_owned(),
            ),
            Self::InUse { .. } => Some("it becomes free with that attachment's DEL, or by GC".to_owned()),
            Self::Journal(JournalError::Corrupt { .. }) => Some(
                "what the VF was like before is lost: compare it with its siblings (sriov status), then try again"
                    .to_owned(),
            ),
            Self::NoVirtualFunctions => {
                Some("make some: sriov policy apply, or write their number to sriov_numvfs of the physical function".to_owned())
            }
            _ => None,
        }
    }
}

impl From<SriovError> for cni::Error {
    fn from(error: SriovError) -> Self {
        if let SriovError::Ipam(error) = error {
            return error;
        }
        let answer = Self::from_error(error.code(), &error);
        match (error.hint(), answer.details.is_empty()) {
            (None, _) => answer,
            (Some(hint), true) => answer.details(hint),
            (Some(hint), false) => {
                let details = format!("{}; {hint}", answer.details);
                answer.details(details)
            }
        }
    }
}
