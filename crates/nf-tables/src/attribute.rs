//! Netlink attributes: length, type, value, padded to four bytes (`linux/netlink.h`, `struct nlattr`).

/// `NLA_F_NESTED`: the value is attributes itself.
const NESTED: u16 = 1 << 15;
/// Mask of the flags in an attribute's type.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Writes attributes one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends an attribute with a value of bytes.
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        // Attributes here are names, addresses and short lists of them, far below 64 KiB.
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a text, terminated as the kernel wants it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut terminated = value.as_bytes().to_vec();
        terminated.push(0);
        self.bytes(kind, &terminated)
    }

    /// Appends a number in network byte order.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends an attribute that holds attributes.
    pub(crate) fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.bytes)
    }

    /// What was written.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads attributes one after the other; ends at the first that is malformed.
#[derive(Debug, Clone)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value of the first attribute of type `kind`.
    pub(crate) fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// True if everything in `written` is here with the same value, at any depth.
    pub(crate) fn contain(&self, written: &Writer) -> bool {
        self.contain_all(&written.bytes)
    }

    fn contain_all(&self, written: &[u8]) -> bool {
        let mut written = Attributes::new(written);
        std::iter::from_fn(|| written.next_raw()).all(|(kind, value)| match self.get(kind & TYPE_MASK) {
            Some(found) if kind & NESTED != 0 => Attributes::new(found).contain_all(value),
            found => found == Some(value),
        })
    }

    /// The attribute of type `kind` as a number.
    pub(crate) fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, value) = self.next_raw()?;
        Some((kind & TYPE_MASK, value))
    }
}

impl<'a> Attributes<'a> {
    /// The next attribute with its flags.
    fn next_raw(&mut self) -> Option<(u16, &'a [u8])> {
        let (header, _) = self.rest.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = self.rest.get(HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let written = Writer::default().text(1, "abc").nested(2, Writer::default().number(3, 7)).finish();
        let read = Attributes::new(&written);
        assert_eq!(read.get(1), Some(&b"abc\0"[..]));
        assert_eq!(Attributes::new(read.get(2).unwrap()).number(3), Some(7));
        assert_eq!(read.get(9), None);
    }

    #[test]
    fn what_was_written_is_recognised_among_more() {
        let written = Writer::default().nested(2, Writer::default().number(3, 7));
        let more = Writer::default().number(1, 1).nested(2, Writer::default().number(3, 7).number(4, 0));
        let other = Writer::default().nested(2, Writer::default().number(3, 8));
        assert!(Attributes::new(&more.finish()).contain(&written));
        assert!(!Attributes::new(&other.finish()).contain(&written));
        assert!(!Attributes::new(&[]).contain(&written));
    }

    #[test]
    fn lengths_that_lie_end_the_list() {
        for bytes in [&[][..], &[4, 0, 1], &[3, 0, 1, 0], &[0, 0, 1, 0], &[9, 0, 1, 0, 1], &[255, 255, 1, 0]]
        {
            assert_eq!(Attributes::new(bytes).next(), None, "{bytes:?}");
        }
    }
}
