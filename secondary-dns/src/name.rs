//! Domain names as they travel: length-prefixed labels, ended by the root's zero octet, always lower-cased.
//!
//! DNS compares names without regard to ASCII case (RFC 4343), so names are folded once, when they enter: from a
//! query by [`NameBuf::read`], from configuration or a VMI by [`Name`]'s constructors. After that equality is
//! equality of octets. Compression is neither read nor written here: a question never needs it.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Most octets of a name, the root's included (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Most octets of a label.
pub const MAX_LABEL: usize = 63;

/// A lower-cased name, or the leading labels of one (then without the root's zero); a clone shares its octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A label breaks the rules for host names.
    #[error("{0:?} is not a label: 1 to 63 letters, digits, '-' or '_', not beginning or ending with '-'")]
    Label(String),
    /// A VM or namespace whose name is no label of its own.
    #[error("{0:?} is not one label: 1 to 63 lower-case letters, digits or '-', without a dot")]
    Kubernetes(String),
    /// All labels together are too long.
    #[error("the name {0:?} is longer than 255 octets")]
    TooLong(String),
}

impl Name {
    /// `labels` in order, each checked and lower-cased; `suffix` is appended as it is.
    pub fn join(labels: &[&str], suffix: &[u8]) -> Result<Self, NameError> {
        let mut octets = Vec::with_capacity(labels.iter().map(|l| l.len() + 1).sum::<usize>() + suffix.len());
        for label in labels {
            let length = checked_label(label)?;
            octets.push(length);
            octets.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        octets.extend_from_slice(suffix);
        if octets.len() > MAX_NAME {
            return Err(NameError::TooLong(labels.join(".")));
        }
        Ok(Self(octets.into()))
    }

    /// A name from octets that are one already: a constant, or a part of another name.
    pub(crate) fn from_labels(octets: &[u8]) -> Self {
        Self(octets.into())
    }

    /// The octets behind the first label.
    pub fn parent(&self) -> &[u8] {
        let first = self.0.first().map_or(0, |length| 1 + usize::from(*length));
        self.0.get(first..).unwrap_or_default()
    }

    /// The octets on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The length of a label that keeps the rules; an underscore is let through, since KubeVirt allows it in NIC names.
fn checked_label(label: &str) -> Result<u8, NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let fine = !label.is_empty()
        && label.len() <= MAX_LABEL
        && label.bytes().all(allowed)
        && !label.starts_with('-')
        && !label.ends_with('-');
    match u8::try_from(label.len()) {
        Ok(length) if fine => Ok(length),
        _ => Err(NameError::Label(label.to_owned())),
    }
}

/// An absolute name: `example.com`, `example.com.`, or `.` for the root.
impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let labels: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split('.').collect() };
        Self::join(&labels, &[0])
    }
}

/// The heap's name is found by the stack's octets.
impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self.0 == [0] {
            return f.write_str(".");
        }
        let mut rest = &*self.0;
        let mut first = true;
        while let Some((&length, tail)) = rest.split_first() {
            let (label, tail) = tail.split_at(usize::from(length).min(tail.len()));
            if !first {
                f.write_str(".")?;
            }
            f.write_str(&String::from_utf8_lossy(label))?;
            (rest, first) = (tail, false);
        }
        Ok(())
    }
}

/// A question's name, lower-cased, on the stack: a lookup allocates nothing.
#[derive(Debug, Clone)]
pub struct NameBuf {
    octets: [u8; MAX_NAME],
    length: usize,
}

impl NameBuf {
    /// Reads the uncompressed name at `at`; `None` if it runs over the message's end, is too long, or uses label
    /// types other than the ordinary one (a compression pointer in the first question can only be an attack).
    pub fn read(message: &[u8], at: usize) -> Option<Self> {
        let mut end = at;
        loop {
            let length = usize::from(*message.get(end)?);
            if length > MAX_LABEL {
                return None;
            }
            end += 1 + length;
            if end - at > MAX_NAME {
                return None;
            }
            if length == 0 {
                break;
            }
        }
        let mut octets = [0; MAX_NAME];
        let length = end - at;
        let folded = octets.get_mut(..length)?;
        folded.copy_from_slice(message.get(at..end)?);
        // Length octets are at most 63, below 'A': folding everything changes letters only.
        folded.make_ascii_lowercase();
        Some(Self { octets, length })
    }

