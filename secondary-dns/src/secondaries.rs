//! The secondaries: servers that hold copies of our zones and are told when these change.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hickory_proto::rr::Name;

use crate::message::tsig::Keyring;

/// `--secondary ADDR[:PORT][,KEY]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secondary {
    /// Where NOTIFY goes.
    pub address: SocketAddr,
    /// The name of the TSIG key it signs with, and we towards it.
    pub key: Option<Name>,
}

/// Why a text is no secondary.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a secondary: ADDR, ADDR:PORT or [ADDR]:PORT, perhaps followed by \",KEYNAME\"")]
pub struct SecondaryError(String);

impl FromStr for Secondary {
    type Err = SecondaryError;

    fn from_str(text: &str) -> Result<Self, SecondaryError> {
        let wrong = || SecondaryError(text.to_owned());
        let (address, key) = match text.split_once(',') {
            Some((address, key)) if !key.is_empty() => (address, Some(key)),
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        let address = match (address.parse(), address.parse::<IpAddr>()) {
            (Ok(whole), _) => whole,
            (Err(_), Ok(ip)) => SocketAddr::new(ip, 53),
            (Err(_), Err(_)) => return Err(wrong()),
        };
        let mut key = key.map(Name::from_ascii).transpose().map_err(|_unnamed| wrong())?;
        if let Some(key) = &mut key {
            key.set_fqdn(true);
        }
        Ok(Self { address, key })
    }
}

/// A secondary's key that is not in the key file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secondary {address} names the key {key}, which is not in --tsig-keys")]
pub struct UnknownKeyError {
    address: SocketAddr,
    key: Name,
}

/// All secondaries.
#[derive(Debug, Clone, Default)]
pub struct Secondaries(Vec<Secondary>);

impl Secondaries {
    /// Checks that every key is known.
    pub fn new(all: Vec<Secondary>, keys: &Keyring) -> Result<Self, UnknownKeyError> {
        for Secondary { address, key } in &all {
            if let Some(key) = key.as_ref().filter(|key| keys.get(key).is_none()) {
                return Err(UnknownKeyError { address: *address, key: key.clone() });
            }
        }
        Ok(Self(all))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Secondary> {
        self.0.iter()
    }

    /// True if a client may have a whole zone. One with a key is known by its signature, wherever it comes from
    /// (load balancers change addresses); one without is known by its address.
    pub fn may_transfer(&self, peer: IpAddr, signed_by: Option<&Name>) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|secondary| match &secondary.key {
            Some(key) => signed_by == Some(key),
            None => secondary.address.ip().to_canonical() == peer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secondaries_are_read() {
        let read = |text: &str| {
            text.parse::<Secondary>().map(|s| (s.address.to_string(), s.key.map(|k| k.to_string())))
        };
        assert_eq!(read("192.0.2.1"), Ok(("192.0.2.1:53".into(), None)));
        assert_eq!(read("192.0.2.1:5300,corp.key"), Ok(("192.0.2.1:5300".into(), Some("corp.key.".into()))));
        assert_eq!(read("2001:db8::1"), Ok(("[2001:db8::1]:53".into(), None)));
        assert_eq!(read("[2001:db8::1]:5300"), Ok(("[2001:db8::1]:5300".into(), None)));
        for wrong in ["", "dns.example.com", "192.0.2.1,", "192.0.2.1:x", ",key"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_unsigned_stranger_gets_no_zone() {
        let all = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2,corp.".parse().unwrap()];
        let secondaries = Secondaries(all);
        let key = Name::from_ascii("corp.").unwrap();
        let other = Name::from_ascii("other.").unwrap();
        let may = |peer: &str, key| secondaries.may_transfer(peer.parse().unwrap(), key);
        assert!(may("192.0.2.1", None));
        assert!(may("::ffff:192.0.2.1", None));
        assert!(may("198.51.100.9", Some(&key)));
        assert!(!may("192.0.2.2", None), "it has a key, so it must sign");
        assert!(!may("198.51.100.9", None));
        assert!(!may("198.51.100.9", Some(&other)));
    }
}
