//! The configuration file: what the command line says, in YAML.
//!
//! ```yaml
//! cores: 2-3
//! control: /run/guestwire/vhost.sock
//! metrics: 127.0.0.1:9105
//! links:
//!   - vm1=vhost-user:/run/vm1.sock?queues=2,af_xdp:eth1?mac=02:00:00:00:00:07
//!   - vhost-user:/run/vm2.sock,tap:tap2
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use net_types::{ListenError, listen_address};
use serde::Deserialize;

use crate::cores::{Cores, CoresError};
use crate::spec::{LinkSpec, SpecError};

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// As much of a line as is repeated with what is wrong with it, in characters.
const MAX_QUOTED: usize = 100;

/// A configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// CPUs to run on; `None`: one worker anywhere.
    pub cores: Option<Cores>,
    /// The control socket.
    pub control: Option<PathBuf>,
    /// Where links that were added at run time are remembered.
    pub state: Option<PathBuf>,
    /// Where metrics and probes are served.
    pub metrics: Option<SocketAddr>,
    /// Links from the start.
    pub links: Vec<LinkSpec>,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is too long.
    #[error("{} has more than {MAX_SIZE} bytes", .0.display())]
    Size(PathBuf),
    /// It is no YAML, or has fields that do not exist.
    #[error("{0}")]
    Yaml(String),
    /// What is wrong with a file.
    #[error("{}", path.display())]
    In {
        /// The file.
        path: PathBuf,
        /// What.
        source: Box<ConfigError>,
    },
    /// A link is not one.
    #[error("links[{index}]")]
    Link {
        /// Which.
        index: usize,
        /// What is wrong with it.
        source: SpecError,
    },
    /// The CPUs.
    #[error("cores")]
    Cores(#[from] CoresError),
    /// Where metrics are served.
    #[error("metrics")]
    Metrics(#[from] ListenError),
    /// A path that is none.
    #[error("{0}: is empty; allowed: a path")]
    Empty(&'static str),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    cores: Option<String>,
    control: Option<PathBuf>,
    state: Option<PathBuf>,
    metrics: Option<String>,
    links: Vec<String>,
}

impl Config {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_SIZE {
            return Err(ConfigError::Size(path.to_owned()));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(failed)?)
            .map_err(|error| ConfigError::In { path: path.to_owned(), source: Box::new(error) })
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        // An empty document is an empty configuration.
        let raw: Option<Raw> =
            serde_saphyr::from_str(text).map_err(|error| ConfigError::Yaml(told(&error, text)))?;
        let Raw { cores, control, state, metrics, links } = raw.unwrap_or_default();
        let link = |(index, text): (usize, String)| {
            text.parse().map_err(|source| ConfigError::Link { index, source })
        };
        for (field, path) in [("control", &control), ("state", &state)] {
            if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(ConfigError::Empty(field));
            }
        }
        Ok(Self {
            cores: cores.map(|cores| cores.parse()).transpose()?,
            control,
            state,
            metrics: metrics.as_deref().map(listen_address).transpose()?,
            links: links.into_iter().enumerate().map(link).collect::<Result<_, _>>()?,
        })
    }
}

/// What is wrong with a text, on one line: where, what, and how that line reads.
fn told(error: &serde_saphyr::Error, text: &str) -> String {
    let told = error.without_snippet().to_string();
    // What follows is for programs that use the parser.
    let told = told.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    let at = error.location().filter(|location| location.line() > 0);
    let Some(location) = at else { return told.to_owned() };
    let (number, column) = (location.line(), location.column());
    let index = usize::try_from(number).unwrap_or(usize::MAX).saturating_sub(1);
    let line: String = text.lines().nth(index).unwrap_or_default().trim().chars().take(MAX_QUOTED).collect();
    let what = told.strip_suffix(&format!(" at line {number}, column {column}")).unwrap_or(told);
    format!("line {number}, column {column}: {what}: {line:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_command_line_says() {
        let text = "cores: 0-1\ncontrol: /run/c\nmetrics: 127.0.0.1:9\nlinks:\n  - a=tap:x,tap:y\n  - tap:z,vhost-user:/s?mtu=9000\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.cores, Some(Cores(vec![0, 1])));
        assert_eq!(config.control, Some("/run/c".into()));
        assert_eq!(config.metrics, Some("127.0.0.1:9".parse().unwrap()));
        let links: Vec<_> = config.links.iter().map(LinkSpec::text).collect();
        assert_eq!(links, ["tap:x,tap:y", "tap:z,vhost-user:/s?mtu=9000"]);
        assert_eq!(config.links[0].name, Some("a".parse().unwrap()));
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| {
            let error = Config::parse(text).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error}: {source}")
        };
        assert!(message("links: [tap:a]").contains("links[0]: link \"tap:a\" has not two ends"));
        assert!(message("cores: x").contains("core list \"x\""));
        assert!(message("core: 1").contains("unknown field `core`, expected one of cores, control, state, "));
        let twice = message("cores: 0\ncores: 1");
        assert!(twice.starts_with("line 2, column 1: duplicate mapping key: cores: \"cores: 1\""), "{twice}");
        for value in ["nowhere", "9105"] {
            let expected = format!("metrics: {value:?} is not ADDRESS:PORT");
            assert!(message(&format!("metrics: {value:?}")).contains(&expected), "{value}");
        }
        assert!(message("control: ''").contains("control: is empty; allowed: a path"));
        assert!(message("state: ''").contains("state: is empty; allowed: a path"));
        // Of another kind: the line, with its key, and what would be right.
        for (text, expected) in [
            ("cores: [0]", "expected string"),
            ("control: {a: b}", "expected string"),
            ("links: tap:a,tap:b", "expected sequence"),
            ("links: [[a]]", "expected string"),
            ("- a", "expected mapping"),
        ] {
            let told = message(text);
            let line = format!("{text:?}");
            assert!(told.starts_with("line 1, column ") && told.contains(expected), "{told}");
            assert!(told.contains(&line) && told.lines().count() == 1, "{told}");
        }
    }
}
