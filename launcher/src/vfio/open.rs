//! Opening functions for a VMM: the supervisor's part, which needs privileges.
//!
//! A group is the smallest set of devices that the IOMMU can keep apart. One that also has a device which is not this
//! VM's is refused, though VFIO would take it as long as that device is VFIO's too: whoever has it could reach this
//! guest's memory, and this guest theirs. Bridges are nobody's.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use net_types::PciAddress;

use super::{VfioError, failed, sys};

/// The class of PCI-to-PCI and other bridges (PCI Code and ID Assignment, 1.7), as sysfs writes it.
const BRIDGE_CLASS: &str = "0x06";

/// Functions that are ready for a VMM.
#[derive(Debug)]
pub struct Opened {
    /// What they share.
    pub container: OwnedFd,
    /// One each, in the order asked for.
    pub devices: Vec<OpenedDevice>,
}

/// One of them.
#[derive(Debug)]
pub struct OpenedDevice {
    /// Its group, for KVM.
    pub group: OwnedFd,
    /// Itself.
    pub device: OwnedFd,
}

/// Opens `addresses`, of which there is at least one, for one guest. Needs the right to open `/dev/vfio/*`.
///
/// # Errors
/// A device is absent, has another driver, or shares its group with a device that is not among `addresses`; or the
/// kernel refuses something.
pub fn open(addresses: &[PciAddress]) -> Result<Opened, VfioError> {
    let sysfs = Path::new("/sys");
    // All of it is checked before anything is opened.
    let groups = addresses
        .iter()
        .map(|address| own_group(sysfs, *address, addresses))
        .collect::<Result<Vec<_>, _>>()?;
    let container = open_file(Path::new("/dev/vfio/vfio").to_owned())?;
    let found = sys::api_version(&container).map_err(failed("VFIO_GET_API_VERSION"))?;
    if found != sys::API_VERSION {
        return Err(VfioError::ApiVersion { found });
    }
    if !sys::has_extension(&container, sys::TYPE1V2_IOMMU).map_err(failed("VFIO_CHECK_EXTENSION"))? {
        return Err(VfioError::NoType1);
    }
    let mut opened: BTreeMap<u32, OwnedFd> = BTreeMap::new();
    for number in &groups {
        if !opened.contains_key(number) {
            let is_first = opened.is_empty();
            let group = join(*number, &container)?;
            if is_first {
                // Only a container with a group in it has an IOMMU.
                sys::set_iommu(&container, sys::TYPE1V2_IOMMU).map_err(failed("VFIO_SET_IOMMU"))?;
            }
            opened.insert(*number, group);
        }
    }
    let devices = addresses
        .iter()
        .zip(&groups)
        .filter_map(|(address, number)| Some(open_device(*address, opened.get(number)?)))
        .collect::<Result<_, _>>()?;
    Ok(Opened { container, devices })
}

/// Fails if a process has the group of `address` open: the kernel lets one in at a time.
pub(crate) fn check_free(address: PciAddress) -> Result<(), VfioError> {
    let number = own_group(Path::new("/sys"), address, &[address])?;
    open_file(PathBuf::from(format!("/dev/vfio/{number}"))).map(drop)
}

/// Opens group `number` and puts it into `container`.
fn join(number: u32, container: &OwnedFd) -> Result<OwnedFd, VfioError> {
    let group = open_file(PathBuf::from(format!("/dev/vfio/{number}")))?;
    let status = sys::group_status(&group).map_err(failed("VFIO_GROUP_GET_STATUS"))?;
    if status & sys::GROUP_VIABLE == 0 {
        return Err(VfioError::NotViable(number));
    }
    sys::set_container(&group, container).map_err(failed("VFIO_GROUP_SET_CONTAINER"))?;
    Ok(group)
}

fn open_device(address: PciAddress, group: &OwnedFd) -> Result<OpenedDevice, VfioError> {
    let name = CString::new(address.to_string()).map_err(io::Error::other);
    let device =
        name.and_then(|name| sys::device(group, &name)).map_err(failed("VFIO_GROUP_GET_DEVICE_FD"))?;
    let group = group.as_fd().try_clone_to_owned().map_err(failed("dup"))?;
    Ok(OpenedDevice { group, device })
}

