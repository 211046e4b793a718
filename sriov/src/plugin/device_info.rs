//! The device-info file: tells others (KubeVirt, by way of Multus) which device an attachment has.
//!
//! Format: Device Information Specification 1.1.0 of the Network Plumbing Working Group. The path comes from outside, so
//! only plain files in the specification's own folders are touched. A file that is there is the device plugin's: it is
//! read, never replaced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use net_types::PciAddress;
use serde::{Deserialize, Serialize};

/// The folder of device-info files; `/var/run` is `/run` on every distribution that Kubernetes runs on.
const ROOTS: [&str; 2] = ["/var/run/k8s.cni.cncf.io/devinfo", "/run/k8s.cni.cncf.io/devinfo"];
/// Its folders: files of device plugins, and of CNI plugins.
const FOLDERS: [&str; 2] = ["dp", "cni"];

/// Why a device-info file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceInfoError {
    /// Not where such files are.
    #[error("CNIDeviceInfoFile {} is not a file in {}/cni or /dp", path.display(), ROOTS[0])]
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
        expected: PciAddress,
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
struct Information {
    #[serde(rename = "type")]
    kind: String,
    version: String,
    pci: Pci,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Pci {
    pci_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pf_pci_address: Option<PciAddress>,
}

/// Looks at `path` before anything is changed: true if the file is to be written, false if there is one already.
pub(super) fn is_missing(path: &Path, device: PciAddress) -> Result<bool, DeviceInfoError> {
    if !is_inside(path, &ROOTS) {
        return Err(DeviceInfoError::Outside { path: path.to_owned() });
    }
    let text = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.is_file() => {
            return Err(DeviceInfoError::Outside { path: path.to_owned() });
        }
        Ok(_) => fs::read(path).map_err(failed("read", path))?,
    };
    let information: Information = serde_json::from_slice(&text)
        .map_err(|source| DeviceInfoError::Malformed { path: path.to_owned(), source })?;
    let found = information.pci.pci_address;
    if found.parse() == Ok(device) {
        return Ok(false);
    }
    Err(DeviceInfoError::OtherDevice { path: path.to_owned(), found, expected: device })
}

/// Writes the file; one that appeared meanwhile stays.
pub(super) fn write(path: &Path, device: PciAddress, pf: PciAddress) -> Result<(), DeviceInfoError> {
    let pci = Pci { pci_address: device.to_string(), pf_pci_address: Some(pf) };
    let information = Information { kind: "pci".to_owned(), version: "1.1.0".to_owned(), pci };
    let text = serde_json::to_vec(&information)
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

/// Removes a file that [`write`] made; absent is fine, and another device's stays.
pub(super) fn remove(path: &Path, device: PciAddress) -> Result<(), DeviceInfoError> {
    match is_missing(path, device) {
        Ok(false) => fs::remove_file(path).map_err(failed("remove", path)),
        Ok(true) => Ok(()),
        Err(error) => {
            tracing::warn!("{} is left alone: {error}", path.display());
            Ok(())
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_the_specification_s_folders_are_touched() {
        let root = tempfile::tempdir().unwrap();
        let text = root.path().to_str().unwrap();
        let inside = |path: &str| is_inside(Path::new(&format!("{text}{path}")), &[text]);
        assert!(inside("/cni/default-net-pod-device.json") && inside("/dp/x.json"));
        for path in [
            "/cni",
            "/x.json",
            "/cni/../x.json",
            "/cni/../../etc/x.json",
            "/other/x.json",
            "/cni/a/x.json",
            "/cni/x",
        ] {
            assert!(!inside(path), "{path}");
        }
        std::os::unix::fs::symlink("/etc", root.path().join("cni")).unwrap();
        assert!(!inside("/cni/x.json"), "a folder that leads elsewhere");
        let relative = Path::new("var/run/k8s.cni.cncf.io/devinfo/cni/x.json");
        assert!(!is_inside(relative, &ROOTS));
    }

    #[test]
    fn a_file_is_written_once_and_says_what_the_specification_wants() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cni/x.json");
        let (vf, pf) = ("0000:01:10.0".parse().unwrap(), "0000:01:00.0".parse().unwrap());
        write(&path, vf, pf).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = serde_json::json!({
            "type": "pci", "version": "1.1.0",
            "pci": {"pci-address": "0000:01:10.0", "pf-pci-address": "0000:01:00.0"},
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), expected);
        write(&path, pf, pf).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "a file that is there stays");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
