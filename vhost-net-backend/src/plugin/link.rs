//! The name of an attachment's link, and the link as the daemon is asked for it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use net_types::{IfName, Mac};
use sha2::{Digest as _, Sha256};

use super::config::Config;
use crate::spec::{LinkName, SpecError};

/// Begins every name of ours.
const PREFIX: &str = "cni";

/// What an attachment's link is called: `cni-<network>-<container and interface>`, both hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

impl Name {
    /// The name for interface `if_name` of `container` on `network`.
    pub(super) fn of(network: &str, container: &str, if_name: &str) -> Self {
        // Neither can have a slash.
        Self(format!("{}{}", Self::prefix(network), hash(&format!("{container}/{if_name}"), 12)))
    }

    /// How the names of all links of a network begin.
    pub(super) fn prefix(network: &str) -> String {
        format!("{PREFIX}-{}-", hash(network, 6))
    }

    /// As text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// As the daemon wants it.
    pub(super) fn link(&self) -> Result<LinkName, SpecError> {
        self.0.parse()
    }

    /// That of a link of the daemon's.
    pub(super) fn of_link(link: &LinkName) -> Self {
        Self(link.as_str().to_owned())
    }

    /// The link that a file in the folder for sockets is a note of.
    pub(super) fn of_note(file: &Path) -> Option<Self> {
        let name = file.file_name()?.to_str()?.strip_suffix(".asked")?;
        Some(Self(name.to_owned()))
    }

    /// The file that is there from before the daemon is asked for the link until the link has ended.
    pub(super) fn note(&self, config: &Config) -> PathBuf {
        config.sockets.join(format!("{}.asked", self.0))
    }

    /// Where the guest's socket is.
    pub(super) fn socket(&self, config: &Config) -> PathBuf {
        config.sockets.join(format!("{}.sock", self.0))
    }
}

/// The first bytes of a SHA-256, in hexadecimal.
fn hash(text: &str, bytes: usize) -> String {
    Sha256::digest(text).iter().take(bytes).fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The pod interface, as far as the link needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface<'a> {
    pub(super) name: &'a IfName,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) netns: &'a Path,
}

/// The ends of the link between a guest's socket and a pod interface.
pub(super) fn ends(config: &Config, socket: &Path, interface: &Interface<'_>) -> String {
    let Config { queues, spoof_check, bytes, packets, .. } = config;
    let Interface { name, mac, mtu, netns } = interface;
    let mut guest = format!("vhost-user:{}?queues={queues}&mtu={mtu}&observe", socket.display());
    if *spoof_check {
        let _ = write!(guest, "&source={mac}");
    }
    for (option, rate) in [("bytes", bytes), ("packets", packets)] {
        if let Some(rate) = rate {
            let _ = write!(guest, "&{option}={rate}");
        }
    }
    format!("{guest},af_xdp:{name}?netns={}", netns.display())
}