fn open_file(path: PathBuf) -> Result<OwnedFd, VfioError> {
    OpenOptions::new().read(true).write(true).open(&path).map(OwnedFd::from).map_err(|source| {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => "; is the vfio-pci module loaded?",
            io::ErrorKind::PermissionDenied => "; vm-launcher must run as root, or own the file",
            io::ErrorKind::ResourceBusy => "; another process has the group, another VM for one",
            _ => "",
        };
        VfioError::Open { path, hint, source }
    })
}

/// The number of the device's group, which has nothing but bridges and devices of `ours`.
fn own_group(sysfs: &Path, address: PciAddress, ours: &[PciAddress]) -> Result<u32, VfioError> {
    let device = sysfs.join("bus/pci/devices").join(address.to_string());
    let no_group = |source| VfioError::NoGroup { address, source };
    let folder = device.join("iommu_group");
    let number = fs::read_link(&folder).map_err(no_group)?;
    let number = number.file_name().and_then(|name| name.to_str()?.parse().ok());
    let group = number.ok_or_else(|| no_group(io::ErrorKind::InvalidData.into()))?;
    if !driver(&device).is_some_and(|driver| driver.contains("vfio")) && !device.join("vfio-dev").exists() {
        let driver = driver(&device).unwrap_or_else(|| "nothing".to_owned());
        return Err(VfioError::Driver { address, driver });
    }
    let mut others = Vec::new();
    for entry in fs::read_dir(folder.join("devices")).map_err(no_group)? {
        let entry = entry.map_err(no_group)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name.parse().is_ok_and(|address| ours.contains(&address));
        if !is_ours && !is_bridge(&entry.path()) {
            others.push(match driver(&entry.path()) {
                Some(driver) => format!("{name} (driven by {driver})"),
                None => name,
            });
        }
    }
    others.sort();
    if others.is_empty() { Ok(group) } else { Err(VfioError::Foreign { address, group, others }) }
}

fn driver(device: &Path) -> Option<String> {
    let target = fs::read_link(device.join("driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

fn is_bridge(device: &Path) -> bool {
    fs::read_to_string(device.join("class")).is_ok_and(|class| class.starts_with(BRIDGE_CLASS))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const OURS: &str = "0000:01:10.0";

    /// A sysfs with one group 7 of these devices, each with its driver and class.
    fn sysfs(devices: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        for (name, driver, class) in devices {
            let device = root.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&device).unwrap();
            symlink(Path::new("../../drivers").join(driver), device.join("driver")).unwrap();
            symlink(&group, device.join("iommu_group")).unwrap();
            fs::write(device.join("class"), class).unwrap();
            symlink(&device, group.join("devices").join(name)).unwrap();
        }
        root
    }

    fn group(devices: &[(&str, &str, &str)], ours: &[&str]) -> Result<u32, String> {
        let root = sysfs(devices);
        let ours: Vec<PciAddress> = ours.iter().map(|address| address.parse().unwrap()).collect();
        own_group(root.path(), OURS.parse().unwrap(), &ours).map_err(|error| error.to_string())
    }

    #[test]
    fn a_group_of_its_own_and_one_with_bridges_are_fine() {
        let function = (OURS, "vfio-pci", "0x020000\n");
        assert_eq!(group(&[function], &[OURS]), Ok(7));
        assert_eq!(group(&[function, ("0000:00:1c.0", "pcieport", "0x060400\n")], &[OURS]), Ok(7));
        assert_eq!(group(&[(OURS, "mlx5-vfio-pci", "0x020000\n")], &[OURS]), Ok(7));
    }

    #[test]
    fn a_group_with_others_devices_is_refused_and_they_are_named() {
        let devices = [
            (OURS, "vfio-pci", "0x020000\n"),
            ("0000:01:10.4", "vfio-pci", "0x020000\n"),
            ("0000:01:10.2", "igbvf", "0x020000\n"),
        ];
        let message = group(&devices, &[OURS]).unwrap_err();
        let named = "group 7 with 0000:01:10.2 (driven by igbvf), 0000:01:10.4 (driven by vfio-pci);";
        assert!(message.contains(named), "{message}");
        assert_eq!(group(&devices[..2], &[OURS, "0000:01:10.4"]), Ok(7), "one guest may have them all");
    }

    #[test]
    fn a_device_of_another_driver_and_one_without_a_group_are_refused() {
        let message = group(&[(OURS, "igbvf", "0x020000\n")], &[OURS]).unwrap_err();
        assert!(message.contains("0000:01:10.0 is driven by igbvf"), "{message}");
        let message = group(&[], &[OURS]).unwrap_err();
        assert!(message.contains("is in no IOMMU group"), "{message}");
    }
}
