//! What was done to each virtual function, on disk before it is done.
//!
//! One file per VF that is handed out, named by its PCI address, with who has it, what it was like before and what was
//! set. It is written and synced before the first change to the VF and removed after the last one is undone, so
//! whatever ends a plugin, DEL or GC can finish. The owner in it is the token that keeps a late DEL off the VF's next
//! owner. A file that cannot be read is set aside, never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cni::device_info::Device;
use net_types::{IfName, Mac, PciAddress};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::attribute::Attribute;
use crate::sysfs::Mode;

/// Where the node's journal is.
const DIRECTORY: &str = "/var/lib/guestwire/sriov";
/// Version of the files this release writes; it reads this one.
pub(crate) const VERSION: u32 = 1;

/// The journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    directory: PathBuf,
}

/// All about one VF that is handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// The kernel's identifier of the boot it was done in: VFs do not outlive one.
    pub(crate) boot: String,
    /// The VF.
    pub(crate) address: PciAddress,
    /// Its physical function.
    pub(crate) pf: PciAddress,
    /// Its number there.
    pub(crate) index: u32,
    /// How it was handed over.
    pub(crate) mode: Mode,
    /// Who has it.
    pub(crate) owner: Owner,
    /// The owner's network namespace.
    pub(crate) netns: Namespace,
    /// What was set on it.
    pub(crate) wanted: Vec<Attribute>,
    /// What those attributes were before.
    pub(crate) before: Vec<Attribute>,
    /// What its interface was like before, if it had one.
    pub(crate) link: Option<LinkBefore>,
    /// The device-info file that was written for it.
    pub(crate) device_info: Option<PathBuf>,
    /// False until ADD is done.
    pub(crate) attached: bool,
}

/// Who has a VF: an interface of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Owner {
    /// CNI_CONTAINERID.
    pub(crate) container: String,
    /// CNI_IFNAME.
    pub(crate) if_name: IfName,
    /// The network's name.
    pub(crate) network: String,
}

/// A network namespace that can be told from a later one of its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// CNI_NETNS.
    pub(crate) path: PathBuf,
    /// Device of the namespace's file.
    pub(crate) device: u64,
    /// Inode of the namespace's file.
    pub(crate) inode: u64,
}

/// An interface before it was handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkBefore {
    pub(crate) name: IfName,
    pub(crate) mac: Option<Mac>,
    /// In bytes.
    pub(crate) mtu: u32,
    pub(crate) up: bool,
}

/// A lock that is held until this is dropped, or its process ends.
#[derive(Debug)]
#[must_use = "the lock is free as soon as this is dropped"]
pub(crate) struct Lock {
    _file: File,
}

