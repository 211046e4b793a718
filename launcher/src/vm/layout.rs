//! Where everything is on disk.
//!
//! Below the run directory (tmpfs, gone after a reboot), for VM `NAME` in namespace `NS`:
//! `vms/NS/NAME/` record, seed, console, supervisor's log · `locks/NS_NAME` who owns the VM ·
//! `netns/NS_NAME` its network namespace · `vmi/NS/NAME.json` its status · `slots/N` which VM runs as user N ·
//! `cni/` what the plugins have attached · `ipam/` which addresses of the built-in pod network are taken. Below the state directory: `macs/NS/NAME.json`.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_api::names::{self, NameError};
use vm_api::status_dir::StatusDir;

/// Which VM. Both parts are Kubernetes names, so they are plain file names and hold no `_`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct VmId {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl VmId {
    /// Checks both parts.
    pub(crate) fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: names::label(namespace)?.to_owned(), name: names::subdomain(name)?.to_owned() })
    }

    /// One file name for both parts.
    pub(crate) fn key(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }

    /// Takes [`VmId::key`] apart.
    pub(crate) fn from_key(key: &str) -> Option<Self> {
        let (namespace, name) = key.split_once('_')?;
        Self::new(namespace, name).ok()
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The two directories everything is in.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Lost at a reboot, as are processes and links.
    pub(crate) run: PathBuf,
    /// Kept.
    pub(crate) state: PathBuf,
}

impl Layout {
    pub(crate) fn vm_dir(&self, id: &VmId) -> VmDir {
        VmDir(self.run.join("vms").join(&id.namespace).join(&id.name))
    }

    pub(crate) fn lock(&self, id: &VmId) -> PathBuf {
        self.run.join("locks").join(id.key())
    }

    pub(crate) fn netns(&self, id: &VmId) -> PathBuf {
        self.run.join("netns").join(id.key())
    }

    pub(crate) fn slots(&self) -> PathBuf {
        self.run.join("slots")
    }

    pub(crate) fn cni_cache(&self) -> PathBuf {
        self.run.join("cni")
    }

    /// Which addresses of the built-in pod network are taken; host-local's.
    pub(crate) fn ipam(&self) -> PathBuf {
        self.run.join("ipam")
    }

    pub(crate) fn status(&self) -> StatusDir {
        StatusDir::new(self.run.join("vmi"))
    }

    pub(crate) fn macs(&self, id: &VmId) -> PathBuf {
        self.state.join("macs").join(&id.namespace).join(format!("{}.json", id.name))
    }
}

/// The directory of one VM.
#[derive(Debug, Clone)]
pub(crate) struct VmDir(PathBuf);

impl VmDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    pub(crate) fn seed(&self) -> PathBuf {
        self.0.join("seed.img")
    }

    pub(crate) fn disk_copy(&self, volume: &str) -> PathBuf {
        self.0.join(format!("disk-{volume}.img"))
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.0.join(CONSOLE_SOCKET)
    }

    pub(crate) fn requests(&self) -> PathBuf {
        self.0.join(REQUEST_SOCKET)
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    pub(crate) fn supervisor_log(&self) -> PathBuf {
        self.0.join("supervisor.log")
    }
}

/// Name of the console's socket in the VM's directory.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// Name of the socket there on which a supervisor takes requests.
pub(crate) const REQUEST_SOCKET: &str = "requests.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_vm_only() {
        let id = VmId::new("vms", "vm1.example").unwrap();
        assert_eq!(id.key(), "vms_vm1.example");
        assert_eq!(VmId::from_key(&id.key()), Some(id));
        for key in ["", "vms", "_vm", "vms_", "vms_../x", "a_b_c"] {
            assert_eq!(VmId::from_key(key), None, "{key:?}");
        }
    }
}
