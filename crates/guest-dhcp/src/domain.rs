//! Domain names a resolver can search.

use std::fmt;
use std::str::FromStr;

use dhcproto::Name;

/// Longest name in bytes as it is written, without a dot at its end (RFC 1035, 2.3.4: 255 octets on the wire).
const MAX_NAME: usize = 253;
/// Longest label.
const MAX_LABEL: usize = 63;

/// A domain name of letters, digits, `-` and `_`, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainName {
    name: Name,
    text: String,
}

/// Why a text is no domain name to search.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DomainNameError {
    /// Nothing, or only the root.
    #[error("a domain name is empty")]
    Empty,
    /// More than 253 bytes.
    #[error("domain name of {0} bytes; at most {MAX_NAME} are allowed")]
    TooLong(usize),
    /// A label is empty, too long, or has characters a host name cannot have.
    #[error("{name:?} has the label {label:?}; allowed: 1 to {MAX_LABEL} letters, digits, '-' and '_'")]
    Label {
        /// The name as given.
        name: String,
        /// Its first wrong label.
        label: String,
    },
    /// The codec does not take it.
    #[error("{0:?} is not a domain name")]
    Refused(String),
}

impl DomainName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Uncompressed, as DNS and router advertisements have it (RFC 1035, 3.1).
    pub(crate) fn wire(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.text.len() + 2);
        for label in self.text.split('.') {
            // Checked on the way in: at most 63.
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }
}

impl FromStr for DomainName {
    type Err = DomainNameError;

    fn from_str(text: &str) -> Result<Self, DomainNameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(DomainNameError::Empty);
        }
        if text.len() > MAX_NAME {
            return Err(DomainNameError::TooLong(text.len()));
        }
        let fits = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if let Some(label) = text.split('.').find(|label| !fits(label)) {
            return Err(DomainNameError::Label { name: text.to_owned(), label: label.to_owned() });
        }
        let refused = |_error| DomainNameError::Refused(text.to_owned());
        let name = Name::from_ascii(format!("{text}.")).map_err(refused)?;
        Ok(Self { name, text: text.to_owned() })
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_domains_are_names() {
        for text in ["svc.cluster.local", "cluster.local.", "a", "_dmarc.example.com", "xn--p1ai"] {
            let name: DomainName = text.parse().unwrap();
            assert_eq!(name.as_str(), text.trim_end_matches('.'));
        }
        let name: DomainName = "a.bc".parse().unwrap();
        assert_eq!(name.wire(), [1, b'a', 2, b'b', b'c', 0]);
    }

    #[test]
    fn what_cannot_be_written_on_the_wire_is_refused() {
        let long_label = format!("{}.x", "a".repeat(64));
        let long_name = vec!["a".repeat(60); 5].join(".");
        for text in ["", ".", "a..b", ".a", "a b", "exämple", "a/b", &long_label, &long_name] {
            assert!(text.parse::<DomainName>().is_err(), "{text}");
        }
        let longest = format!("{}.{}", vec!["a".repeat(62); 4].join("."), "b");
        assert_eq!(longest.len(), 253);
        assert!(longest.parse::<DomainName>().is_ok());
    }
}