    /// The octets, the root's zero included.
    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }

    /// The labels in front of `zone`, if this name is `zone` or below it: empty for `zone` itself.
    pub fn relative_to(&self, zone: &Name) -> Option<&[u8]> {
        let name = self.as_bytes();
        let cut = name.len().checked_sub(zone.as_bytes().len())?;
        let (front, back) = name.split_at_checked(cut)?;
        // The cut must fall between two labels: `notvm.example.com` ends like `vm.example.com`.
        let mut at = 0;
        while at < cut {
            at += 1 + usize::from(*name.get(at)?);
        }
        (at == cut && back == zone.as_bytes()).then_some(front)
    }
}

/// The labels of `name` (without the root), in order.
pub fn labels(name: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let mut found: [&[u8]; MAX_NAME / 2 + 1] = [&[]; MAX_NAME / 2 + 1];
    let mut count = 0;
    let mut rest = name;
    while let Some((&length, tail)) = rest.split_first() {
        let Some((label, tail)) = tail.split_at_checked(usize::from(length)) else { break };
        let Some(slot) = found.get_mut(count).filter(|_| length > 0) else { break };
        *slot = label;
        count += 1;
        rest = tail;
    }
    found.into_iter().take(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(octets: &[u8]) -> Option<NameBuf> {
        NameBuf::read(octets, 0)
    }

    #[test]
    fn names_are_folded_and_printed_without_the_final_dot() {
        let name: Name = "VM.Example.com.".parse().unwrap();
        assert_eq!(name.as_bytes(), b"\x02vm\x07example\x03com\x00");
        assert_eq!(name.to_string(), "vm.example.com.");
        assert_eq!(".".parse::<Name>().unwrap().to_string(), ".");
        assert_eq!(read(b"\x02vM\x07eXample\x03cOm\x00").unwrap().as_bytes(), name.as_bytes());
    }

    #[test]
    fn hostile_labels_are_refused() {
        for text in ["a..b", ".a", "a b", "-a", "a-", "a/b", "ä", "a\0b", &"x".repeat(64)] {
            assert!(matches!(text.parse::<Name>(), Err(NameError::Label(_))), "{text:?}");
        }
        let long = ["a23456789012345678901234567890"; 9].join(".");
        assert!(matches!(long.parse::<Name>(), Err(NameError::TooLong(_))));
    }

    #[test]
    fn a_cut_inside_a_label_is_not_below_the_zone() {
        let zone: Name = "vm.example.com".parse().unwrap();
        let below = read(b"\x01a\x02vm\x07example\x03com\x00").unwrap();
        assert_eq!(below.relative_to(&zone), Some(&b"\x01a"[..]));
        assert_eq!(read(b"\x02vm\x07example\x03com\x00").unwrap().relative_to(&zone), Some(&b""[..]));
        assert_eq!(read(b"\x05notvm\x07example\x03com\x00").unwrap().relative_to(&zone), None);
        // A label whose text looks like a length octet and the zone's first label.
        assert_eq!(read(b"\x05aa\x02vm\x07example\x03com\x00").unwrap().relative_to(&zone), None);
        assert_eq!(read(b"\x03com\x00").unwrap().relative_to(&zone), None);
    }

    #[test]
    fn pointers_overruns_and_long_names_are_no_questions() {
        assert!(read(b"\xc0\x00").is_none());
        assert!(read(b"\x05abc").is_none());
        assert!(read(b"").is_none());
        let mut long = b"\x3f".repeat(64 * 4 + 1);
        long.push(0);
        assert!(read(&long).is_none());
    }
}
