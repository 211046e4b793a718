//! What policies select from: the node's NICs that can have virtual functions.

use net_types::{IfName, PciAddress};

use crate::sysfs::{Sysfs, SysfsError};

/// A NIC, that is, a physical function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) address: PciAddress,
    /// PCI vendor, four hexadecimal digits.
    pub(super) vendor: String,
    /// PCI device, four hexadecimal digits.
    pub(super) device: String,
    /// Its interface on the host.
    pub(super) link: Option<IfName>,
    /// How many VFs it can have.
    pub(super) total_vfs: u32,
    /// How many it has.
    pub(super) num_vfs: u32,
}

/// All of them, in order.
pub(super) fn nics(sysfs: &Sysfs) -> Result<Vec<Nic>, SysfsError> {
    sysfs.physical_functions()?.into_iter().map(|address| nic(sysfs, address)).collect()
}

fn nic(sysfs: &Sysfs, address: PciAddress) -> Result<Nic, SysfsError> {
    let text = |name| Ok::<_, SysfsError>(sysfs.attribute(address, name)?.unwrap_or_default());
    let id = |name| Ok::<_, SysfsError>(text(name)?.trim_start_matches("0x").to_owned());
    let link = match sysfs.pf_link(address) {
        Err(SysfsError::NoPfLink(_)) => None,
        other => Some(other?),
    };
    Ok(Nic {
        address,
        vendor: id("vendor")?,
        device: id("device")?,
        link,
        total_vfs: text("sriov_totalvfs")?.parse().unwrap_or_default(),
        num_vfs: text("sriov_numvfs")?.parse().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysfs::tests::{PF, sysfs};

    #[test]
    fn a_nic_is_read_from_sysfs() {
        let (_root, sysfs) = sysfs(3);
        let expected = Nic {
            address: PF.parse().unwrap(),
            vendor: "8086".into(),
            device: "10c9".into(),
            link: "eth0".parse().ok(),
            total_vfs: 7,
            num_vfs: 3,
        };
        assert_eq!(nics(&sysfs).unwrap(), [expected]);
    }
}
