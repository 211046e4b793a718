//! Who owns a VM: an exclusive `flock` on `<run>/locks/<key>`.
//!
//! The lock belongs to the open file, which `up` hands on to the supervisor, and the kernel takes it away when the
//! last of them dies, however that happens: a VM whose lock is free has no supervisor. The file holds its owner's
//! process id. It is removed by its owner; whoever opened it before notices and opens the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::file;

/// The lock of one VM, held.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

/// What came of trying to lock.
#[derive(Debug)]
pub(crate) enum Locking {
    /// Nobody had it.
    Locked(Lock),
    /// Somebody has it.
    Busy(Holder),
}

/// The process that holds a lock.
#[derive(Debug)]
pub(crate) struct Holder {
    /// Its id.
    pub(crate) pid: i32,
    handle: Option<OwnedFd>,
}

/// Why a lock could not be tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub(crate) struct LockError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Lock {
    /// Tries to lock `path`, which is made if need be. The caller becomes its owner.
    pub(crate) fn try_lock(path: &Path) -> Result<Locking, LockError> {
        let failed = |operation| move |source| LockError { operation, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        loop {
            let file = file::in_directory(path, || options.open(path)).map_err(failed("open"))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_at(&file, path).map_err(failed("inspect"))? => {
                    let mut lock = Self { file, path: path.to_owned() };
                    lock.sign()?;
                    return Ok(Locking::Locked(lock));
                }
                // Its former owner has removed it meanwhile.
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if let Some(holder) = Holder::of(file).map_err(failed("read"))? {
                        return Ok(Locking::Busy(holder));
                    }
                }
                Err(errno) => return Err(failed("lock")(errno.into())),
            }
        }
    }

    /// Takes over a lock that the parent process held, and signs it.
    pub(crate) fn inherited(file: OwnedFd, path: &Path) -> Result<Self, LockError> {
        let mut lock = Self { file: file.into(), path: path.to_owned() };
        lock.sign()?;
        Ok(lock)
    }

    /// Gives the lock back and removes its file; the run directory, too, if it was the last thing there.
    pub(crate) fn release(self) -> Result<(), LockError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(LockError { operation: "remove", path: self.path, source });
            }
            _ => {}
        }
        if let Some((locks, run)) = self.path.parent().and_then(|locks| Some((locks, locks.parent()?))) {
            file::prune(locks, run);
        }
        Ok(())
    }

    /// Writes down who holds it.
    fn sign(&mut self) -> Result<(), LockError> {
        let text = format!("{}\n", std::process::id());
        let signed = self
            .file
            .rewind()
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.set_len(text.len() as u64));
        signed.map_err(|source| LockError { operation: "write", path: self.path.clone(), source })
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Holder {
    /// Reads who holds the lock on `file`; none if it is free by now.
    fn of(mut file: File) -> io::Result<Option<Self>> {
        let mut text = String::new();
        (&mut file).take(32).read_to_string(&mut text)?;
        let pid = text.trim().parse().unwrap_or(0);
        let handle = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Still locked after the process was looked up: it is the holder and not a later process with its id.
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(Self { pid, handle })),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal. One that is gone is fine.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(handle) = &self.handle else { return Ok(()) };
        match pidfd_send_signal(handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A descriptor that becomes readable when the process ends; none if it has ended.
    pub(crate) fn handle(&self) -> Option<BorrowedFd<'_>> {
        self.handle.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_owner_who_can_be_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("locks").join("ns_vm");
        let Locking::Locked(lock) = Lock::try_lock(&path).unwrap() else { panic!("busy") };
        let Locking::Busy(holder) = Lock::try_lock(&path).unwrap() else { panic!("locked twice") };
        assert_eq!(holder.pid, i32::try_from(std::process::id()).unwrap());
        assert!(holder.handle().is_some());
        lock.release().unwrap();
        assert!(!path.exists());
        assert!(matches!(Lock::try_lock(&path).unwrap(), Locking::Locked(_)));
    }

    #[test]
    fn a_lock_outlives_its_file_for_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ns_vm");
        let Locking::Locked(first) = Lock::try_lock(&path).unwrap() else { panic!("busy") };
        fs::remove_file(&path).unwrap();
        assert!(matches!(Lock::try_lock(&path).unwrap(), Locking::Locked(_)));
        drop(first);
    }

    #[test]
    fn a_lock_handed_on_stays_held() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ns_vm");
        let Locking::Locked(lock) = Lock::try_lock(&path).unwrap() else { panic!("busy") };
        let heir = Lock::inherited(lock.as_fd().try_clone_to_owned().unwrap(), &path).unwrap();
        drop(lock);
        assert!(matches!(Lock::try_lock(&path).unwrap(), Locking::Busy(_)));
        drop(heir);
        assert!(matches!(Lock::try_lock(&path).unwrap(), Locking::Locked(_)));
    }
}
