//! What has been done for a VM, written before it is done: `record.json` in the VM's directory.
//!
//! Whoever ends the VM, in whatever state it was left, finds in here what to take down. The record is the first
//! thing made and the last removed.

use std::fs;
use std::io;
use std::path::PathBuf;

use cni::ContainerId;
use net_types::{IfName, Mac, PciAddress};
use serde::{Deserialize, Serialize};

use super::given::Given;
use super::layout::VmDir;
use super::plan::Plan;
use crate::control::Mtu;
use crate::file;

/// Version of the records this release writes; it reads this one.
const VERSION: u32 = 1;

/// The record of one VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    /// What the plugins know the VM by; new at every `up`.
    #[serde(with = "container_id")]
    pub(crate) container: ContainerId,
    /// The VM's user slot.
    pub(crate) slot: u32,
    /// User and group of its VMM.
    pub(crate) owner: u32,
    /// Where its plugins are.
    pub(crate) plugin_path: Vec<PathBuf>,
    /// What the VM is made of.
    pub(crate) plan: Plan,
    /// Its NICs, in the plan's order; empty until the network is set up.
    pub(crate) nics: Vec<Wired>,
}

/// A NIC that has been attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wired {
    /// Its name in the pod's namespace.
    pub(crate) pod_interface: IfName,
    /// The guest's address.
    pub(crate) mac: Mac,
    /// What the guest has.
    pub(crate) to_guest: ToGuest,
    /// What a guest that is told its addresses is told of name resolution: the text of a `resolv.conf`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) resolv_conf: String,
    /// What the network of a guest on a bridge gave it.
    #[serde(default, skip_serializing_if = "Given::is_empty")]
    pub(crate) given: Given,
}

/// How a NIC reaches the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ToGuest {
    /// By a tap in the pod's namespace.
    Tap {
        /// Its name.
        tap: IfName,
        /// What the guest is told.
        mtu: Mtu,
    },
    /// By the vhost-user backend that listens at a socket.
    VhostUser {
        /// The socket.
        socket: PathBuf,
        /// Where the backend is asked what it has seen.
        control: PathBuf,
        /// What the guest is told.
        mtu: Mtu,
    },
    /// As a PCI function of the node.
    Function(PciAddress),
    /// Not now: its PCI function was unplugged, and given back.
    Unplugged,
}

/// Why a record cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
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
    /// No record.
    #[error("{} is not the record of a VM", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A record of another release.
    #[error("{} has version {found}; this release reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Record {
    pub(crate) fn new(
        container: ContainerId,
        slot: u32,
        owner: u32,
        plugin_path: Vec<PathBuf>,
        plan: Plan,
    ) -> Self {
        Self { version: VERSION, container, slot, owner, plugin_path, plan, nics: Vec::new() }
    }

    /// Writes it, replacing what was there.
    pub(crate) fn write(&self, directory: &VmDir) -> Result<(), RecordError> {
        let path = directory.record();
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| RecordError::Content { path: path.clone(), source })?;
        file::replace(&path, &text).map_err(|source| RecordError::Io { operation: "write", path, source })
    }

    /// Reads it; none if there is none.
    pub(crate) fn read(directory: &VmDir) -> Result<Option<Self>, RecordError> {
        let path = directory.record();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Io { operation: "read", path, source }),
        };
        let content = |source| RecordError::Content { path: path.clone(), source };
        let Versioned { version: found } = serde_json::from_slice(&text).map_err(content)?;
        if found != VERSION {
            return Err(RecordError::Version { path, found });
        }
        serde_json::from_slice(&text).map(Some).map_err(content)
    }
}

/// [`ContainerId`] as text.
mod container_id {
    use cni::ContainerId;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(id: &ContainerId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(id.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ContainerId, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error: cni::Error| de::Error::custom(error.msg))
    }
}
