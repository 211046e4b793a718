//! The records of what is attached: one JSON file per network, container and interface.
//!
//! A record is written before the first plugin runs (without a result) and again when the chain is done. It is
//! replaced whole, so a crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Invocation, NetworkConfigList};
use crate::{Attachment, Success};

/// Version of the records this release writes; it reads this one.
const VERSION: u32 = 1;

/// What is known of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached {
    /// The network as it was at ADD.
    pub network: NetworkConfigList,
    /// What the plugins were given.
    pub invocation: Invocation,
    /// What they answered; none if the ADD did not finish.
    pub result: Option<Success>,
}

/// Why a record could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
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
    /// A record that is none.
    #[error("{} is not a record of an attachment", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A record of another release.
    #[error("{} has version {found}, this release reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// There is no record.
    #[error("container {container} is not attached to network {network}")]
    NotAttached {
        /// The network.
        network: String,
        /// The container.
        container: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    version: u32,
    container_id: String,
    if_name: String,
    netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    capabilities: Map<String, Value>,
    network: NetworkConfigList,
    result: Option<Success>,
}

impl Cached {
    pub(super) fn new(network: &NetworkConfigList, invocation: &Invocation) -> Self {
        Self { network: network.clone(), invocation: invocation.clone(), result: None }
    }

    fn path(&self, directory: &Path) -> PathBuf {
        path(directory, self.network.name(), &self.invocation.attachment)
    }
}

/// Names are identifiers without '/', so the three parts make one file name; ':' is in none of them.
fn path(directory: &Path, network: &str, attachment: &Attachment) -> PathBuf {
    directory.join(format!("{network}:{}:{}.json", attachment.container, attachment.if_name))
}

pub(super) fn write(directory: &Path, cached: &Cached) -> Result<(), CacheError> {
    let Cached { network, invocation: Invocation { attachment, args, capabilities }, result } = cached;
    let record = Record {
        version: VERSION,
        container_id: attachment.container.to_string(),
        if_name: attachment.if_name.to_string(),
        netns: attachment.netns.clone(),
        args: args.clone(),
        capabilities: capabilities.clone(),
        network: network.clone(),
        result: result.clone(),
    };
    let path = cached.path(directory);
    let text = serde_json::to_vec_pretty(&record)
        .map_err(|source| CacheError::Corrupt { path: path.clone(), source })?;
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    let new = path.with_extension("new");
    let mut file = File::create(&new).map_err(failed("create", &new))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
    fs::rename(&new, &path).map_err(failed("replace", &path))
}

pub(super) fn read(
    directory: &Path,
    network: &str,
    attachment: &Attachment,
) -> Result<Option<Cached>, CacheError> {
    read_file(&path(directory, network, attachment))
}

pub(super) fn remove(directory: &Path, cached: &Cached) -> Result<(), CacheError> {
    let path = cached.path(directory);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
        _ => Ok(()),
    }
}

pub(super) fn all(directory: &Path) -> Result<Vec<Cached>, CacheError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("list", directory)(error)),
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", directory))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            records.extend(read_file(&path)?);
        }
    }
    Ok(records)
}

fn read_file(path: &Path) -> Result<Option<Cached>, CacheError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let corrupt = |source| CacheError::Corrupt { path: path.to_owned(), source };
    let record: Record = serde_json::from_slice(&text).map_err(corrupt)?;
    if record.version != VERSION {
        return Err(CacheError::Version { path: path.to_owned(), found: record.version });
    }
    let custom = |error: String| corrupt(serde::de::Error::custom(error));
    let attachment = Attachment {
        container: record.container_id.parse().map_err(|error: crate::Error| custom(error.to_string()))?,
        if_name: record.if_name.parse().map_err(|error: net_types::IfNameError| custom(error.to_string()))?,
        netns: record.netns,
    };
    let invocation = Invocation { attachment, args: record.args, capabilities: record.capabilities };
    Ok(Some(Cached { network: record.network, invocation, result: record.result }))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError::Io { operation, path, source }
}
