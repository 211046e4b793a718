//! Settings under /proc/sys/net, and who may set them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cni::{Code, Error};
use regex_lite::Regex;

use super::error::TuningError;

const NET: &str = "/proc/sys/net";
/// One regular expression a line; a setting must match one of them. Without the file every setting is allowed.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sysctl {
    /// As it was written.
    written: String,
    /// The same with the interface's name in it.
    key: String,
    path: PathBuf,
    value: String,
}

impl Sysctl {
    /// Reads `net.ipv4.conf.IFNAME.arp_filter`, or the same with slashes where a name has dots; or, as sysctl(8) does,
    /// `net.ipv4.conf.eth0/5.arp_filter`, where the dot of a name is a slash.
    pub(super) fn parse(key: &str, value: &str, if_name: &str) -> Result<Self, Error> {
        let dotted = key.chars().find(|c| matches!(c, '.' | '/')) == Some('.');
        let exchanged = |c: char| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        let slashed = if dotted { key.chars().map(exchanged).collect() } else { key.to_owned() };
        let wrong = |what: &str| Error::new(Code::InvalidConfig, format!("sysctl {key:?}: {what}"));
        let parts: Vec<&str> =
            slashed.split('/').map(|part| if part == "IFNAME" { if_name } else { part }).collect();
        if parts.first() != Some(&"net") || parts.len() < 2 {
            return Err(wrong("is not below net; allowed: net.…"));
        }
        if parts.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains('\0')) {
            return Err(wrong("has an empty part, \".\" or \"..\""));
        }
        if value.contains(['\n', '\0']) {
            return Err(wrong("has a value of more than one line"));
        }
        let path = parts.iter().skip(1).fold(PathBuf::from(NET), |path, part| path.join(part));
        let with_name = key.replace("IFNAME", if_name);
        Ok(Self { written: key.to_owned(), key: with_name, path, value: value.to_owned() })
    }

    /// Writes it, in the calling thread's network namespace.
    pub(super) fn set(&self) -> Result<(), TuningError> {
        fs::write(&self.path, &self.value).map_err(|source| self.failed("write", source))
    }

    /// What it is and what it should be, in the calling thread's network namespace.
    pub(super) fn compare(&self) -> Result<(String, String), TuningError> {
        let found = fs::read_to_string(&self.path).map_err(|source| self.failed("read", source))?;
        Ok((words(&found), words(&self.value)))
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> TuningError {
        TuningError::File { operation, path: self.path.clone(), source }
    }
}

/// Reads settings, and has each once, in the order of their paths. One that is written in two ways must have one value.
pub(super) fn distinct(
    written: &BTreeMap<String, String>,
    if_name: &str,
) -> Result<BTreeMap<PathBuf, Sysctl>, Error> {
    let mut distinct = BTreeMap::<PathBuf, Sysctl>::new();
    for (key, value) in written {
        let sysctl = Sysctl::parse(key, value, if_name)?;
        let Some(same) = distinct.get(&sysctl.path) else {
            distinct.insert(sysctl.path.clone(), sysctl);
            continue;
        };
        if words(&same.value) != words(value) {
            let both = format!("sysctl {:?} is {:?} and {key:?} is {value:?}", same.written, same.value);
            return Err(Error::new(Code::InvalidConfig, format!("{both}, which are one setting"))
                .details("allowed: one value for it"));
        }
    }
    Ok(distinct)
}

/// The kernel separates several values by tabs, people by blanks.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Refuses what the node's allowlist does not have. It speaks of `IFNAME` as configurations do, whatever the interface is
/// called.
pub(super) fn check_allowlist(sysctls: &[Sysctl]) -> Result<(), TuningError> {
    let path = Path::new(ALLOWLIST);
    let list = match fs::read_to_string(path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(TuningError::File { operation: "read", path: path.to_owned(), source }),
    };
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let patterns: Vec<Regex> = lines
        .map(|line| {
            Regex::new(line).map_err(|source| TuningError::Allowlist { line: line.to_owned(), source })
        })
        .collect::<Result<_, _>>()?;
    match sysctls.iter().find(|sysctl| !patterns.iter().any(|pattern| pattern.is_match(&sysctl.written))) {
        None => Ok(()),
        Some(sysctl) => Err(TuningError::NotAllowed(sysctl.written.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(key: &str) -> Result<String, String> {
        Sysctl::parse(key, "1", "eth0.5").map(|one| one.path.display().to_string()).map_err(|error| error.msg)
    }

    #[test]
    fn keys_become_paths_below_net() {
        assert_eq!(path("net.ipv4.conf.all.arp_filter").unwrap(), "/proc/sys/net/ipv4/conf/all/arp_filter");
        assert_eq!(
            path("net/ipv4/conf/IFNAME/arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"
        );
        assert_eq!(
            path("net.ipv4.conf.IFNAME.arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.100/arp_filter"
        );
    }

    #[test]
    fn keys_that_lead_elsewhere_are_refused() {
        for key in [
            "",
            "kernel.core_pattern",
            "net",
            "net/../kernel/core_pattern",
            "net..x",
            "net.//.kernel.core_pattern",
            "/net/x",
            "net/./x",
            "net.a\0b",
        ] {
            assert!(path(key).is_err(), "{key:?}");
        }
        assert!(Sysctl::parse("net.x", "1\n2", "eth0").is_err());
    }
}
