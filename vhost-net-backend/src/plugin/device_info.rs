//! The device-info file: tells KubeVirt, by way of Multus, where the guest's socket is.
//!
//! Format: Device Information Specification of the Network Plumbing Working Group; `mode` is the VMM's side of the socket.
//! The path comes from the runtime, so only files in the specification's own folder are touched, and never one that is
//! about something else.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder of CNI plugins' files; `/var/run` is `/run` on every distribution that Kubernetes runs on.
const FOLDERS: [&str; 2] = ["/var/run/k8s.cni.cncf.io/devinfo/cni", "/run/k8s.cni.cncf.io/devinfo/cni"];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceInfoError {
    /// Not where such files are.
    #[error("CNIDeviceInfoFile {} is no .json file in {}", .0.display(), FOLDERS[0])]
    Outside(PathBuf),
    /// It is about something else.
    #[error("CNIDeviceInfoFile {} exists and is not about this socket", .0.display())]
    Other(PathBuf),
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

#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Information {
    #[serde(rename = "type")]
    kind: String,
    version: String,
    vhost_user: Socket,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Socket {
    mode: String,
    path: PathBuf,
}

fn about(socket: &Path) -> Information {
    let vhost_user = Socket { mode: "client".to_owned(), path: socket.to_owned() };
    Information { kind: "vhost-user".to_owned(), version: "1.1.0".to_owned(), vhost_user }
}

/// Looks at `path` before anything is changed: whether there is a file about `socket`.
pub(super) fn exists(path: &Path, socket: &Path) -> Result<bool, DeviceInfoError> {
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let inside = path.parent().is_some_and(|folder| FOLDERS.iter().any(|known| folder == Path::new(known)));
    if !plain || !inside || path.extension().is_none_or(|extension| extension != "json") {
        return Err(DeviceInfoError::Outside(path.to_owned()));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.is_file() => return Err(DeviceInfoError::Other(path.to_owned())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(failed("read", path))?;
    match serde_json::from_slice::<Information>(&text) {
        Ok(found) if found == about(socket) => Ok(true),
        _ => Err(DeviceInfoError::Other(path.to_owned())),
    }
}

/// Writes the file, whole or not at all.
pub(super) fn write(path: &Path, socket: &Path) -> Result<(), DeviceInfoError> {
    if exists(path, socket)? {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("create", folder))?;
    }
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let text = serde_json::to_vec(&about(socket)).map_err(io::Error::from).map_err(failed("write", &new))?;
    let mut file = File::create(&new).map_err(failed("create", &new))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
    fs::rename(&new, path).map_err(failed("rename", &new))
}

/// Removes the file if it is about `socket`; any other stays.
pub(super) fn remove(path: &Path, socket: &Path) -> Result<(), DeviceInfoError> {
    match exists(path, socket) {
        Ok(true) => fs::remove_file(path).map_err(failed("remove", path)),
        Ok(false) => Ok(()),
        Err(error) => {
            tracing::warn!("{} is left alone: {error}", path.display());
            Ok(())
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeviceInfoError {
    let path = path.to_owned();
    move |source| DeviceInfoError::Io { operation, path, source }
}
