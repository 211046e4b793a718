//! MACs of NICs whose manifest gives none: locally administered, random, kept.
//!
//! One file per VM, `<state>/macs/<namespace>/<name>.json`, replaced whole; a VM's NIC gets the same address at
//! every start, on this node. The file outlives `down`, as a guest's configuration does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use net_types::Mac;
use serde::{Deserialize, Serialize};
use vm_api::manifest::Nic;

use crate::file;

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    macs: BTreeMap<String, Mac>,
}

/// Why a VM's addresses cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MacStoreError {
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
    /// A file that is none of ours, or of a later release.
    #[error("{} does not hold the MACs of a VM (version {VERSION})", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong; none if it is the version.
        source: Option<serde_json::Error>,
    },
}

/// The address of every NIC, in order: the manifest's, else the one it had before, else a new one.
pub(crate) fn assign(path: &Path, nics: &[Nic]) -> Result<Vec<Mac>, MacStoreError> {
    let mut stored = read(path)?;
    let known = stored.macs.len();
    let macs = nics
        .iter()
        .map(|nic| nic.mac.unwrap_or_else(|| *stored.macs.entry(nic.name.clone()).or_insert_with(random)))
        .collect();
    if stored.macs.len() > known {
        let text = serde_json::to_vec_pretty(&stored)
            .map_err(|source| MacStoreError::Content { path: path.to_owned(), source: Some(source) })?;
        file::replace(path, &text).map_err(|source| MacStoreError::Io {
            operation: "write",
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(macs)
}

fn read(path: &Path) -> Result<Stored, MacStoreError> {
    let content = |source| MacStoreError::Content { path: path.to_owned(), source };
    match std::fs::read(path) {
        Ok(text) => {
            let stored: Stored = serde_json::from_slice(&text).map_err(|error| content(Some(error)))?;
            if stored.version == VERSION { Ok(stored) } else { Err(content(None)) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Stored { version: VERSION, macs: BTreeMap::new() })
        }
        Err(source) => Err(MacStoreError::Io { operation: "read", path: path.to_owned(), source }),
    }
}

/// A unicast address with the local bit set. The first six bytes of a version 4 UUID are random.
fn random() -> Mac {
    let [first, b, c, d, e, f, ..] = *uuid::Uuid::new_v4().as_bytes();
    Mac([(first & 0xfc) | 0x02, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use vm_api::manifest::{Binding, DhcpOptions, Masquerade};

    use super::*;

    fn nic(name: &str, mac: Option<Mac>) -> Nic {
        let binding = Binding::Masquerade(Masquerade::default());
        Nic { name: name.into(), mac, binding, pci_address: None, dhcp: DhcpOptions::default() }
    }

    #[test]
    fn an_address_is_kept_from_start_to_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("macs/ns/vm.json");
        let given = Mac([2, 0, 0, 0, 0, 1]);
        let first = assign(&path, &[nic("a", None), nic("b", Some(given))]).unwrap();
        assert!(first[0].is_local() && first[0].is_unicast());
        assert_eq!(first[1], given);
        let second = assign(&path, &[nic("c", None), nic("a", None)]).unwrap();
        assert_eq!(second[1], first[0]);
        assert_ne!(second[0], first[0]);
    }

    #[test]
    fn a_file_of_another_release_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.json");
        for text in ["{\"version\": 2, \"macs\": {}}", "x"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(assign(&path, &[nic("a", None)]), Err(MacStoreError::Content { .. })), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
