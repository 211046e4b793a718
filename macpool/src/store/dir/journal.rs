//! The journal: one JSON object a line, appended and synced before anybody hears of it.
//!
//! A crash leaves at most one broken line at the end, of which nobody was told; it is cut off. Broken lines elsewhere are damage,
//! and damage stops us: an address forgotten could be given twice. Now and then the journal is written anew with what still
//! counts, beside the old one, and takes its place by a rename.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use net_types::Mac;
use serde::{Deserialize, Serialize};

use crate::segment::Segment;
use crate::store::{Kind, Owner};

/// The journal's name in the store's directory.
pub(super) const FILE: &str = "journal";
/// Held by the process that has the store open.
const LOCK: &str = "lock";
const VERSION: u32 = 1;
/// Lines that may be of no more use before the journal is written anew.
const SLACK: usize = 1000;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{0} is in use by another macpool")]
    InUse(PathBuf),
    /// A line in the middle is broken, or the header is not ours.
    #[error("{path}, line {line}: {reason}")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A line cannot be written as JSON.
    #[error("an entry cannot be written")]
    Entry(#[from] serde_json::Error),
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A NIC has this address from now on. No segment: older journals do not say where its frames go.
    Reserve { owner: Owner, nic: Box<str>, mac: Mac, segment: Option<Segment> },
    /// The owner is gone, and all its addresses are free.
    Forget { owner: Owner },
}

/// How it is written. Old fields stay readable for ever.
#[derive(Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Line {
    Version {
        version: u32,
    },
    Reserve {
        kind: LineKind,
        owner: Box<str>,
        nic: Box<str>,
        mac: Mac,
        /// `namespace/name`; empty for a NIC that meets no other.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        network: Option<Box<str>>,
    },
    Forget {
        kind: LineKind,
        owner: Box<str>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LineKind {
    Vm,
    Pod,
}

impl From<Kind> for LineKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Vm => Self::Vm,
            Kind::Pod => Self::Pod,
        }
    }
}

fn owner(kind: LineKind, key: Box<str>) -> Owner {
    let kind = match kind {
        LineKind::Vm => Kind::Vm,
        LineKind::Pod => Kind::Pod,
    };
    Owner { kind, key }
}

fn segment(network: Box<str>) -> Segment {
    if network.is_empty() { Segment::Alone } else { Segment::Network(network) }
}

impl From<&Entry> for Line {
    fn from(entry: &Entry) -> Self {
        match entry.clone() {
            Entry::Reserve { owner, nic, mac, segment } => {
                let network = segment.map(|segment| match segment {
                    Segment::Alone => "".into(),
                    Segment::Network(network) => network,
                });
                Self::Reserve { kind: owner.kind.into(), owner: owner.key, nic, mac, network }
            }
            Entry::Forget { owner } => Self::Forget { kind: owner.kind.into(), owner: owner.key },
        }
    }
}

/// The journal, open for appending.
#[derive(Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    file: File,
    /// Bytes that are known to be good; what is behind them after a failed append is cut off.
    length: u64,
    lines: usize,
    _lock: File,
}

