//! PCI functions as sysfs shows them: which are virtual, whose, and what drives them.
//!
//! Read anew for every question; nothing is kept. Interfaces are seen only while they are in the network namespace
//! that sysfs was mounted in, the host's.

use std::path::{Path, PathBuf};
use std::{fs, io};

use net_types::{IfName, PciAddress};

/// The PCI bus in sysfs.
#[derive(Debug, Clone)]
pub(crate) struct Sysfs {
    pci: PathBuf,
}

/// A virtual function and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VirtualFunction {
    /// Its own address.
    pub(crate) address: PciAddress,
    /// The physical function it is one of.
    pub(crate) pf: PciAddress,
    /// Its number there, from 0.
    pub(crate) index: u32,
}

/// How a virtual function is driven, which says how it is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// As a network interface, which moves to the pod.
    Netdevice,
    /// As a device for virtual machines, by vfio-pci or one of its variants.
    Vfio,
}

/// What is wrong with a PCI function, or with sysfs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysfsError {
    /// No such function.
    #[error("there is no PCI device {0} on this node")]
    Absent(PciAddress),
    /// A physical function.
    #[error("PCI device {0} is a physical function, not a virtual one")]
    Physical(PciAddress),
    /// Something else.
    #[error("PCI device {0} is not a virtual function")]
    NotVirtual(PciAddress),
    /// Nothing drives it.
    #[error("virtual function {0} has no driver")]
    NoDriver(PciAddress),
    /// The physical function has no interface to set its virtual functions by.
    #[error("physical function {0} has no network interface on the host")]
    NoPfLink(PciAddress),
    /// sysfs shows what it should not.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// A setting could not be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What.
        value: String,
        /// The answer.
        source: io::Error,
    },
}

impl Sysfs {
    /// The node's own.
    pub(crate) fn host() -> Self {
        Self::at(Path::new("/sys"))
    }

    /// The one mounted at `root`.
    pub(crate) fn at(root: &Path) -> Self {
        Self { pci: root.join("bus/pci") }
    }

    /// The folder of a function.
    pub(crate) fn device(&self, address: PciAddress) -> PathBuf {
        self.pci.join("devices").join(address.to_string())
    }

    /// The folder of a driver.
    pub(crate) fn driver_folder(&self, driver: &str) -> PathBuf {
        self.pci.join("drivers").join(driver)
    }

    /// The file that makes the kernel look for a driver for a function.
    pub(crate) fn drivers_probe(&self) -> PathBuf {
        self.pci.join("drivers_probe")
    }

    /// True if there is such a function.
    pub(crate) fn exists(&self, address: PciAddress) -> bool {
        self.device(address).exists()
    }

    /// The virtual function at `address`.
    pub(crate) fn virtual_function(&self, address: PciAddress) -> Result<VirtualFunction, SysfsError> {
        let device = self.device(address);
        if !device.exists() {
            return Err(SysfsError::Absent(address));
        }
        if device.join("sriov_totalvfs").exists() {
            return Err(SysfsError::Physical(address));
        }
        let pf = link_target(&device.join("physfn"))?.and_then(|name| name.parse().ok());
        let pf = pf.ok_or(SysfsError::NotVirtual(address))?;
        let siblings = self.virtual_functions(pf)?;
        let found = siblings.into_iter().find(|vf| vf.address == address);
        found.ok_or(SysfsError::NotVirtual(address))
    }

    /// The virtual functions of `pf` that exist, in order.
    pub(crate) fn virtual_functions(&self, pf: PciAddress) -> Result<Vec<VirtualFunction>, SysfsError> {
        let device = self.device(pf);
        let mut functions = Vec::new();
        for name in names(&device)? {
            let Some(index) = name.strip_prefix("virtfn").and_then(|number| number.parse().ok()) else {
                continue;
            };
            let address = link_target(&device.join(&name))?.and_then(|name| name.parse().ok());
            functions.extend(address.map(|address| VirtualFunction { address, pf, index }));
        }
        functions.sort_by_key(|vf| vf.index);
        Ok(functions)
    }

    /// All functions that can have virtual ones, in order.
    pub(crate) fn physical_functions(&self) -> Result<Vec<PciAddress>, SysfsError> {
        let devices = self.pci.join("devices");
        let mut functions: Vec<PciAddress> = names(&devices)?
            .into_iter()
            .filter(|name| devices.join(name).join("sriov_totalvfs").exists())
            .filter_map(|name| name.parse().ok())
            .collect();
        functions.sort();
        Ok(functions)
    }

    /// The name of a function's driver.
    pub(crate) fn driver(&self, address: PciAddress) -> Result<Option<String>, SysfsError> {
        link_target(&self.device(address).join("driver"))
    }

    /// How a virtual function is driven.
    pub(crate) fn mode(&self, address: PciAddress) -> Result<Mode, SysfsError> {
        let driver = self.driver(address)?.ok_or(SysfsError::NoDriver(address))?;
        // Every vfio driver, whichever its vendor, registers a vfio device (kernel 6.1); before, the name tells.
        let vfio = self.device(address).join("vfio-dev").exists() || driver.contains("vfio");
        Ok(if vfio { Mode::Vfio } else { Mode::Netdevice })
    }

    /// The interface of a function, while it is in the host's namespace.
    pub(crate) fn link(&self, address: PciAddress) -> Result<Option<IfName>, SysfsError> {
        Ok(self.links(address)?.into_iter().next())
    }

