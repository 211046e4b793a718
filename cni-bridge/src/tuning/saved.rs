//! What an interface was before it was tuned: one small file per container and interface.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cni::{Attachment, ContainerId};
use net_types::Mac;
use serde::{Deserialize, Serialize};

use super::error::TuningError;

/// An interface's own values; those that were not changed are not kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Saved {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) promiscuous: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) all_multicast: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tx_queue_len: Option<u32>,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    /// The network whose ADD it was: GC is told what is valid of one network only.
    network: String,
    values: Saved,
}

const VERSION: u32 = 1;

/// The file's name; `:` is in neither part.
fn path(directory: &Path, attachment: &Attachment) -> PathBuf {
    directory.join(format!("{}:{}.json", attachment.container, attachment.if_name))
}

/// Keeps `saved`, unless something is kept already: then an ADD was repeated, and the older values are the true ones.
pub(super) fn keep(
    directory: &Path,
    network: &str,
    attachment: &Attachment,
    saved: &Saved,
) -> Result<(), TuningError> {
    let path = path(directory, attachment);
    if read(directory, attachment)?.is_some() {
        return Ok(());
    }
    let record = Record { version: VERSION, network: network.to_owned(), values: *saved };
    let text =
        serde_json::to_vec(&record).map_err(|source| TuningError::Corrupt { path: path.clone(), source })?;
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(failed("create", &new))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
    fs::rename(&new, &path).map_err(failed("replace", &path))
}

/// What was kept; none if nothing was.
pub(super) fn read(directory: &Path, attachment: &Attachment) -> Result<Option<Saved>, TuningError> {
    Ok(read_file(&path(directory, attachment))?.map(|record| record.values))
}

fn read_file(path: &Path) -> Result<Option<Record>, TuningError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let corrupt = |source| TuningError::Corrupt { path: path.to_owned(), source };
    let record: Record = serde_json::from_slice(&text).map_err(corrupt)?;
    if record.version != VERSION {
        let message = format!("version {}; this release reads {VERSION}", record.version);
        return Err(corrupt(serde::de::Error::custom(message)));
    }
    Ok(Some(record))
}

/// Forgets what was kept, and the directory with the last file. Absent is fine.
pub(super) fn forget(directory: &Path, attachment: &Attachment) -> Result<(), TuningError> {
    remove(&path(directory, attachment))?;
    // It stays while others have files in it.
    let _ = fs::remove_dir(directory);
    Ok(())
}

/// Removes the files of the network's attachments that are not valid. Goes on past failures, and returns the first.
pub(super) fn gc(
    directory: &Path,
    network: &str,
    valid: &[(ContainerId, String)],
) -> Result<(), TuningError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let names: Vec<_> =
        valid.iter().map(|(container, if_name)| format!("{container}:{if_name}.json")).collect();
    let mut done = Ok(());
    for entry in entries {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.contains(':') || !name.ends_with(".json") || names.contains(&name) {
            continue;
        }
        let removed = match read_file(&entry.path()) {
            Ok(Some(record)) if record.network == network => remove(&entry.path()),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        done = done.and(removed);
    }
    done
}

fn remove(path: &Path) -> Result<(), TuningError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TuningError {
    let path = path.to_owned();
    move |source| TuningError::File { operation, path, source }
}
