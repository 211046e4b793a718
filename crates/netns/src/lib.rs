//! Linux network namespaces: open, enter and return, make and remove.
//!
//! A [`NetNs`] is a handle that keeps a namespace alive. [`NetNs::enter`] moves the calling thread into it and gives
//! a guard that moves it back. Sockets and files of `/proc/sys/net` belong to the namespace that the thread was in
//! when they were opened, so callers enter, open, leave, and use what they opened afterwards.
//!
//! Only network namespaces are handled here, and only threads: a process's other threads are not touched.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, process, thread};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs;

/// The calling thread's own namespace, as a file.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
}

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// There is nothing to open, or no right to.
    #[error("cannot open network namespace {}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file, but not one of the kernel's namespace file system.
    #[error("{} is not a network namespace", .0.display())]
    NotANamespace(PathBuf),
    /// `setns` failed.
    #[error("cannot enter network namespace {}", path.display())]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A new namespace could not be made or given its name.
    #[error("cannot create network namespace {}", path.display())]
    Create {
        /// The name it should have had.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The name could not be removed.
    #[error("cannot remove network namespace {}", path.display())]
    Remove {
        /// The name.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NetNsError {
    /// True if the namespace is simply not there (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            // What remains of a bind mount whose namespace went with a reboot is an empty plain file.
            Self::NotANamespace(_) => true,
            Self::Enter { .. } | Self::Create { .. } | Self::Remove { .. } => false,
        }
    }
}

impl NetNs {
    /// Opens the namespace that `path` names: `/run/netns/NAME`, `/proc/PID/ns/net` …
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetNsError> {
        let path = path.into();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(source) => return Err(NetNsError::Open { path, source }),
        };
        match statfs::fstatfs(&file) {
            Ok(stat) if stat.filesystem_type() == statfs::NSFS_MAGIC => Ok(Self { file, path }),
            Ok(_) => Err(NetNsError::NotANamespace(path)),
            Err(errno) => Err(NetNsError::Open { path, source: errno.into() }),
        }
    }

    /// The namespace the calling thread is in.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(OWN)
    }

    /// Makes a new namespace and names it by a bind mount on `path`, which must not exist.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, NetNsError> {
        let path = path.into();
        if let Err(source) = create_at(&path) {
            return Err(NetNsError::Create { path, source });
        }
        Self::open(path)
    }

    /// Takes the name of a namespace away; the namespace goes when nobody uses it. Absent is fine.
    pub fn remove(path: &Path) -> Result<(), NetNsError> {
        let failed = |source| NetNsError::Remove { path: path.to_owned(), source };
        match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
            // EINVAL: the mount is gone already, the file it was on is not.
            Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode of the namespace: equal for two handles exactly if they are one namespace.
    pub fn id(&self) -> Result<(u64, u64), NetNsError> {
        let metadata =
            self.file.metadata().map_err(|source| NetNsError::Open { path: self.path.clone(), source })?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Moves the calling thread into the namespace until the guard is dropped.
    pub fn enter(&self) -> Result<Entered, NetNsError> {
        let origin = Self::current()?;
        self.set()?;
        Ok(Entered { origin, not_send: PhantomData })
    }

    /// Runs `work` inside the namespace, on the calling thread.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetNsError> {
        let _inside = self.enter()?;
        Ok(work())
    }

    fn set(&self) -> Result<(), NetNsError> {
        nix::sched::setns(&self.file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetNsError::Enter { path: self.path.clone(), source: errno.into() })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The calling thread is in another namespace; dropping this takes it back. Not `Send`: the way back is the
/// thread's own.
#[derive(Debug)]
#[must_use = "the thread returns to its namespace as soon as this is dropped"]
pub struct Entered {
    origin: NetNs,
    not_send: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = self.origin.set() {
            // A thread lost in a pod's namespace would apply the host's configuration to the pod.
            eprintln!("{error}: the thread cannot return, giving up");
            process::abort();
        }
    }
}

fn create_at(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(path)?;
    // A thread of its own is in the new namespace only as long as it takes to name it.
    let maker = thread::scope(|scope| scope.spawn(|| unshare_and_bind(path)).join());
    let made = maker.unwrap_or_else(|_panic| Err(io::Error::other("the thread that makes it panicked")));
    made.inspect_err(|_error| {
        // The name is ours, made above; what matters to the caller is why it stayed without a namespace.
        let _ = fs::remove_file(path);
    })
}

fn unshare_and_bind(path: &Path) -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
    nix::mount::mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        (directory, path)
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        let error = NetNs::open("/proc/self/status").unwrap_err();
        assert!(matches!(error, NetNsError::NotANamespace(_)));
        assert!(NetNs::open("/nowhere/at/all").unwrap_err().is_gone());
    }

    #[test]
    fn a_guard_returns_the_thread_even_when_the_work_fails() {
        let (_directory, path) = fresh("guard");
        let made = NetNs::create(&path).unwrap();
        let home = NetNs::current().unwrap().id().unwrap();
        assert_ne!(made.id().unwrap(), home);
        let inside = made.run(|| NetNs::current().unwrap().id().unwrap()).unwrap();
        assert_eq!(inside, made.id().unwrap());
        let failed: Result<(), String> = (|| {
            let _inside = made.enter().map_err(|error| error.to_string())?;
            Err("work".to_owned())
        })();
        assert_eq!(failed, Err("work".to_owned()));
        assert_eq!(NetNs::current().unwrap().id().unwrap(), home);
        NetNs::remove(&path).unwrap();
    }

    #[test]
    fn a_removed_name_is_gone_and_may_be_removed_again() {
        let (_directory, path) = fresh("removed");
        NetNs::create(&path).unwrap();
        assert!(matches!(NetNs::create(&path), Err(NetNsError::Create { .. })));
        NetNs::remove(&path).unwrap();
        NetNs::remove(&path).unwrap();
        assert!(NetNs::open(&path).unwrap_err().is_gone());
    }
}