    /// The interface by which the virtual functions of `pf` are set. In switchdev mode a PF has further interfaces, the
    /// representors of its VFs; their port names tell (`pf0vf1`).
    pub(crate) fn pf_link(&self, pf: PciAddress) -> Result<IfName, SysfsError> {
        let net = self.device(pf).join("net");
        let uplink = |name: &IfName| {
            let port = fs::read_to_string(net.join(name.as_str()).join("phys_port_name")).unwrap_or_default();
            !port.contains("vf") && !port.contains("pf")
        };
        self.links(pf)?.into_iter().find(uplink).ok_or(SysfsError::NoPfLink(pf))
    }

    fn links(&self, address: PciAddress) -> Result<Vec<IfName>, SysfsError> {
        let mut links: Vec<IfName> = names(&self.device(address).join("net"))?
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        links.sort();
        Ok(links)
    }

    /// A file of a function, without the line's end; none if there is no such file.
    pub(crate) fn attribute(&self, address: PciAddress, name: &str) -> Result<Option<String>, SysfsError> {
        let path = self.device(address).join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SysfsError::Read { path, source }),
        }
    }
}

/// Writes a setting.
pub(crate) fn write(path: &Path, value: &str) -> Result<(), SysfsError> {
    fs::write(path, value).map_err(|source| SysfsError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// The last part of what a symbolic link points to; none if there is no link.
fn link_target(link: &Path) -> Result<Option<String>, SysfsError> {
    match fs::read_link(link) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::Read { path: link.to_owned(), source }),
    }
}

/// What is in a folder; nothing if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>, SysfsError> {
    let failed = |source| SysfsError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    pub(crate) const PF: &str = "0000:01:00.0";

    /// A sysfs with one PF (`eth0`) and `count` VFs at 0000:01:10.N, driven by igbvf, with interfaces `eth0vN`.
    pub(crate) fn sysfs(count: u32) -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("bus/pci/devices");
        let pf = devices.join(PF);
        fs::create_dir_all(pf.join("net/eth0")).unwrap();
        fs::write(pf.join("sriov_totalvfs"), "7\n").unwrap();
        fs::write(pf.join("sriov_numvfs"), format!("{count}\n")).unwrap();
        fs::write(pf.join("vendor"), "0x8086\n").unwrap();
        fs::write(pf.join("device"), "0x10c9\n").unwrap();
        for index in 0..count {
            let vf = devices.join(format!("0000:01:10.{index}"));
            fs::create_dir_all(vf.join(format!("net/eth0v{index}"))).unwrap();
            symlink(&pf, vf.join("physfn")).unwrap();
            symlink(&vf, pf.join(format!("virtfn{index}"))).unwrap();
            symlink("../../drivers/igbvf", vf.join("driver")).unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        (root, sysfs)
    }

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn a_virtual_function_knows_its_place() {
        let (_root, sysfs) = sysfs(3);
        let vf = sysfs.virtual_function(address("0000:01:10.2")).unwrap();
        assert_eq!((vf.pf, vf.index), (address(PF), 2));
        assert_eq!(sysfs.link(vf.address).unwrap().unwrap().as_str(), "eth0v2");
        assert_eq!(sysfs.pf_link(vf.pf).unwrap().as_str(), "eth0");
        assert_eq!(sysfs.mode(vf.address).unwrap(), Mode::Netdevice);
        assert_eq!(sysfs.physical_functions().unwrap(), [address(PF)]);
    }

    #[test]
    fn what_is_no_virtual_function_is_told_apart() {
        let (root, sysfs) = sysfs(1);
        fs::create_dir_all(root.path().join("bus/pci/devices/0000:00:01.0")).unwrap();
        let error = |text: &str| sysfs.virtual_function(address(text)).unwrap_err();
        assert!(matches!(error(PF), SysfsError::Physical(_)));
        assert!(matches!(error("0000:00:01.0"), SysfsError::NotVirtual(_)));
        assert!(matches!(error("0000:00:02.0"), SysfsError::Absent(_)));
    }

    #[test]
    fn any_variant_of_vfio_is_recognised() {
        let (_root, sysfs) = sysfs(1);
        let vf = address("0000:01:10.0");
        let driver = sysfs.device(vf).join("driver");
        for (name, registered) in [("vfio-pci", false), ("mlx5_vfio_pci", false), ("nvgrace", true)] {
            fs::remove_file(&driver).unwrap();
            symlink(format!("../../drivers/{name}"), &driver).unwrap();
            if registered {
                fs::create_dir(sysfs.device(vf).join("vfio-dev")).unwrap();
            }
            assert_eq!(sysfs.mode(vf).unwrap(), Mode::Vfio, "{name}");
        }
        fs::remove_file(&driver).unwrap();
        assert!(matches!(sysfs.mode(vf), Err(SysfsError::NoDriver(_))));
    }

    #[test]
    fn representors_are_not_taken_for_the_uplink() {
        let (_root, sysfs) = sysfs(1);
        let net = sysfs.device(address(PF)).join("net");
        fs::create_dir(net.join("aa0")).unwrap();
        fs::write(net.join("aa0/phys_port_name"), "pf0vf0\n").unwrap();
        fs::write(net.join("eth0/phys_port_name"), "p0\n").unwrap();
        assert_eq!(sysfs.pf_link(address(PF)).unwrap().as_str(), "eth0");
    }
}
