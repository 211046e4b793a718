//! Files of /proc/sys/net: what the kernel must be told beside links, addresses and rules.
//!
//! The files belong to the network namespace of the thread that opens them, so callers are inside the pod's.

use std::fs;
use std::io;
use std::path::PathBuf;

use net_types::IfName;

/// One setting and the value it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    path: PathBuf,
    value: &'static str,
    /// Some kernels are built without the feature, which then needs no switching off.
    is_optional: bool,
}

/// A setting that was changed, and what it was.
#[derive(Debug)]
pub(crate) struct Changed {
    path: PathBuf,
    before: String,
}

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub(crate) struct SettingError {
    path: PathBuf,
    source: io::Error,
}

/// What bridge and tap need; goes with them.
pub(crate) fn of_links(bridge: &IfName, tap: &IfName, has_v4: bool, has_v6: bool) -> Vec<Setting> {
    let bridge_v6 = |key: &str, value| Setting::v6(&format!("conf/{bridge}/{key}"), value);
    let mut settings = vec![
        // The tap is the bridge's: the pod itself says nothing on it.
        Setting::v6(&format!("conf/{tap}/disable_ipv6"), "1"),
        bridge_v6("disable_ipv6", if has_v6 { "0" } else { "1" }),
    ];
    if has_v4 {
        // A connection from 127.0.0.1 leaves by the bridge, with the source translated on the way out.
        settings.push(Setting::needed(format!("net/ipv4/conf/{bridge}/route_localnet"), "1"));
    }
    if has_v6 {
        // The guest is no router, whatever it announces.
        settings.push(bridge_v6("accept_ra", "0"));
        // Nobody else has the bridge's addresses: no second in which they cannot be used.
        settings.push(bridge_v6("accept_dad", "0"));
    }
    settings
}

/// What the whole pod needs, in this order.
pub(crate) fn of_pod(pod: &IfName, has_v4: bool, has_v6: bool) -> Result<Vec<Setting>, SettingError> {
    let mut settings = Vec::new();
    // Frames that a bridge filters as if they were routed are translated too early: a guest could not reach its own
    // pod's address, nor the pod the guest by ::1. Without br_netfilter there are no such files.
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        settings.push(Setting { is_optional: true, ..Setting::needed(format!("net/bridge/{key}"), "0") });
    }
    if has_v4 {
        settings.push(Setting::needed("net/ipv4/ip_forward".to_owned(), "1"));
    }
    if has_v6 {
        // A router takes no advertisements unless told to (2): the pod keeps the default route it has by one.
        let accept_ra = Setting::v6(&format!("conf/{pod}/accept_ra"), "2");
        if accept_ra.read()?.is_some_and(|value| value == "1") {
            settings.push(accept_ra);
        }
        settings.push(Setting { is_optional: false, ..Setting::v6("conf/all/forwarding", "1") });
    }
    Ok(settings)
}

impl Setting {
    fn needed(key: String, value: &'static str) -> Self {
        Self { path: PathBuf::from("/proc/sys").join(key), value, is_optional: false }
    }

    fn v6(key: &str, value: &'static str) -> Self {
        Self { is_optional: true, ..Self::needed(format!("net/ipv6/{key}"), value) }
    }

    /// Makes it so. None if it was so before, or there is nothing to be told.
    pub(crate) fn apply(&self) -> Result<Option<Changed>, SettingError> {
        let Some(before) = self.read()? else { return Ok(None) };
        if before == self.value {
            return Ok(None);
        }
        fs::write(&self.path, self.value).map_err(|source| self.error(source))?;
        Ok(Some(Changed { path: self.path.clone(), before }))
    }

    /// The file, what is in it, and what should be: for CHECK. None if there is nothing to be told.
    pub(crate) fn compare(&self) -> Result<Option<(String, String, &'static str)>, SettingError> {
        let found = self.read()?;
        Ok(found.map(|found| (self.path.display().to_string(), found, self.value)))
    }

    fn read(&self) -> Result<Option<String>, SettingError> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if self.is_optional && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.error(source)),
        }
    }

    fn error(&self, source: io::Error) -> SettingError {
        SettingError { path: self.path.clone(), source }
    }
}

impl Changed {
    /// Puts back what was there.
    pub(crate) fn undo(&self) -> Result<(), SettingError> {
        fs::write(&self.path, &self.before).map_err(|source| SettingError { path: self.path.clone(), source })
    }
}
