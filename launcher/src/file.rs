//! Files and directories that several VMs share.
//!
//! A VM that goes removes directories that are empty then ([`prune`]), perhaps just while another VM is about to
//! put something there; so whoever creates does it with [`in_directory`].

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Puts `bytes` at `path`, whose directory is made if need be: a reader, or a crash, finds the old file or the new.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = in_directory(path, || File::create(&new))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Makes the directory that `path` is in and runs `create`, which puts something there. Again if the directory was
/// removed in between.
pub(crate) fn in_directory<T>(path: &Path, mut create: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    const ATTEMPTS: u32 = 8;
    let mut attempt = 1;
    loop {
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| create());
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
            made => return made,
        }
    }
}

/// Removes `directory` and those it is in, up to and including `last`, as long as they are empty.
pub(crate) fn prune(directory: &Path, last: &Path) {
    for directory in directory.ancestors().take_while(|directory| directory.starts_with(last)) {
        // Not empty, or gone: both are as they should be.
        let _ = fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_stops_at_what_is_in_use_and_at_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let last = directory.path().join("run");
        replace(&last.join("a/b/file"), b"x").unwrap();
        replace(&last.join("c/file"), b"x").unwrap();
        prune(&last.join("a/b"), &last);
        assert!(last.join("a/b/file").exists());
        fs::remove_file(last.join("a/b/file")).unwrap();
        prune(&last.join("a/b"), &last);
        assert!(!last.join("a").exists() && last.join("c/file").exists());
        fs::remove_file(last.join("c/file")).unwrap();
        prune(&last.join("c"), &last);
        assert!(!last.exists() && directory.path().exists());
    }
}
