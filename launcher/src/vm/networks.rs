//! NetworkAttachmentDefinitions of a directory, by name.
//!
//! A file that cannot be read is another VM's problem until this VM's network is missing: it is logged, and named
//! in the error then. A network's configuration is read when a VM asks for it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use cni::runtime::{NetworkConfigError, NetworkConfigList};
use serde_json::Value;
use vm_api::nad::{self, Nad, NadError, NadName};
use vm_api::yaml::{self, YamlError};

/// The definitions found.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    found: BTreeMap<NadName, Vec<Found>>,
    unread: Vec<PathBuf>,
}

#[derive(Debug)]
struct Found {
    file: PathBuf,
    config: String,
    resource: Option<String>,
}

/// Why a network is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworksError {
    /// The directory cannot be listed.
    #[error("cannot list {}", directory.display())]
    List {
        /// Which.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing has that name.
    #[error("there is no NetworkAttachmentDefinition {name}{hint}")]
    NotFound {
        /// The name.
        name: NadName,
        /// What might help.
        hint: Hint,
    },
    /// Two have.
    #[error("NetworkAttachmentDefinition {name} is in {} and in {}", files.0.display(), files.1.display())]
    Twice {
        /// The name.
        name: NadName,
        /// Where.
        files: (PathBuf, PathBuf),
    },
    /// Its configuration is none.
    #[error("NetworkAttachmentDefinition {name} in {}", file.display())]
    Config {
        /// The name.
        name: NadName,
        /// Where.
        file: PathBuf,
        /// What is wrong.
        source: NetworkConfigError,
    },
}

/// What might help to find a network.
#[derive(Debug)]
pub(crate) struct Hint {
    known: Vec<NadName>,
    unread: Vec<PathBuf>,
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known: Vec<_> = self.known.iter().take(8).map(NadName::to_string).collect();
        match known.as_slice() {
            [] => write!(f, "; none is known (--nad-dir)")?,
            known => write!(f, "; known: {}", known.join(", "))?,
        }
        for file in &self.unread {
            write!(f, "; {} could not be read", file.display())?;
        }
        Ok(())
    }
}

/// Why a file is left out.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Yaml(#[from] YamlError),
    #[error(transparent)]
    Nad(#[from] NadError),
}

impl Networks {
    /// Adds the definitions in the `*.yaml`, `*.yml` and `*.json` files of `directory`.
    pub(crate) fn add_directory(&mut self, directory: &Path) -> Result<(), NetworksError> {
        let failed = |source| NetworksError::List { directory: directory.to_owned(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            files.push(entry.map_err(failed)?.path());
        }
        files.sort();
        let wanted = |file: &&PathBuf| {
            file.extension()
                .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
        };
        for file in files.iter().filter(wanted) {
            if let Err(error) = self.add_file(file) {
                tracing::warn!(file = %file.display(), "left out: {}", crate::chain(&error));
                self.unread.push(file.clone());
            }
        }
        Ok(())
    }

    /// Adds one definition that was read from `file`.
    pub(crate) fn add(&mut self, file: &Path, nad: Nad) {
        let Nad { name, config, resource } = nad;
        self.found.entry(name).or_default().push(Found { file: file.to_owned(), config, resource });
    }

    fn add_file(&mut self, file: &Path) -> Result<(), FileError> {
        for document in yaml::documents(&fs::read_to_string(file)?)? {
            if document.get("kind").and_then(Value::as_str) == Some(nad::KIND) {
                self.add(file, Nad::try_from(document)?);
            }
        }
        Ok(())
    }

    /// What the devices of network `name` are handed out as, if its definition says.
    pub(crate) fn resource(&self, name: &NadName) -> Option<&str> {
        self.found.get(name)?.first()?.resource.as_deref()
    }

    /// The network called `name`. A configuration without a name gets the definition's, as from Multus.
    pub(crate) fn network(&self, name: &NadName) -> Result<NetworkConfigList, NetworksError> {
        let Found { file, config, resource: _ } = match self.found.get(name).map(Vec::as_slice) {
            Some([only]) => only,
            Some([first, second, ..]) => {
                let files = (first.file.clone(), second.file.clone());
                return Err(NetworksError::Twice { name: name.clone(), files });
            }
            Some([]) | None => {
                let hint = Hint { known: self.found.keys().cloned().collect(), unread: self.unread.clone() };
                return Err(NetworksError::NotFound { name: name.clone(), hint });
            }
        };
        parse(config, &name.name).map_err(|source| NetworksError::Config {
            name: name.clone(),
            file: file.clone(),
            source,
        })
    }
}

fn parse(config: &str, default_name: &str) -> Result<NetworkConfigList, NetworkConfigError> {
    let mut value: Value =
        serde_json::from_str(config).map_err(|error| NetworkConfigError::Json(error.to_string()))?;
    if let Value::Object(fields) = &mut value {
        fields.entry("name").or_insert_with(|| default_name.into());
    }
    NetworkConfigList::try_from(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nad(name: &str, config: &str) -> String {
        let head = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition";
        format!("---\n{head}\nmetadata: {{name: {name}}}\nspec: {{config: '{config}'}}\n")
    }

    fn networks(files: &[(&str, String)]) -> (tempfile::TempDir, Networks) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let mut networks = Networks::default();
        networks.add_directory(directory.path()).unwrap();
        (directory, networks)
    }

    fn message(networks: &Networks, name: &str) -> String {
        let name = NadName::parse(name, "default").unwrap();
        crate::chain(&networks.network(&name).unwrap_err()).to_string()
    }

    #[test]
    fn definitions_are_found_in_yaml_and_json() {
        let json = r#"{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition",
            "metadata":{"name":"c","namespace":"vms"},"spec":{"config":"{\"name\":\"own\",\"type\":\"x\"}"}}"#;
        let both =
            nad("a", r#"{"type":"cnv-bridge"}"#) + &nad("b", r#"{"plugins":[{"type":"x"},{"type":"y"}]}"#);
        let (_directory, networks) =
            networks(&[("ab.yaml", both), ("c.json", json.to_owned()), ("d.txt", "[".into())]);
        let network = |name| networks.network(&NadName::parse(name, "default").unwrap()).unwrap();
        assert_eq!((network("a").name(), network("a").plugins()[0].kind()), ("a", "cnv-bridge"));
        assert_eq!(network("b").plugins().len(), 2);
        assert_eq!(network("vms/c").name(), "own");
    }

    #[test]
    fn what_is_missing_or_broken_is_named_with_its_file() {
        let (_directory, networks) = networks(&[
            ("a.yaml", nad("a", r#"{"bridge":"br1"}"#) + &nad("twice", r#"{"type":"x"}"#)),
            ("b.yaml", nad("b", "no json") + &nad("twice", r#"{"type":"x"}"#)),
            ("broken.yaml", "a: [".into()),
        ]);
        let missing = message(&networks, "other/a");
        assert!(
            missing.contains("no NetworkAttachmentDefinition other/a; known: default/a, default/b"),
            "{missing}"
        );
        assert!(missing.contains("broken.yaml could not be read"), "{missing}");
        let typeless = message(&networks, "a");
        assert!(
            typeless.contains("default/a in ") && typeless.contains("a.yaml: type is \"\""),
            "{typeless}"
        );
        assert!(message(&networks, "b").contains("not JSON"));
        assert!(message(&networks, "twice").contains("b.yaml"));
    }
}
