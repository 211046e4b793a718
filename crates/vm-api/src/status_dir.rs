//! The VMI status directory: `<root>/<namespace>/<name>.json`, one [`Vmi`] each.
//!
//! The supervisor of a VM is the one writer of its file; anybody may read. A file is replaced whole (written under
//! a hidden name, synced, renamed), so a reader sees the old object or the new one, never half of one. Readers
//! skip names that begin with a dot. Watching for changes is the reader's business.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::names::{NameError, subdomain};
use crate::vmi::Vmi;

/// A status directory.
#[derive(Debug, Clone)]
pub struct StatusDir {
    root: PathBuf,
}

/// Why a status could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum StatusDirError {
    /// A name that could leave the directory, or that Kubernetes would refuse.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The file system said no.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
    /// The file is no VMI.
    #[error("{} does not hold a VirtualMachineInstance in JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

impl StatusDir {
    /// The directory at `root`; it need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the directory is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the status of one VM is.
    pub fn path(&self, namespace: &str, name: &str) -> Result<PathBuf, StatusDirError> {
        Ok(self.root.join(subdomain(namespace)?).join(format!("{}.json", subdomain(name)?)))
    }

    /// Replaces the status of a VM.
    pub fn write(&self, vmi: &Vmi) -> Result<(), StatusDirError> {
        let path = self.path(&vmi.metadata.namespace, &vmi.metadata.name)?;
        let directory = self.root.join(&vmi.metadata.namespace);
        let hidden = hidden(&path);
        let mut text = serde_json::to_vec_pretty(vmi)
            .map_err(|source| StatusDirError::Json { path: path.clone(), source })?;
        text.push(b'\n');
        let mut file = create_below(&directory, &hidden)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(io_error("write", &hidden))?;
        fs::rename(&hidden, &path).map_err(io_error("rename into place", &path))
    }

    /// The status of a VM; `None` if there is none.
    pub fn read(&self, namespace: &str, name: &str) -> Result<Option<Vmi>, StatusDirError> {
        read_file(&self.path(namespace, name)?)
    }

    /// Removes the status of a VM, and what a writer that was killed left of one; and its namespace's directory when it was the
    /// last. Absent is fine.
    pub fn remove(&self, namespace: &str, name: &str) -> Result<(), StatusDirError> {
        let path = self.path(namespace, name)?;
        for path in [hidden(&path), path] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        let directory = self.root.join(namespace);
        match fs::remove_dir(&directory) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                Err(io_error("remove", &directory)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads one status file; `None` if it is gone.
pub fn read_file(path: &Path) -> Result<Option<Vmi>, StatusDirError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StatusDirError::Json { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// Creates `file` in `directory`, which another VM's [`StatusDir::remove`] may take away between the two steps.
fn create_below(directory: &Path, file: &Path) -> Result<File, StatusDirError> {
    const ATTEMPTS: u32 = 8;
    let mut attempt = 1;
    loop {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        match File::create(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            created => return created.map_err(io_error("create", file)),
        }
    }
}

/// What a status is written as before it gets its name.
fn hidden(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}"))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StatusDirError {
    let path = path.to_owned();
    move |source| StatusDirError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmi::{Metadata, Phase, Spec, Status};

    fn vmi(namespace: &str, name: &str) -> Vmi {
        Vmi {
            api_version: "kubevirt.io/v1".into(),
            kind: "VirtualMachineInstance".into(),
            metadata: Metadata { name: name.into(), namespace: namespace.into(), ..Metadata::default() },
            spec: Spec::default(),
            status: Status { phase: Phase::Running, ..Status::default() },
        }
    }

    #[test]
    fn what_is_written_is_read_and_removed_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let dir = StatusDir::new(root.path());
        assert_eq!(dir.read("ns", "vm1").unwrap(), None);
        dir.write(&vmi("ns", "vm1")).unwrap();
        assert_eq!(dir.read("ns", "vm1").unwrap(), Some(vmi("ns", "vm1")));
        dir.remove("ns", "vm1").unwrap();
        dir.remove("ns", "vm1").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_too() {
        let root = tempfile::tempdir().unwrap();
        let dir = StatusDir::new(root.path());
        dir.write(&vmi("ns", "vm1")).unwrap();
        fs::write(root.path().join("ns/.vm1.json"), "{").unwrap();
        dir.remove("ns", "vm1").unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        let dir = StatusDir::new("status");
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "UPPER", "a\0b", "-a", "a-"] {
            assert!(matches!(dir.path("ns", name), Err(StatusDirError::Name(_))), "{name:?}");
            assert!(matches!(dir.path(name, "vm"), Err(StatusDirError::Name(_))), "{name:?}");
        }
    }
}
