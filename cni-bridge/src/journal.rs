//! What an interface was before a plugin changed it: one small file per container and interface, written before the first
//! change and removed after the last is undone.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cni::{Attachment, Code, ContainerId};
use nix::unistd::{AccessFlags, access};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// A directory of such files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Journal<'a> {
    directory: &'a Path,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct Record<T> {
    version: u32,
    /// The network whose ADD it was: GC is told what is valid of one network only.
    network: String,
    values: T,
}

const VERSION: u32 = 1;

/// How often the directory may go just after it was made. Each time another attachment's last file was forgotten.
const MAX_ATTEMPTS: u32 = 1000;

/// Why a file could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The file system said no.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is none.
    #[error("{} does not hold an interface's saved values", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

impl JournalError {
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::File { .. } => Code::UNUSABLE_FILE,
            Self::Corrupt { .. } => Code::Plugin(114),
        }
    }
}

impl<'a> Journal<'a> {
    /// The journal in `directory`, which is made with its first file.
    pub(crate) fn in_directory(directory: &'a Path) -> Self {
        Self { directory }
    }

    /// The attachment's file; `:` is in neither part.
    fn path(self, attachment: &Attachment) -> PathBuf {
        self.directory.join(format!("{}:{}.json", attachment.container, attachment.if_name))
    }

    /// Keeps `values` in place of what may have been kept.
    pub(crate) fn keep<T: Serialize>(
        self,
        network: &str,
        attachment: &Attachment,
        values: &T,
    ) -> Result<(), JournalError> {
        let path = self.path(attachment);
        let record = Record { version: VERSION, network: network.to_owned(), values };
        let text = serde_json::to_vec(&record)
            .map_err(|source| JournalError::Corrupt { path: path.clone(), source })?;
        let new = path.with_extension("new");
        let mut file = self.create(&new)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("replace", &path))
    }

    /// A new file in the directory, which whoever forgets the last of the others removes.
    fn create(self, new: &Path) -> Result<File, JournalError> {
        for _ in 0..MAX_ATTEMPTS {
            match fs::create_dir_all(self.directory) {
                // It stood in the way and has gone, or is a directory again.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.is_free() => continue,
                other => other.map_err(failed("create", self.directory))?,
            }
            match File::create(new) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => return other.map_err(failed("create", new)),
            }
        }
        Err(failed("create", new)(io::ErrorKind::NotFound.into()))
    }

    /// True unless something else than a directory has the place of it.
    fn is_free(self) -> bool {
        fs::metadata(self.directory).map_or(true, |found| found.is_dir())
    }

    /// Fails if nothing could be kept now.
    pub(crate) fn try_out(self) -> Result<(), JournalError> {
        // Folders that are missing are made with the first file.
        let there = self.directory.ancestors().find(|folder| folder.exists());
        let there = there.unwrap_or(Path::new("/"));
        if !there.is_dir() {
            return Err(failed("keep files in", there)(io::ErrorKind::NotADirectory.into()));
        }
        access(there, AccessFlags::W_OK).map_err(|errno| failed("keep files in", there)(errno.into()))
    }

    /// What was kept; none if nothing was.
    pub(crate) fn read<T: DeserializeOwned>(
        self,
        attachment: &Attachment,
    ) -> Result<Option<T>, JournalError> {
        Ok(read_file(&self.path(attachment))?.map(|record| record.values))
    }

    /// Forgets what was kept, and the directory with the last file. Absent is fine.
    pub(crate) fn forget(self, attachment: &Attachment) -> Result<(), JournalError> {
        let path = self.path(attachment);
        remove(&path)?;
        // Of an ADD that was cut off as it wrote.
        remove(&path.with_extension("new"))?;
        // It stays while others have files in it.
        let _ = fs::remove_dir(self.directory);
        Ok(())
    }

    /// Removes the files of the network's attachments that are not valid. Goes on past failures, and returns the first.
    pub(crate) fn gc(self, network: &str, valid: &[(ContainerId, String)]) -> Result<(), JournalError> {
        let entries = match fs::read_dir(self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("list", self.directory)(error)),
        };
        let names: Vec<_> =
            valid.iter().map(|(container, if_name)| format!("{container}:{if_name}.json")).collect();
        let mut done = Ok(());
        for entry in entries {
            let entry = entry.map_err(failed("list", self.directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.contains(':') || !name.ends_with(".json") || names.contains(&name) {
                continue;
            }
            let removed = match read_file::<IgnoredAny>(&entry.path()) {
                Ok(Some(record)) if record.network == network => remove(&entry.path()),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            done = done.and(removed);
        }
        done
    }
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Option<Record<T>>, JournalError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let corrupt = |source| JournalError::Corrupt { path: path.to_owned(), source };
    let record: Record<T> = serde_json::from_slice(&text).map_err(corrupt)?;
    if record.version != VERSION {
        let message = format!("version {}; this release reads {VERSION}", record.version);
        return Err(corrupt(serde::de::Error::custom(message)));
    }
    Ok(Some(record))
}

fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::File { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn attachments_come_and_go_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("journal");
        thread::scope(|scope| {
            for container in ["a", "b"] {
                let directory = &directory;
                scope.spawn(move || {
                    let journal = Journal::in_directory(directory);
                    let attachment = Attachment {
                        container: container.parse().unwrap(),
                        if_name: "net1".parse().unwrap(),
                        netns: None,
                    };
                    for number in 0..500_u32 {
                        journal.keep("net", &attachment, &number).unwrap();
                        assert_eq!(journal.read(&attachment).unwrap(), Some(number));
                        journal.forget(&attachment).unwrap();
                    }
                });
            }
        });
        assert!(!directory.exists());
    }
}
