//! Links as users write them: `vhost-user:/run/a.sock?client&queues=4,tap:tap0`.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use net_types::{IfName, IfNameError};

use crate::vhost::{Role, VhostSettings};

/// The most queue pairs of one guest.
pub const MAX_QUEUE_PAIRS: usize = 64;

/// Two ends to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSpec {
    /// The ends.
    pub ends: [EndSpec; 2],
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndSpec {
    /// `vhost-user:SOCKET[?option[&option…]]`: a guest. Options: `client`, `queues=N`, `mtu=N`.
    VhostUser(VhostSettings),
    /// `tap:NAME`: a persistent tap of this network namespace.
    Tap(IfName),
}

/// What is wrong with a link as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not two ends.
    #[error("link {0:?} has not two ends: write END,END")]
    Ends(String),
    /// No such kind of end.
    #[error("end {0:?} is none of vhost-user:SOCKET[?client], tap:NAME")]
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
    /// A tap's name.
    #[error("end {end:?}")]
    Name {
        /// The end.
        end: String,
        /// What is wrong with it.
        source: IfNameError,
    },
}

impl FromStr for LinkSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.split(',').collect::<Vec<_>>().as_slice() {
            [first, second] => Ok(Self { ends: [first.parse()?, second.parse()?] }),
            _ => Err(SpecError::Ends(text.to_owned())),
        }
    }
}

impl FromStr for EndSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        match text.split_once(':') {
            Some(("vhost-user", rest)) => vhost_user(text, rest).map(Self::VhostUser),
            Some(("tap", name)) => {
                let name = name.parse();
                name.map(Self::Tap).map_err(|source| SpecError::Name { end: text.to_owned(), source })
            }
            _ => Err(SpecError::Kind(text.to_owned())),
        }
    }
}

impl fmt::Display for LinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.ends;
        write!(f, "{first},{second}")
    }
}

/// The kind and what identifies the end, without options.
impl fmt::Display for EndSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VhostUser(settings) => write!(f, "vhost-user:{}", settings.socket.display()),
            Self::Tap(name) => write!(f, "tap:{name}"),
        }
    }
}

fn vhost_user(end: &str, text: &str) -> Result<VhostSettings, SpecError> {
    let (path, options) = text.split_once('?').unwrap_or((text, ""));
    if path.is_empty() {
        return Err(SpecError::NoPath(end.to_owned()));
    }
    let queue_pairs = NonZeroUsize::MIN;
    let mut settings =
        VhostSettings { socket: PathBuf::from(path), role: Role::Server, queue_pairs, mtu: None };
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let wrong = |allowed| SpecError::Option { end: end.to_owned(), option: option.to_owned(), allowed };
        match option.split_once('=').unwrap_or((option, "")) {
            ("client", "") => settings.role = Role::Client,
            ("queues", pairs) => {
                let pairs = pairs.parse().ok().filter(|pairs: &NonZeroUsize| pairs.get() <= MAX_QUEUE_PAIRS);
                settings.queue_pairs = pairs.ok_or_else(|| wrong("1 to 64 queue pairs are allowed"))?;
            }
            ("mtu", mtu) => {
                let mtu = mtu.parse().ok().filter(|mtu| *mtu >= 68);
                settings.mtu = Some(mtu.ok_or_else(|| wrong("an MTU of 68 to 65535 bytes is allowed"))?);
            }
            _ => return Err(wrong("client, queues=N and mtu=N are allowed")),
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_as_written() {
        let link: LinkSpec = "vhost-user:/run/a.sock?client&queues=4&mtu=9000,tap:tap0".parse().unwrap();
        let settings = VhostSettings {
            socket: "/run/a.sock".into(),
            role: Role::Client,
            queue_pairs: 4.try_into().unwrap(),
            mtu: Some(9000),
        };
        assert_eq!(link.ends, [EndSpec::VhostUser(settings), EndSpec::Tap("tap0".parse().unwrap())]);
        assert!("vhost-user:a,vhost-user:b".parse::<LinkSpec>().is_ok());
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| text.parse::<LinkSpec>().unwrap_err().to_string();
        assert!(message("tap:a").contains("END,END"));
        assert!(message("tap:a,tap:b,tap:c").contains("END,END"));
        assert!(message("tap:a,veth:b").contains("\"veth:b\""));
        assert!(message("tap:a,vhost-user:").contains("no socket path"));
        assert!(message("tap:a,vhost-user:/s?server").contains("client, queues=N"));
        assert!(message("tap:a,vhost-user:/s?queues=0").contains("1 to 64"));
        assert!(message("tap:a,vhost-user:/s?queues=65").contains("1 to 64"));
        assert!(message("tap:a,vhost-user:/s?mtu=67").contains("68 to 65535"));
        assert!(message("tap:a/b,tap:c").contains("\"tap:a/b\""));
    }
}
