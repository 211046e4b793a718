//! Links that were added at run time, remembered across restarts: one file each, `<directory>/<name>.json`.
//!
//! A file is written before it is answered that its link was added, and removed after the link is, so that a daemon that
//! was killed comes back with all that it said it has, and a removal in which it was killed can be asked for again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::{LinkName, LinkSpec};

const VERSION: u32 = 1;

/// The directory.
#[derive(Debug)]
pub struct State {
    directory: PathBuf,
}

/// A file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct StateError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    ends: String,
}

impl State {
    /// Uses a directory, made if there is none.
    pub fn open(directory: PathBuf) -> Result<Self, StateError> {
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        Ok(Self { directory })
    }

    /// Remembers a link.
    pub fn save(&self, name: &LinkName, link: &LinkSpec) -> Result<(), StateError> {
        let path = self.path(name);
        let new = self.directory.join(format!("{name}.new"));
        let saved = Saved { version: VERSION, ends: link.text() };
        let text = serde_json::to_vec(&saved).map_err(io::Error::from).map_err(failed("write", &new))?;
        let mut file = File::create(&new).map_err(failed("create", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("rename", &new))
    }

    /// Forgets a link; says whether it was remembered.
    pub fn forget(&self, name: &LinkName) -> Result<bool, StateError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    /// All links that are remembered, by name. What is no link of ours is logged and left.
    pub fn load(&self) -> Result<Vec<LinkSpec>, StateError> {
        let mut links = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed("list", &self.directory))? {
            let path = entry.map_err(failed("list", &self.directory))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(link) => links.push(link),
                Err(error) => tracing::error!(path = %path.display(), error, "this is no link"),
            }
        }
        links.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(links)
    }

    fn path(&self, name: &LinkName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }
}

fn read(path: &Path) -> Result<LinkSpec, Box<dyn std::error::Error>> {
    let Saved { version, ends } = serde_json::from_slice(&fs::read(path)?)?;
    if version != VERSION {
        return Err(format!("it has version {version}; {VERSION} is known").into());
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(LinkSpec { name: Some(stem.parse()?), ..ends.parse()? })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_remembered_until_they_are_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::open(directory.path().join("new")).unwrap();
        let link: LinkSpec = "b=vhost-user:/s?queues=2,tap:t".parse().unwrap();
        let other: LinkSpec = "a.b=tap:x,tap:y".parse().unwrap();
        for link in [&link, &other] {
            state.save(link.name.as_ref().unwrap(), link).unwrap();
        }
        fs::write(directory.path().join("new/c.json"), "{}").unwrap();
        fs::write(directory.path().join("new/d.new"), "{").unwrap();
        assert_eq!(state.load().unwrap(), [other, link]);
        let name = "b".parse().unwrap();
        assert_eq!((state.forget(&name).unwrap(), state.forget(&name).unwrap()), (true, false));
        assert_eq!(state.load().unwrap().len(), 1);
    }
}
