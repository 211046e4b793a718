//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (EUI-48) address. Prints in lower case with colons: `02:00:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// Why a text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address (six hexadecimal octets such as 02:00:00:00:00:01)")]
pub struct MacError(String);

impl Mac {
    /// All octets zero: what the kernel shows for "none".
    pub const ZERO: Self = Self([0; 6]);
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The octets in wire order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The group bit (IEEE 802-2014, 8.4): multicast, and broadcast too.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 0x01 != 0
    }

    /// The local bit: not from a vendor's block.
    pub const fn is_local(self) -> bool {
        self.0[0] & 0x02 != 0
    }

    /// True if a NIC can have this address: neither a group address nor zero.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Self::ZERO
    }
}

impl TryFrom<&[u8]> for Mac {
    type Error = MacError;

    fn try_from(bytes: &[u8]) -> Result<Self, MacError> {
        bytes.try_into().map(Self).map_err(|_wrong_length| MacError(format!("{bytes:02x?}")))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Accepts the spellings Go's `net.ParseMAC` does, because that is what users' manifests were checked with:
/// `02:00:00:00:00:01`, `02-00-00-00-00-01` and `0200.0000.0001`, in either case.
impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        parse(text).map(Self).ok_or_else(|| MacError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<[u8; 6]> {
    let bytes = text.as_bytes();
    let (separator, digits_per_group) = match (bytes.len(), bytes.get(2)?, bytes.get(4)?) {
        (17, b':', _) => (b':', 2),
        (17, b'-', _) => (b'-', 2),
        (14, _, b'.') => (b'.', 4),
        _ => return None,
    };
    let mut octets = [0; 6];
    let mut nibbles = 0;
    for group in bytes.split(|&byte| byte == separator) {
        if group.len() != digits_per_group {
            return None;
        }
        for &digit in group {
            let value = (digit as char).to_digit(16)?;
            let octet = octets.get_mut(nibbles / 2)?;
            *octet = *octet << 4 | u8::try_from(value).ok()?;
            nibbles += 1;
        }
    }
    (nibbles == 12).then_some(octets)
}

crate::serde_by_text!(Mac);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_one_address_is_equal() {
        for text in ["02:0a:00:00:00:ff", "02:0A:00:00:00:FF", "02-0a-00-00-00-ff", "020a.0000.00ff"] {
            assert_eq!(text.parse(), Ok(Mac([2, 0x0a, 0, 0, 0, 0xff])), "{text}");
        }
        assert_eq!(Mac([2, 0x0a, 0, 0, 0, 0xff]).to_string(), "02:0a:00:00:00:ff");
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        let texts = [
            "",
            "02",
            "02:0a:00:00:00",
            "02:0a:00:00:00:ff:00",
            "02:0a:00:00:00:fg",
            "020a000000ff",
            "2:a:0:0:0:ff:1234",
            "02:0a-00:00:00:ff",
            "02:0a:00:00:00:ff ",
            "0200.0000.00.1",
            "é2:0a:00:00:00:f",
            "+2:0a:00:00:00:ff",
            "02:00:00:00:00:00:00:01",
        ];
        for text in texts {
            let error = text.parse::<Mac>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not an Ethernet address")), "{error}");
        }
    }

    #[test]
    fn only_unicast_addresses_fit_a_nic() {
        assert!(Mac([2, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!Mac([3, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!Mac::ZERO.is_unicast());
        assert!(!Mac::BROADCAST.is_unicast());
    }
}
