//! One user per VM: VMMs must not be able to touch one another.
//!
//! A slot is a number that one VM has at a time, taken by creating `<run>/slots/<number>`; the VM's processes run
//! as user and group `base + number`. Where the search begins depends on the VM's key, so a VM usually gets the same
//! slot again and finding a free one costs the same however many VMs there are.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::file;

/// How many slots there are, and so how many user ids are used from the base on.
pub(crate) const SLOTS: u32 = 65_536;

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    /// All are taken.
    #[error("all {SLOTS} user slots in {} are taken", .0.display())]
    Full(PathBuf),
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

/// Takes a slot for the VM called `key`.
pub(crate) fn take(slots: &Path, key: &str) -> Result<u32, SlotError> {
    let failed = |operation, path: &Path, source| SlotError::Io { operation, path: path.to_owned(), source };
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
    let first = u32::try_from(hash % u64::from(SLOTS)).unwrap_or(0);
    for slot in (first..SLOTS).chain(0..first) {
        let path = slots.join(slot.to_string());
        match file::in_directory(&path, || File::create_new(&path)) {
            Ok(mut file) => {
                file.write_all(key.as_bytes()).map_err(|source| failed("write", &path, source))?;
                return Ok(slot);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("create", &path, source)),
        }
    }
    Err(SlotError::Full(slots.to_owned()))
}

/// Gives a slot back if it is that VM's. Absent is fine.
pub(crate) fn give_back(slots: &Path, slot: u32, key: &str) -> Result<(), SlotError> {
    let path = slots.join(slot.to_string());
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::read(&path) {
        Ok(owner) if owner == key.as_bytes() => {}
        Ok(_) => return Ok(()),
        Err(error) if absent(&error) => return Ok(()),
        Err(source) => return Err(SlotError::Io { operation: "read", path, source }),
    }
    match fs::remove_file(&path) {
        Err(source) if !absent(&source) => Err(SlotError::Io { operation: "remove", path, source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_gets_its_slot_again_and_two_never_share_one() {
        let directory = tempfile::tempdir().unwrap();
        let slots = directory.path().join("slots");
        let first = take(&slots, "ns_a").unwrap();
        let second = take(&slots, "ns_a").unwrap();
        assert_ne!(first, second);
        give_back(&slots, first, "ns_b").unwrap();
        assert!(slots.join(first.to_string()).exists(), "another VM's slot is left alone");
        give_back(&slots, first, "ns_a").unwrap();
        give_back(&slots, first, "ns_a").unwrap();
        assert_eq!(take(&slots, "ns_a").unwrap(), first);
    }
}
