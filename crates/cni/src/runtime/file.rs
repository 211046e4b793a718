//! A network in a file, with the plugins in the folder beside it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde_json::{Map, Value};

use super::network::{NetworkConfigError, NetworkConfigList, switch};
use crate::request::is_identifier;

/// Why a file is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFileError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no CNI configuration.
    #[error("{}", path.display())]
    Config {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: NetworkConfigError,
    },
}

impl NetworkConfigList {
    /// Reads a file as of /etc/cni/net.d: a list of plugins or a single one. To a list belong also the plugins in the `*.conf`
    /// files of the folder beside it that has the network's name, in the order of their names, unless
    /// `loadOnlyInlinedPlugins` is set (specification 1.1).
    ///
    /// # Errors
    /// Names the file that cannot be read or is no configuration.
    pub fn read(path: &Path) -> Result<Self, NetworkFileError> {
        let wrong = |source| NetworkFileError::Config { path: path.to_owned(), source };
        let mut config = object(path)?;
        let only_inlined = switch(&config, "loadOnlyInlinedPlugins").map_err(wrong)?;
        let is_list = config.contains_key("plugins") || !config.contains_key("type");
        let name = config.get("name").and_then(Value::as_str).filter(|name| is_identifier(name));
        if let (true, false, Some(name)) = (is_list, only_inlined, name) {
            let beside = beside(&path.with_file_name(name))?;
            if !beside.is_empty() {
                let plugins = config.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
                // What is no list is refused below.
                if let Value::Array(plugins) = plugins {
                    plugins.extend(beside);
                }
            }
        }
        Self::try_from(Value::Object(config)).map_err(wrong)
    }
}

/// The plugins in a folder; none if there is no folder.
fn beside(folder: &Path) -> Result<Vec<Value>, NetworkFileError> {
    let failed = |source| NetworkFileError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension() == Some(OsStr::new("conf")) && path.is_file());
    paths.sort_unstable();
    paths.iter().map(|path| object(path).map(Value::Object)).collect()
}

fn object(path: &Path) -> Result<Map<String, Value>, NetworkFileError> {
    let read = |source| NetworkFileError::Read { path: path.to_owned(), source };
    let wrong = |source| NetworkFileError::Config { path: path.to_owned(), source };
    let text = fs::read(path).map_err(read)?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(wrong(NetworkConfigError::NotAnObject)),
        Err(error) => Err(wrong(NetworkConfigError::Json(error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds of the plugins of a network in `net.conflist`, beside a folder `n` with these files.
    fn kinds(list: &str, files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("n")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join("n").join(name), text).unwrap();
        }
        let path = folder.path().join("net.conflist");
        fs::write(&path, list).unwrap();
        let network = NetworkConfigList::read(&path).map_err(|error| telemetry::chain(&error).to_string())?;
        Ok(network.plugins().iter().map(|plugin| plugin.kind().to_owned()).collect())
    }

    #[test]
    fn plugins_beside_a_list_come_after_its_own_in_the_order_of_their_files() {
        let files = [("20.conf", r#"{"type":"c"}"#), ("10.conf", r#"{"type":"b"}"#), ("note.txt", "x")];
        for (list, expected) in [
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, &["a", "b", "c"][..]),
            (r#"{"name":"n","loadOnlyInlinedPlugins":false,"plugins":[]}"#, &["b", "c"]),
            (r#"{"name":"n"}"#, &["b", "c"]),
            (r#"{"name":"n","loadOnlyInlinedPlugins":true,"plugins":[{"type":"a"}]}"#, &["a"]),
            (r#"{"name":"other","plugins":[{"type":"a"}]}"#, &["a"]),
            (r#"{"name":"n","type":"a"}"#, &["a"]),
        ] {
            assert_eq!(kinds(list, &files).unwrap(), expected, "{list}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        for (list, files, message) in [
            (r#"{"name":"n","plugins":[]}"#, &[][..], "net.conflist: plugins is empty"),
            (r#"{"name":"..","plugins":[{"type":"a"}]}"#, &[], "name is \"..\""),
            (r#"{"name":"n","plugins":{}}"#, &[("1.conf", r#"{"type":"b"}"#)], "plugins must be a list"),
            (r#"{"name":"n","loadOnlyInlinedPlugins":7}"#, &[], "loadOnlyInlinedPlugins must be"),
            (
                r#"{"name":"n"}"#,
                &[("1.conf", "[]")],
                "n/1.conf: the network configuration is not a JSON object",
            ),
            (r#"{"name":"n"}"#, &[("1.conf", "{}")], "plugins[0].type is \"\""),
        ] {
            let error = kinds(list, files).unwrap_err();
            assert!(error.contains(message), "{list}: {error}");
        }
    }
}