/// Why the journal could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
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
    /// A file that is none of ours, or was damaged.
    #[error("the journal of VF {address} is corrupt; it is now {}", set_aside.display())]
    Corrupt {
        /// The VF.
        address: PciAddress,
        /// Where the file was moved.
        set_aside: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A file of a later release.
    #[error("{} has version {found}, this release reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// What any version of an entry has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

impl Entry {
    /// The VF, as others are told of it.
    pub(crate) fn device(&self) -> Device {
        Device::Pci { address: self.address, pf: Some(self.pf) }
    }
}

impl Owner {
    /// True if both name one interface of one container, which is all that DEL knows.
    pub(crate) fn is(&self, container: &str, if_name: &str) -> bool {
        self.container == container && self.if_name.as_str() == if_name
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { container, if_name, network } = self;
        write!(f, "interface {if_name} of container {container} (network {network})")
    }
}

impl Journal {
    /// The node's own.
    pub(crate) fn host() -> Self {
        Self { directory: PathBuf::from(DIRECTORY) }
    }

    #[cfg(test)]
    pub(crate) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Waits until nobody else works on the VF or PF at `address`. Lock a VF before its PF.
    pub(crate) fn lock(&self, address: PciAddress) -> Result<Lock, JournalError> {
        let (file, path) = self.lock_file(address)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", &path)(errno.into()))?;
        Ok(Lock { _file: file })
    }

    /// As [`Journal::lock`]; none if somebody else works on it.
    pub(crate) fn try_lock(&self, address: PciAddress) -> Result<Option<Lock>, JournalError> {
        let (file, path) = self.lock_file(address)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed("lock", &path)(errno.into())),
        }
    }

    /// The file to lock. It stays: removing it would let two hold "the" lock, each on a file of its own.
    fn lock_file(&self, address: PciAddress) -> Result<(File, PathBuf), JournalError> {
        let path = self.directory.join(format!("{address}.lock"));
        fs::create_dir_all(&self.directory).map_err(failed("create", &self.directory))?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        Ok((file.map_err(failed("open", &path))?, path))
    }

    /// Writes an entry, durably: after a crash there is the old one or the new one.
    pub(crate) fn write(&self, entry: &Entry) -> Result<(), JournalError> {
        let path = self.path(entry.address);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(entry).map_err(io::Error::from);
        let text = text.map_err(failed("encode", &path))?;
        fs::create_dir_all(&self.directory).map_err(failed("create", &self.directory))?;
        let mut file = File::create(&new).map_err(failed("create", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        self.sync()
    }

    /// Removes a VF's entry, durably; none is fine.
    pub(crate) fn remove(&self, address: PciAddress) -> Result<(), JournalError> {
        let path = self.path(address);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    /// The names in a folder are durable when the folder is synced.
    fn sync(&self) -> Result<(), JournalError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(failed("sync", &self.directory))
    }

    /// A VF's entry.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] once: the file is set aside, so the next call finds none.
    pub(crate) fn read(&self, address: PciAddress) -> Result<Option<Entry>, JournalError> {
        let path = self.path(address);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let corrupt = |source| match self.set_aside(address) {
            Ok(set_aside) => JournalError::Corrupt { address, set_aside, source },
            Err(error) => error,
        };
        // A later version may have other members; only its number is sure to be there.
        let any: AnyVersion = serde_json::from_slice(&text).map_err(corrupt)?;
        if any.version != VERSION {
            return Err(JournalError::Version { path, found: any.version });
        }
        let entry: Entry = serde_json::from_slice(&text).map_err(corrupt)?;
        if entry.address != address {
            let error = serde::de::Error::custom(format!("it is about {}", entry.address));
            return Err(corrupt(error));
        }
        Ok(Some(entry))
    }

    fn set_aside(&self, address: PciAddress) -> Result<PathBuf, JournalError> {
        let path = self.path(address);
        for number in 1.. {
            let aside = self.directory.join(format!("{address}.corrupt-{number}"));
            if !aside.exists() {
                fs::rename(&path, &aside).map_err(failed("rename", &path))?;
                self.sync()?;
                tracing::error!("{} is corrupt and was moved to {}", path.display(), aside.display());
                return Ok(aside);
            }
        }
        Err(failed("rename", &path)(io::Error::other("no name is free")))
    }

    /// The addresses of all VFs that have an entry, in order.
    pub(crate) fn addresses(&self) -> Result<Vec<PciAddress>, JournalError> {
        let names = self.names()?;
        let mut addresses: Vec<PciAddress> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// The files that were set aside.
    pub(crate) fn corrupt(&self) -> Result<Vec<PathBuf>, JournalError> {
        let names = self.names()?;
        let corrupt = names.iter().filter(|name| name.contains(".corrupt-"));
        let mut paths: Vec<_> = corrupt.map(|name| self.directory.join(name)).collect();
        paths.sort();
        Ok(paths)
    }

    /// All readable entries, in order of their VFs, and the first failure to read one.
    pub(crate) fn all(&self) -> Result<(Vec<Entry>, Option<JournalError>), JournalError> {
        let (mut entries, mut failure) = (Vec::new(), None);
        for address in self.addresses()? {
            match self.read(address) {
                Ok(entry) => entries.extend(entry),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Ok((entries, failure))
    }

    fn names(&self) -> Result<Vec<String>, JournalError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.directory)(error)),
        };
        entries
            .map(|entry| {
                let entry = entry.map_err(failed("list", &self.directory))?;
                Ok(entry.file_name().to_string_lossy().into_owned())
            })
            .collect()
    }

    fn path(&self, address: PciAddress) -> PathBuf {
        self.directory.join(format!("{address}.json"))
    }
}

/// The kernel's identifier of this boot.
pub(crate) fn this_boot() -> Result<String, JournalError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(failed("read", path))?.trim_end().to_owned())
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
