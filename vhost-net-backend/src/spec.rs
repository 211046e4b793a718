//! Links as users write them: `vhost-user:/run/a.sock?client&queues=4,tap:tap0`.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use net_types::{IfName, IfNameError, Mac};

use crate::vhost::{Role, VhostSettings};
use crate::xdp::{Steering, XdpSettings};

/// The most queue pairs of one guest.
pub const MAX_QUEUE_PAIRS: usize = 64;

/// The highest queue number of a NIC.
const MAX_QUEUE: u32 = 1023;

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
    /// `af_xdp:IFACE[:QUEUE[-QUEUE]][?option[&option…]]`: a NIC. Options: `mac=MAC`, `groups`, `vlan=ID`.
    AfXdp(XdpSettings),
}

/// What is wrong with a link as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Not two ends.
    #[error("link {0:?} has not two ends: write END,END")]
    Ends(String),
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
            Some(("af_xdp", rest)) => af_xdp(text, rest).map(Self::AfXdp),
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
            Self::AfXdp(settings) => write!(f, "af_xdp:{}", settings.interface),
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

fn af_xdp(end: &str, text: &str) -> Result<XdpSettings, SpecError> {
    let (place, options) = text.split_once('?').unwrap_or((text, ""));
    let (interface, queues) = place.split_once(':').unwrap_or((place, "0"));
    let interface = interface.parse().map_err(|source| SpecError::Name { end: end.to_owned(), source })?;
    let wrong_queues = || SpecError::Queues(end.to_owned());
    let number =
        |text: &str| text.parse().ok().filter(|queue: &u32| *queue <= MAX_QUEUE).ok_or_else(wrong_queues);
    let (first, last) = queues.split_once('-').unwrap_or((queues, queues));
    let queues = (number(first)?, number(last)?);
    if queues.0 > queues.1 || (queues.1 - queues.0) as usize >= MAX_QUEUE_PAIRS {
        return Err(wrong_queues());
    }
    let mut steering = Steering::default();
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let wrong = |allowed| SpecError::Option { end: end.to_owned(), option: option.to_owned(), allowed };
        match option.split_once('=').unwrap_or((option, "")) {
            ("groups", "") => steering.groups = true,
            ("mac", mac) => {
                let mac = mac.parse().ok().filter(|mac: &Mac| mac.is_unicast());
                steering.mac = Some(mac.ok_or_else(|| wrong("a unicast MAC address is allowed"))?);
            }
            ("vlan", vlan) => {
                let vlan = vlan.parse().ok();
                steering.vlan = Some(vlan.ok_or_else(|| wrong("a VLAN of 1 to 4094 is allowed"))?);
            }
            _ => return Err(wrong("mac=MAC, groups and vlan=ID are allowed")),
        }
    }
    if steering.groups && steering.mac.is_none() {
        let (option, allowed) =
            ("groups".to_owned(), "only with mac=MAC; without, all frames go to the guest");
        return Err(SpecError::Option { end: end.to_owned(), option, allowed });
    }
    Ok(XdpSettings { interface, queues, steering })
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
    fn a_nic_is_read_with_its_queues_and_what_is_the_guests() {
        let settings = |text: &str| match text.parse() {
            Ok(EndSpec::AfXdp(settings)) => {
                (settings.interface.to_string(), settings.queues, settings.steering)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(settings("af_xdp:eth0"), ("eth0".to_owned(), (0, 0), Steering::default()));
        let steering = Steering {
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            groups: true,
            vlan: Some("5".parse().unwrap()),
        };
        let all = settings("af_xdp:eth0:2-3?mac=02:00:00:00:00:07&groups&vlan=5");
        assert_eq!(all, ("eth0".to_owned(), (2, 3), steering));
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
        for queues in ["a", "1-", "3-1", "1024", "0-64"] {
            assert!(message(&format!("tap:a,af_xdp:eth0:{queues}")).contains("FIRST-LAST"), "{queues}");
        }
        assert!(message("tap:a,af_xdp:eth0?mac=01:00:00:00:00:01").contains("unicast"));
        assert!(message("tap:a,af_xdp:eth0?vlan=4095").contains("1 to 4094"));
        assert!(message("tap:a,af_xdp:eth0?groups").contains("only with mac"));
    }
}