impl Journal {
    /// Opens it, creating what is missing, and calls `apply` for every entry.
    pub(super) fn open(directory: &Path, apply: impl FnMut(Entry)) -> Result<Self, JournalError> {
        fs::create_dir_all(directory).map_err(|source| failed("create", directory, source))?;
        let lock_path = directory.join(LOCK);
        let lock = File::create(&lock_path).map_err(|source| failed("create", &lock_path, source))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::InUse(directory.to_owned()),
            TryLockError::Error(source) => failed("lock", &lock_path, source),
        })?;
        let path = directory.join(FILE);
        let read = match Self::read(&path, apply) {
            Ok(read) => Some(read),
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let (file, length, lines) = match read {
            Some((length, lines)) => (open_for_append(&path, length)?, length, lines),
            None => replace(directory, std::iter::empty())?,
        };
        sync(directory)?;
        Ok(Self { directory: directory.to_owned(), file, length, lines, _lock: lock })
    }

    /// Calls `apply` for every entry of the file. Returns the length of its good part, in bytes and lines.
    pub(super) fn read(path: &Path, mut apply: impl FnMut(Entry)) -> Result<(u64, usize), JournalError> {
        let file = File::open(path).map_err(|source| failed("open", path, source))?;
        let mut reader = BufReader::new(file);
        let (mut length, mut number) = (0, 0);
        let mut text = Vec::new();
        loop {
            text.clear();
            let read = reader.read_until(b'\n', &mut text).map_err(|source| failed("read", path, source))?;
            // Without its end it was being written when we died, and nobody knows of it.
            if text.last() != Some(&b'\n') {
                break;
            }
            number += 1;
            let damaged =
                |reason: String| JournalError::Damaged { path: path.to_owned(), line: number, reason };
            // serde would take a list of an object's values for the object.
            if text.first() != Some(&b'{') {
                return Err(damaged("not a JSON object".to_owned()));
            }
            match (number, serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?) {
                (1, Line::Version { version: VERSION }) => {}
                (1, _) => return Err(damaged(format!("not a macpool journal of version {VERSION}"))),
                (_, Line::Version { .. }) => return Err(damaged("a second header".to_owned())),
                (_, Line::Reserve { kind, owner: key, nic, mac, network }) => {
                    let segment = network.map(segment);
                    apply(Entry::Reserve { owner: owner(kind, key), nic, mac, segment });
                }
                (_, Line::Forget { kind, owner: key }) => apply(Entry::Forget { owner: owner(kind, key) }),
            }
            length += read as u64;
        }
        if number == 0 {
            return Err(JournalError::Damaged {
                path: path.to_owned(),
                line: 1,
                reason: "no header".to_owned(),
            });
        }
        Ok((length, number))
    }

    /// Appends entries and waits until they are on disk. If that fails none of them counts.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        let text = text(entries.iter())?;
        let path = self.directory.join(FILE);
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a line in the middle would be damage.
            self.file.set_len(self.length).map_err(|source| failed("truncate", &path, source))?;
            return Err(failed("append to", &path, source));
        }
        self.length += text.len() as u64;
        self.lines += entries.len();
        Ok(())
    }

    /// Is most of it of no more use?
    pub(super) fn is_bloated(&self, live: usize) -> bool {
        self.lines > 2 * live + SLACK
    }

    /// Writes it anew with these entries.
    pub(super) fn compact(&mut self, entries: impl Iterator<Item = Entry>) -> Result<(), JournalError> {
        // The old file has no name any more, whatever comes now.
        (self.file, self.length, self.lines) = replace(&self.directory, entries)?;
        sync(&self.directory)
    }
}

fn text<'a>(entries: impl Iterator<Item = &'a Entry>) -> Result<Vec<u8>, JournalError> {
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, &Line::from(entry))?;
        text.push(b'\n');
    }
    Ok(text)
}

fn open_for_append(path: &Path, length: u64) -> Result<File, JournalError> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| failed("open", path, source))?;
    file.set_len(length).map_err(|source| failed("truncate", path, source))?;
    Ok(file)
}

/// Puts a new journal in the old one's place, all of it or nothing. [`sync`] makes it last. Returns it with its length in bytes
/// and lines.
fn replace(
    directory: &Path,
    entries: impl Iterator<Item = Entry>,
) -> Result<(File, u64, usize), JournalError> {
    let (path, new) = (directory.join(FILE), directory.join("journal.new"));
    let mut content = serde_json::to_vec(&Line::Version { version: VERSION })?;
    content.push(b'\n');
    let entries: Vec<_> = entries.collect();
    content.extend(text(entries.iter())?);
    let mut file = open_for_append(&new, 0)?;
    file.write_all(&content)
        .and_then(|()| file.sync_all())
        .map_err(|source| failed("write", &new, source))?;
    fs::rename(&new, &path).map_err(|source| failed("rename", &new, source))?;
    Ok((file, content.len() as u64, entries.len() + 1))
}

/// Makes names in the directory last, also if the machine loses power.
fn sync(directory: &Path) -> Result<(), JournalError> {
    let parent = File::open(directory).map_err(|source| failed("open", directory, source))?;
    parent.sync_all().map_err(|source| failed("sync", directory, source))
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> JournalError {
    JournalError::Io { operation, path: path.to_owned(), source }
}
