//! Which NICs can meet: two of them with one address do harm only on one L2 network.
//!
//! A NIC's [`Segment`] is read from its object; which networks are apart is for the administrator to say ([`Domains`]),
//! since two definitions may lead to one wire. Used to tell duplicates that matter from those that do not. What may
//! be *given* does not depend on it: that is unique in the whole range.

use std::collections::HashMap;

use net_types::Mac;

/// Where a NIC's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Nobody sees this address: behind NAT, on a pod network that is not macpool's to manage, or of a VM that has yet to
    /// receive its guest by a migration.
    Alone,
    /// A network, by its definition's `namespace/name`.
    Network(Box<str>),
}

impl Segment {
    /// The network of a definition's name as it is written in an object of `namespace`.
    pub fn network(namespace: &str, name: &str) -> Self {
        Self::Network(match name.contains('/') {
            true => name.into(),
            false => format!("{namespace}/{name}").into(),
        })
    }
}

/// A NIC that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The address.
    pub mac: Mac,
    /// Where its frames go.
    pub segment: Segment,
}

/// More networks than anybody names one by one.
const MAX_NETWORKS: usize = 10_000;

/// Why a text says nothing about L2 domains.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainsError {
    /// Not of the form that is expected.
    #[error("{0:?} is not a domain: NAME=NAMESPACE/NETWORK,…")]
    Form(String),
    /// A network cannot be in two domains: then these would meet.
    #[error("network {0} is in two domains")]
    Twice(String),
    /// Too many.
    #[error("more than {MAX_NETWORKS} networks")]
    TooMany,
}

/// L2 domains that never meet, and the networks that belong to each. A network of no domain may meet all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Domains(HashMap<Box<str>, Box<str>>);

impl Domains {
    /// Reads domains, each `NAME=NAMESPACE/NETWORK,…`.
    pub fn new<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, DomainsError> {
        let mut domains = HashMap::new();
        for text in texts {
            let wrong = || DomainsError::Form(text.chars().take(100).collect());
            let (name, networks) = text.split_once('=').ok_or_else(wrong)?;
            if name.is_empty() || networks.is_empty() {
                return Err(wrong());
            }
            for network in networks.split(',') {
                let (namespace, definition) = network.split_once('/').ok_or_else(wrong)?;
                let valid = |text: &str| vm_api::names::subdomain(text).is_ok();
                if !valid(namespace) || !valid(definition) {
                    return Err(wrong());
                }
                if domains.insert(network.into(), name.into()).is_some() {
                    return Err(DomainsError::Twice(network.to_owned()));
                }
                if domains.len() > MAX_NETWORKS {
                    return Err(DomainsError::TooMany);
                }
            }
        }
        Ok(Self(domains))
    }

    /// Can frames of two networks reach one NIC?
    pub fn meet(&self, one: &str, other: &str) -> bool {
        match (self.0.get(one), self.0.get(other)) {
            (Some(domain), Some(other)) => domain == other,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_meet_unless_their_domains_are_named_and_differ() {
        let domains = Domains::new(["prod=a/red,b/red", "lab=a/blue"]).unwrap();
        assert!(domains.meet("a/red", "b/red"));
        assert!(!domains.meet("b/red", "a/blue"));
        assert!(domains.meet("a/red", "a/green"), "nobody said that they do not");
        assert!(Domains::default().meet("a/red", "a/blue"));
        assert_eq!(Segment::network("a", "red"), Segment::Network("a/red".into()));
        assert_eq!(Segment::network("a", "b/red"), Segment::Network("b/red".into()));
    }

    #[test]
    fn nonsense_is_no_domain() {
        for text in [
            "",
            "prod",
            "prod=",
            "=a/red",
            "prod=red",
            "prod=a/red,",
            "prod=a/b/c",
            "prod=A/red",
            "prod=a/r ed",
        ] {
            assert!(matches!(Domains::new([text]), Err(DomainsError::Form(_))), "{text:?}");
        }
        assert_eq!(Domains::new(["x=a/b", "y=a/b"]), Err(DomainsError::Twice("a/b".to_owned())));
        let many: Vec<String> = (0..=MAX_NETWORKS).map(|n| format!("d=a/n{n}")).collect();
        assert_eq!(Domains::new(many.iter().map(String::as_str)), Err(DomainsError::TooMany));
    }
}
