//! Links as users write them: `vm1=vhost-user:/run/a.sock?client&queues=4,tap:tap0`.
//!
//! One way to write a link, wherever it is written: on the command line, in the configuration file, in a control message.

mod parse;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use net_types::{IfName, IfNameError};
use serde::{Deserialize, Serialize};

use crate::gate::Policy;
use crate::vhost::VhostSettings;
use crate::xdp::XdpSettings;

/// The most queue pairs of one guest.
pub const MAX_QUEUE_PAIRS: usize = 64;

/// The highest queue number of a NIC.
const MAX_QUEUE: u32 = 1023;

/// What a link is called: 1 to 64 letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

impl LinkName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinkName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        // It also names a file, which `.` and `..` cannot.
        let reserved = text.bytes().all(|byte| byte == b'.');
        if !reserved && text.len() <= 64 && text.bytes().all(fine) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SpecError::LinkName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for LinkName {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<LinkName> for String {
    fn from(name: LinkName) -> Self {
        name.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Two ends to join, and what that is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// Its name; without, it gets one.
    pub name: Option<LinkName>,
    /// The ends.
    pub ends: [EndSpec; 2],
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndSpec {
    /// As it was written.
    pub text: String,
    /// What it is.
    pub kind: EndKind,
    /// What holds for frames that come from it: options `source=MAC`, `bytes=N`, `packets=N`.
    pub policy: Policy,
    /// Whether the addresses that show in its frames are noted: option `observe`.
    pub observe: bool,
}

/// What an end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndKind {
    /// `vhost-user:SOCKET[?option[&option…]]`: a guest. Options: `client`, `queues=N`, `mtu=N`.
    VhostUser(VhostSettings),
    /// `tap:NAME[?netns=PATH]`: a persistent tap.
    Tap(TapSettings),
    /// `af_xdp:IFACE[:QUEUE[-QUEUE]][?option[&option…]]`: a NIC. Options: `mac=MAC`, `groups`, `vlan=ID`, `netns=PATH`.
    AfXdp(XdpSettings),
}

/// A tap to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSettings {
    /// Its name.
    pub name: IfName,
    /// The network namespace it is in; `None`: the daemon's own.
    pub netns: Option<PathBuf>,
}

/// What is wrong with a link as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not two ends.
    #[error("link {0:?} has not two ends: write [NAME=]END,END")]
    Ends(String),
    /// Both ends are one device, or one socket.
    #[error("link {link:?} has {end} at both ends")]
    SameEnds {
        /// The link.
        link: String,
        /// The end.
        end: EndSpec,
    },
    /// A name that cannot be one.
    #[error("link name {0:?}: 1 to 64 letters, digits, '.', '_' and '-' are allowed, and not only dots")]
    LinkName(String),
    /// No such kind of end.
    #[error("end {0:?} is none of vhost-user:SOCKET[?client], tap:NAME, af_xdp:IFACE[:QUEUE[-QUEUE]]")]
    Kind(String),
    /// A vhost-user end without a path.
    #[error("end {0:?} has no socket path")]
    NoPath(String),
    /// An option that does not exist or has no such value.
    #[error("option {option:?} of end {end:?}: {allowed}")]
    Option {
        /// The end.
        end: String,
        /// The option as written.
        option: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// An option that is there twice.
    #[error("option {option} of end {end:?} is there twice; each is allowed once")]
    Twice {
        /// The end.
        end: String,
        /// The option's name.
        option: String,
    },
    /// Queues of a NIC.
    #[error(
        "queues of end {0:?}: write QUEUE or FIRST-LAST, up to {MAX_QUEUE}, at most {MAX_QUEUE_PAIRS} of them"
    )]
    Queues(String),
    /// The name of a tap or NIC.
    #[error("end {end:?}")]
    Name {
        /// The end.
        end: String,
        /// What is wrong with it.
        source: IfNameError,
    },
}

impl LinkSpec {
    /// The ends as written, options and all.
    pub fn text(&self) -> String {
        let [first, second] = &self.ends;
        format!("{},{}", first.text, second.text)
    }
}

impl FromStr for LinkSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        // An end has a colon before any equals sign; a name has none.
        let (name, ends) = match text.split_once('=') {
            Some((name, ends)) if !name.contains(':') => (Some(name.parse()?), ends),
            _ => (None, text),
        };
        match ends.split(',').collect::<Vec<_>>().as_slice() {
            [first, second] => {
                let ends: [EndSpec; 2] = [first.parse()?, second.parse()?];
                let [first, second] = &ends;
                if first.is_same_as(second) {
                    return Err(SpecError::SameEnds { link: text.to_owned(), end: first.clone() });
                }
                Ok(Self { name, ends })
            }
            _ => Err(SpecError::Ends(text.to_owned())),
        }
    }
}

impl EndSpec {
    /// Whether both are one device, or one socket, as far as their names tell.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (EndKind::VhostUser(ours), EndKind::VhostUser(theirs)) => ours.socket == theirs.socket,
            (EndKind::Tap(ours), EndKind::Tap(theirs)) => ours == theirs,
            (EndKind::AfXdp(ours), EndKind::AfXdp(theirs)) => {
                (&ours.interface, &ours.netns) == (&theirs.interface, &theirs.netns)
            }
            _ => false,
        }
    }
}

impl FromStr for EndSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse::end(text)
    }
}

/// Its ends, as far as they identify it.
impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.ends;
        write!(f, "{first},{second}")
    }
}

/// The kind and what identifies the end: no two ends of a daemon are shown alike.
impl fmt::Display for EndSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let netns = match &self.kind {
            EndKind::VhostUser(settings) => return write!(f, "vhost-user:{}", settings.socket.display()),
            EndKind::Tap(settings) => {
                write!(f, "tap:{}", settings.name)?;
                &settings.netns
            }
            EndKind::AfXdp(settings) => {
                write!(f, "af_xdp:{}", settings.interface)?;
                &settings.netns
            }
        };
        netns.as_ref().map_or(Ok(()), |netns| write!(f, "?netns={}", netns.display()))
    }
}

#[cfg(test)]
mod tests;
