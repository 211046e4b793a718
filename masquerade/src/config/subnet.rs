//! The private subnet between pod and guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

/// A subnet of which the first address is the pod's and the second the guest's, as KubeVirt has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet {
    /// All of it.
    pub(crate) network: IpNetwork,
    /// The pod's address, with the prefix length.
    pub(crate) gateway: IpNetwork,
    /// The guest's address.
    pub(crate) guest: IpAddr,
}

/// Why a text is no [`Subnet`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubnetError {
    /// Not address/length of the family.
    #[error("{text:?} is not {family} network; such as {example}")]
    Malformed {
        /// As given.
        text: String,
        /// With its article.
        family: &'static str,
        /// One that would do.
        example: &'static str,
    },
    /// Too small for two hosts, or absurdly large.
    #[error("{network} has prefix length {}; allowed: {shortest} to {longest}", network.prefix())]
    Size {
        /// As given.
        network: IpNetwork,
        /// Shortest length allowed.
        shortest: u8,
        /// Longest length allowed.
        longest: u8,
    },
    /// Addresses no host on such a link can have.
    #[error("{0} is not usable: allowed are unicast networks other than loopback and link-local ones")]
    Special(IpNetwork),
}

/// Prefix lengths that leave room for gateway and guest, and do not wrap the whole Internet.
const V4_LENGTHS: (u8, u8) = (8, 30);
const V6_LENGTHS: (u8, u8) = (8, 126);

impl Subnet {
    /// An IPv4 subnet from `address/length`; which of its addresses is written does not matter.
    pub(crate) fn v4(text: &str) -> Result<Self, SubnetError> {
        let malformed =
            || SubnetError::Malformed { text: text.to_owned(), family: "an IPv4", example: "10.0.2.0/24" };
        let network: Ipv4Network = with_length(text).ok_or_else(malformed)?;
        let base = network.network();
        let first = base.octets()[0];
        // 240.0.0.0/4 is reserved, multicast and broadcast are beside it.
        let is_special = first == 0 || first >= 224 || base.is_loopback() || base.is_link_local();
        check(network.into(), V4_LENGTHS, is_special)?;
        let host = |number: u32| {
            Ipv4Network::new(Ipv4Addr::from(u32::from(base) + number), network.prefix()).map(IpNetwork::V4)
        };
        Self::of(host).ok_or_else(malformed)
    }

    /// An IPv6 subnet from `address/length`; which of its addresses is written does not matter.
    pub(crate) fn v6(text: &str) -> Result<Self, SubnetError> {
        let malformed =
            || SubnetError::Malformed { text: text.to_owned(), family: "an IPv6", example: "fd10:0:2::/120" };
        let network: Ipv6Network = with_length(text).ok_or_else(malformed)?;
        let base = network.network();
        // The first 64 bits zero: unspecified, loopback, IPv4-mapped and -compatible.
        let is_special =
            base.is_multicast() || base.is_unicast_link_local() || base.segments().starts_with(&[0; 4]);
        check(network.into(), V6_LENGTHS, is_special)?;
        let host = |number: u32| {
            Ipv6Network::new(Ipv6Addr::from(u128::from(base) + u128::from(number)), network.prefix())
                .map(IpNetwork::V6)
        };
        Self::of(host).ok_or_else(malformed)
    }

    /// A subnet by its addresses; the lengths checked before leave room for them.
    fn of<E>(host: impl Fn(u32) -> Result<IpNetwork, E>) -> Option<Self> {
        Some(Self { network: host(0).ok()?, gateway: host(1).ok()?, guest: host(2).ok()?.ip() })
    }

    /// True if the two share an address.
    pub(crate) fn overlaps(&self, other: IpNetwork) -> bool {
        self.network.contains(other.network()) || other.contains(self.network.network())
    }

    /// True for IPv6.
    pub(crate) fn is_v6(&self) -> bool {
        self.network.is_ipv6()
    }
}

/// `address/length`; a bare address, which would mean one host, is none.
fn with_length<T: FromStr>(text: &str) -> Option<T> {
    text.contains('/').then(|| text.parse().ok()).flatten()
}

fn check(network: IpNetwork, (shortest, longest): (u8, u8), is_special: bool) -> Result<(), SubnetError> {
    if !(shortest..=longest).contains(&network.prefix()) {
        return Err(SubnetError::Size { network, shortest, longest });
    }
    if is_special { Err(SubnetError::Special(network)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_is_the_first_address_and_guest_the_second() {
        let table = [
            ("10.0.2.0/24", "10.0.2.1/24", "10.0.2.2"),
            ("10.0.2.77/24", "10.0.2.1/24", "10.0.2.2"),
            ("192.168.9.252/30", "192.168.9.253/30", "192.168.9.254"),
        ];
        for (text, gateway, guest) in table {
            let subnet = Subnet::v4(text).unwrap();
            assert_eq!(
                (subnet.gateway.to_string(), subnet.guest.to_string()),
                (gateway.into(), guest.into())
            );
        }
        let subnet = Subnet::v6("fd10:0:2::2/120").unwrap();
        assert_eq!(subnet.gateway.to_string(), "fd10:0:2::1/120");
        assert_eq!(subnet.guest.to_string(), "fd10:0:2::2");
        assert_eq!(subnet.network.to_string(), "fd10:0:2::/120");
    }

    #[test]
    fn what_no_guest_can_live_in_is_refused() {
        for text in ["", "10.0.2.0", "10.0.2.0/33", "fd10::/64", "10.0.2/24", "x/24"] {
            assert!(matches!(Subnet::v4(text), Err(SubnetError::Malformed { .. })), "{text}");
        }
        for text in ["10.0.2.0/31", "10.0.2.0/32", "0.0.0.0/0", "10.0.0.0/7"] {
            assert!(matches!(Subnet::v4(text), Err(SubnetError::Size { .. })), "{text}");
        }
        for text in ["127.0.0.0/8", "169.254.3.0/24", "224.0.0.0/24", "255.0.0.0/24", "0.1.2.0/24"] {
            assert!(matches!(Subnet::v4(text), Err(SubnetError::Special(_))), "{text}");
        }
        for text in ["::/120", "fe80::/64", "ff02::/64", "::ffff:10.0.2.0/120", "::1/126"] {
            assert!(matches!(Subnet::v6(text), Err(SubnetError::Special(_))), "{text}");
        }
        assert!(matches!(Subnet::v6("fd00::/127"), Err(SubnetError::Size { .. })));
    }

    #[test]
    fn overlap_is_seen_both_ways_round() {
        let subnet = Subnet::v4("10.0.2.0/24").unwrap();
        for other in ["10.0.2.9/32", "10.0.0.5/8", "10.0.2.1/25"] {
            assert!(subnet.overlaps(other.parse().unwrap()), "{other}");
        }
        for other in ["10.0.3.1/24", "fd10:0:2::1/120"] {
            assert!(!subnet.overlaps(other.parse().unwrap()), "{other}");
        }
    }
}
