//! Reverse names: from a network to its zone's name, and from a question's labels back to the addresses it means.
//!
//! A question below `in-addr.arpa` (RFC 1035 section 3.5) or `ip6.arpa` (RFC 3596 section 2.5) names one address
//! when it has all labels, else a range of them. Ranges are what makes an empty non-terminal answerable without
//! storing the up to 30 inner names of every IPv6 address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::name::{Name, NameError, labels};

const V4_SUFFIX: &[u8] = b"\x07in-addr\x04arpa\x00";
const V6_SUFFIX: &[u8] = b"\x03ip6\x04arpa\x00";

/// Why a network has no zone of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReverseError {
    /// The prefix does not end between two labels.
    #[error(
        "{0}: a reverse zone needs a prefix length of 8, 16 or 24 (IPv4) or a multiple of 4 (IPv6, 4 to 124)"
    )]
    Prefix(IpNetwork),
    /// Cannot happen for a checked prefix; kept so that nothing panics.
    #[error("the reverse zone of {network}")]
    Name {
        /// Whose name it is.
        network: IpNetwork,
        /// What is wrong with it.
        source: NameError,
    },
}

/// The name of the zone that holds the PTR records of `network`.
pub fn zone_name(network: IpNetwork) -> Result<Name, ReverseError> {
    let prefix = usize::from(network.prefix());
    let (labels, suffix): (Vec<String>, &[u8]) = match network {
        IpNetwork::V4(v4) if matches!(prefix, 8 | 16 | 24) => {
            let octets = v4.network().octets();
            (octets.iter().take(prefix / 8).rev().map(u8::to_string).collect(), V4_SUFFIX)
        }
        IpNetwork::V6(v6) if prefix % 4 == 0 && (4..=124).contains(&prefix) => {
            (nibbles(v6.network()).take(prefix / 4).map(|n| format!("{n:x}")).rev().collect(), V6_SUFFIX)
        }
        _ => return Err(ReverseError::Prefix(network)),
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    Name::join(&labels, suffix).map_err(|source| ReverseError::Name { network, source })
}

/// The owner name of an address's PTR record.
pub fn owner_name(address: IpAddr) -> Result<Name, NameError> {
    let (labels, suffix): (Vec<String>, &[u8]) = match address {
        IpAddr::V4(v4) => (v4.octets().iter().rev().map(u8::to_string).collect(), V4_SUFFIX),
        IpAddr::V6(v6) => (nibbles(v6).rev().map(|n| format!("{n:x}")).collect(), V6_SUFFIX),
    };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    Name::join(&labels, suffix)
}

fn nibbles(address: Ipv6Addr) -> impl DoubleEndedIterator<Item = u8> + ExactSizeIterator {
    let octets = address.octets();
    (0..32usize).map(move |n| {
        let octet = octets.get(n / 2).copied().unwrap_or_default();
        if n % 2 == 0 { octet >> 4 } else { octet & 0xf }
    })
}

/// The addresses a reverse name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// All labels are there.
    Address(IpAddr),
    /// The first and last address below the name.
    Range(IpAddr, IpAddr),
}

/// What an absolute, lower-cased name below one of the two suffixes means; `None` for names no address has.
pub fn meaning(name: &[u8]) -> Option<Meaning> {
    if let Some(front) = name.strip_suffix(V4_SUFFIX) { v4(front) } else { v6(name.strip_suffix(V6_SUFFIX)?) }
}

fn v4(front: &[u8]) -> Option<Meaning> {
    let (mut low, mut high, mut count) = ([0u8; 4], [255u8; 4], 0);
    for label in labels(front).rev() {
        let octet = decimal(label)?;
        *low.get_mut(count)? = octet;
        *high.get_mut(count)? = octet;
        count += 1;
    }
    let (low, high) = (IpAddr::V4(Ipv4Addr::from(low)), IpAddr::V4(Ipv4Addr::from(high)));
    Some(if count == 4 { Meaning::Address(low) } else { Meaning::Range(low, high) })
}

/// An octet as [`zone_name`] writes it: no leading zero.
fn decimal(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let value: u8 = text.parse().ok()?;
    (text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'))).then_some(value)
}

fn v6(front: &[u8]) -> Option<Meaning> {
    let (mut low, mut high, mut count) = (0u128, u128::MAX, 0u32);
    for label in labels(front).rev() {
        let &[digit] = label else { return None };
        let nibble = u128::from(char::from(digit).to_digit(16)?);
        count += 1;
        let shift = 128u32.checked_sub(4 * count)?;
        low |= nibble << shift;
        high &= !((0xf ^ nibble) << shift);
    }
    let (low, high) = (IpAddr::V6(Ipv6Addr::from(low)), IpAddr::V6(Ipv6Addr::from(high)));
    Some(if count == 32 { Meaning::Address(low) } else { Meaning::Range(low, high) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn zones_of_networks() {
        for (network, zone) in [
            ("10.0.0.0/8", "10.in-addr.arpa."),
            ("192.168.7.0/24", "7.168.192.in-addr.arpa."),
            ("fd10::/16", "0.1.d.f.ip6.arpa."),
            ("2001:db8::/36", "0.8.b.d.0.1.0.0.2.ip6.arpa."),
        ] {
            assert_eq!(zone_name(network.parse().unwrap()).unwrap().to_string(), zone);
        }
        for network in ["10.0.0.0/9", "10.0.0.1/32", "0.0.0.0/0", "fd10::/17", "::/0", "::1/128"] {
            assert!(matches!(zone_name(network.parse().unwrap()), Err(ReverseError::Prefix(_))), "{network}");
        }
    }

    #[test]
    fn names_no_address_has_mean_nothing() {
        for text in ["256.10.in-addr.arpa", "01.10.in-addr.arpa", "x.10.in-addr.arpa"] {
            assert_eq!(meaning(name(text).as_bytes()), None, "{text}");
        }
        assert_eq!(meaning(name("1.2.3.4.5.in-addr.arpa").as_bytes()), None);
        assert_eq!(meaning(name("10.ip6.arpa").as_bytes()), None);
        assert_eq!(meaning(name(&format!("{}ip6.arpa", "0.".repeat(33))).as_bytes()), None);
        assert_eq!(meaning(name("example.com").as_bytes()), None);
        assert_eq!(meaning(b"\x02+1\x0210\x07in-addr\x04arpa\x00"), None);
    }

    #[test]
    fn missing_labels_make_a_range() {
        let range = |a: &str, b: &str| Some(Meaning::Range(a.parse().unwrap(), b.parse().unwrap()));
        assert_eq!(meaning(name("1.10.in-addr.arpa").as_bytes()), range("10.1.0.0", "10.1.255.255"));
        assert_eq!(
            meaning(name("1.d.f.ip6.arpa").as_bytes()),
            range("fd10::", "fd1f:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
        );
    }

    proptest! {
        #[test]
        fn every_address_is_what_its_owner_name_means(v4: u32, v6: u128) {
            for address in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                let owner = owner_name(address).unwrap();
                prop_assert_eq!(meaning(owner.as_bytes()), Some(Meaning::Address(address)));
            }
        }
    }
}
