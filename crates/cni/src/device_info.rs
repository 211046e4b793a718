//! The device-info file: tells others (KubeVirt, by way of Multus) which device an attachment has.
//!
//! Format: Device Information Specification 1.1.0 of the Network Plumbing Working Group. The path comes from the runtime
//! (`runtimeConfig.CNIDeviceInfoFile`), so only plain files in the specification's own folders are touched. A file that is
//! there is somebody else's, of the device plugin for one: it is read, never replaced.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use net_types::PciAddress;
use serde::{Deserialize, Serialize};

/// The folder of device-info files; `/var/run` is `/run` on every distribution that Kubernetes runs on.
const ROOTS: [&str; 2] = ["/var/run/k8s.cni.cncf.io/devinfo", "/run/k8s.cni.cncf.io/devinfo"];
/// Its folders: files of device plugins, and of CNI plugins.
const FOLDERS: [&str; 2] = ["dp", "cni"];
/// The specification's version.
const VERSION: &str = "1.1.0";
/// The VMM's side of a vhost-user socket.
const CLIENT: &str = "client";

/// What an attachment has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A PCI function; two are the same if their addresses are.
    Pci {
        /// Its address.
        address: PciAddress,
        /// The physical function it is one of.
        pf: Option<PciAddress>,
    },
    /// A vhost-user socket that the VMM connects to.
    VhostUser {
        /// Where it is.
        socket: PathBuf,
    },
}

/// Why a device-info file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceInfoError {
    /// Not where such files are.
    #[error("CNIDeviceInfoFile {} is not a .json file in {}/cni or /dp", path.display(), ROOTS[0])]
    Outside {
        /// As given.
        path: PathBuf,
    },
    /// About another device.
    #[error("CNIDeviceInfoFile {} is about {found}, not about {expected}", path.display())]
    OtherDevice {
        /// The file.
        path: PathBuf,
        /// The device in it.
        found: String,
        /// The one that is attached.
        expected: Box<Device>,
    },
    /// Not readable as JSON.
    #[error("CNIDeviceInfoFile {} is not device information", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The file system said no.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Information {
    #[serde(rename = "type")]
    kind: String,
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pci: Option<Pci>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vhost_user: Option<VhostUser>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Pci {
    pci_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pf_pci_address: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct VhostUser {
    mode: String,
    path: PathBuf,
}

/// Looks at `path`: true if there is a file about `device`, false if there is none.
///
/// # Errors
/// The path is outside of the specification's folders, or the file is about something else.
pub fn exists(path: &Path, device: &Device) -> Result<bool, DeviceInfoError> {
    let outside = || DeviceInfoError::Outside { path: path.to_owned() };
    if !is_inside(path, &ROOTS) {
        return Err(outside());
    }
    let text = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.is_file() => return Err(outside()),
        Ok(_) => fs::read(path).map_err(failed("read", path))?,
    };
    let found: Information = serde_json::from_slice(&text)
        .map_err(|source| DeviceInfoError::Malformed { path: path.to_owned(), source })?;
    if found.is_about(device) {
        return Ok(true);
    }
    let (found, expected) = (found.to_string(), Box::new(device.clone()));
    Err(DeviceInfoError::OtherDevice { path: path.to_owned(), found, expected })
}

/// Writes the file, whole or not at all, unless there is one about `device`.
///
/// # Errors
/// As [`exists`], or the file system refuses.
pub fn write(path: &Path, device: &Device) -> Result<(), DeviceInfoError> {
    if exists(path, device)? { Ok(()) } else { create(path, device) }
}

/// Removes a file about `device`; absent is fine, and another device's stays.
///
/// # Errors
/// The file system refuses.
pub fn remove(path: &Path, device: &Device) -> Result<(), DeviceInfoError> {
    match exists(path, device) {
        Ok(true) => fs::remove_file(path).map_err(failed("remove", path)),
        Ok(false) => Ok(()),
        Err(error) => {
            tracing::warn!("{} is left alone: {error}", path.display());
            Ok(())
        }
    }
}

fn create(path: &Path, device: &Device) -> Result<(), DeviceInfoError> {
    let text = serde_json::to_vec(&Information::from(device))
        .map_err(|source| DeviceInfoError::Malformed { path: path.to_owned(), source })?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    // Whoever sees the name sees the whole file; a link, unlike a rename, replaces nothing.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::create(&new).map_err(failed("create", &new))?;
    let written = file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new));
    let linked = written.and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error)),
        _ => Ok(()),
    });
    fs::remove_file(&new).map_err(failed("remove", &new))?;
    linked
}

/// True for a plain name in one of the folders, none of which is reached by a symbolic link.
fn is_inside(path: &Path, roots: &[&str]) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let json = path.extension().is_some_and(|extension| extension == "json");
    let Some(folder) = path.parent() else { return false };
    let known = roots.iter().any(|root| FOLDERS.iter().any(|name| folder == Path::new(root).join(name)));
    let is_link = fs::symlink_metadata(folder).is_ok_and(|metadata| metadata.is_symlink());
    plain && json && known && !is_link
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeviceInfoError {
    let path = path.to_owned();
    move |source| DeviceInfoError::Io { operation, path, source }
}

impl Information {
    fn is_about(&self, device: &Device) -> bool {
        match (device, self) {
            (Device::Pci { address, .. }, Self { pci: Some(pci), .. }) => {
                pci.pci_address.parse() == Ok(*address)
            }
            (Device::VhostUser { socket }, Self { vhost_user: Some(found), .. }) => {
                found.mode == CLIENT && found.path == *socket
            }
            _ => false,
        }
    }
}

impl From<&Device> for Information {
    fn from(device: &Device) -> Self {
        let (kind, pci, vhost_user) = match device {
            Device::Pci { address, pf } => {
                let pf_pci_address = pf.map(|pf| pf.to_string());
                ("pci", Some(Pci { pci_address: address.to_string(), pf_pci_address }), None)
            }
            Device::VhostUser { socket } => {
                let socket = VhostUser { mode: CLIENT.to_owned(), path: socket.clone() };
                ("vhost-user", None, Some(socket))
            }
        };
        Self { kind: kind.to_owned(), version: VERSION.to_owned(), pci, vhost_user }
    }
}

impl fmt::Display for Information {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { pci: Some(pci), .. } => f.write_str(&pci.pci_address),
            Self { vhost_user: Some(VhostUser { mode, path }), .. } => {
                write!(f, "{} ({mode})", path.display())
            }
            Self { kind, .. } => write!(f, "a device of type {kind:?}"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Information::from(self).fmt(f)
    }
}

#[cfg(test)]
#[path = "device_info_tests.rs"]
mod tests;
