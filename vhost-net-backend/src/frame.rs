//! Frames on their way between two ends: lent by a source, as pieces of memory, never owned.
//!
//! A source fills a [`Batch`], a sink copies out of it, and the source then takes its buffers back; nothing here is
//! allocated. Each frame carries its virtio-net [`Header`], already checked by [`Header::check`], so that whoever
//! takes the frame may believe it.

use arrayvec::ArrayVec;

use crate::fault::HeaderFault;
use crate::memory::Readable;

/// The most frames moved at once.
pub const BATCH: usize = 64;

/// The most pieces of memory in a batch. A Linux guest's largest frame has 18.
pub const PIECES: usize = 512;

/// The longest frame: a 64 KiB IP packet, its Ethernet header and two VLAN tags.
pub const MAX_FRAME: u32 = 65_535 + 14 + 8;

/// The shortest: an Ethernet header.
pub const MIN_FRAME: u32 = 14;

/// `struct virtio_net_hdr` without `num_buffers` (virtio 1.2, 5.1.6), little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Header {
    /// [`flags`].
    pub flags: u8,
    /// [`gso`].
    pub gso_type: u8,
    /// Bytes up to the payload; a hint.
    pub header_length: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub checksum_start: u16,
    /// Where it is stored, from there.
    pub checksum_offset: u16,
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The checksum is only that of the pseudo header; the rest is to be added.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// The checksum was verified.
    pub const DATA_VALID: u8 = 2;
}

/// Values of [`Header::gso_type`].
pub mod gso {
    /// One segment.
    pub const NONE: u8 = 0;
    /// TCP over IPv4.
    pub const TCP4: u8 = 1;
    /// TCP over IPv6.
    pub const TCP6: u8 = 4;
    /// UDP datagrams of one size, over either.
    pub const UDP: u8 = 5;
    /// Added to a TCP type: ECN's CWR is set.
    pub const ECN: u8 = 0x80;
}

/// What a frame needs done, or an end can take undone. A set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u8);

impl Offloads {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A partial checksum.
    pub const CHECKSUM: Self = Self(1);
    /// TCP segmentation over IPv4.
    pub const TSO4: Self = Self(2);
    /// TCP segmentation over IPv6.
    pub const TSO6: Self = Self(4);
    /// UDP segmentation.
    pub const USO: Self = Self(8);
    /// TCP segmentation of frames with CWR set.
    pub const ECN: Self = Self(16);

    /// Both sets together.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this.
    #[must_use]
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// `self` if `condition`, else nothing.
    #[must_use]
    pub const fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }
}

impl Header {
    /// The header of a finished frame.
    pub const NONE: Self =
        Self { flags: 0, gso_type: 0, header_length: 0, gso_size: 0, checksum_start: 0, checksum_offset: 0 };

    /// Bytes of it on a ring that has no `num_buffers`.
    pub const SHORT: u8 = 10;

    /// Bytes of it with `num_buffers`.
    pub const LONG: u8 = 12;

    /// From a ring or a tap.
    #[inline]
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes;
        Self {
            flags,
            gso_type,
            header_length: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            checksum_start: u16::from_le_bytes([s0, s1]),
            checksum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// For a ring or a tap, with the number of receive buffers the frame fills.
    #[inline]
    pub fn to_bytes(self, buffers: u16) -> [u8; 12] {
        let Self { flags, gso_type, header_length, gso_size, checksum_start, checksum_offset } = self;
        let [h0, h1] = header_length.to_le_bytes();
        let [g0, g1] = gso_size.to_le_bytes();
        let [s0, s1] = checksum_start.to_le_bytes();
        let [o0, o1] = checksum_offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, b0, b1]
    }

    /// As [`to_bytes`](Self::to_bytes), in two words.
    #[inline]
    pub(crate) fn to_words(self, buffers: u16) -> (u64, u32) {
        let Self { flags, gso_type, header_length, gso_size, checksum_start, checksum_offset } = self;
        let first = u64::from(flags)
            | u64::from(gso_type) << 8
            | u64::from(header_length) << 16
            | u64::from(gso_size) << 32
            | u64::from(checksum_start) << 48;
        (first, u32::from(checksum_offset) | u32::from(buffers) << 16)
    }

    /// Checks it against its frame and what its sender may ask for; says what the frame needs.
    ///
    /// # Errors
    /// A [`HeaderFault`] if it contradicts either.
    #[inline]
    pub fn check(&self, frame_length: u32, allowed: Offloads) -> Result<Offloads, HeaderFault> {
        if self.flags & flags::NEEDS_CHECKSUM == 0 && self.gso_type == gso::NONE {
            return Ok(Offloads::NONE);
        }
        self.check_offloads(frame_length, allowed)
    }

    fn check_offloads(&self, frame_length: u32, allowed: Offloads) -> Result<Offloads, HeaderFault> {
        let segmentation = match self.gso_type & !gso::ECN {
            gso::NONE if self.gso_type == gso::NONE => Offloads::NONE,
            gso::TCP4 => Offloads::TSO4.with(Offloads::ECN.only_if(self.gso_type & gso::ECN != 0)),
            gso::TCP6 => Offloads::TSO6.with(Offloads::ECN.only_if(self.gso_type & gso::ECN != 0)),
            gso::UDP if self.gso_type == gso::UDP => Offloads::USO,
            _ => return Err(HeaderFault::GsoType(self.gso_type)),
        };
        if segmentation != Offloads::NONE {
            if self.flags & flags::NEEDS_CHECKSUM == 0 {
                return Err(HeaderFault::GsoWithoutChecksum);
            }
            if self.gso_size == 0 {
                return Err(HeaderFault::GsoSize);
            }
        }
        let (start, offset) = (self.checksum_start, self.checksum_offset);
        if u32::from(start) + u32::from(offset) + 2 > frame_length {
            return Err(HeaderFault::Checksum { start, offset, length: frame_length });
        }
        let needs = segmentation.with(Offloads::CHECKSUM);
        if allowed.contains(needs) { Ok(needs) } else { Err(HeaderFault::NotNegotiated) }
    }
}

/// One frame of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// What it needs.
    pub needs: Offloads,
    /// Its bytes, without the header.
    pub length: u32,
    first: u16,
    pieces: u16,
}

/// Frames lent by a source, in order.
#[derive(Debug, Default)]
pub struct Batch<'m> {
    frames: ArrayVec<Frame, BATCH>,
    pieces: ArrayVec<Readable<'m>, PIECES>,
    needs: Offloads,
    bytes: u64,
}

/// A frame did not fit into what is left of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchFull;

impl<'m> Batch<'m> {
    /// An empty one.
    #[inline]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a frame whose header was checked; `needs` is what the check said.
    ///
    /// # Errors
    /// [`BatchFull`]; then nothing was added.
    #[inline]
    pub fn push(
        &mut self,
        header: Header,
        needs: Offloads,
        length: u32,
        pieces: &[Readable<'m>],
    ) -> Result<(), BatchFull> {
        #[expect(clippy::cast_possible_truncation, reason = "PIECES fits")]
        let (first, count) = (self.pieces.len() as u16, pieces.len() as u16);
        if self.frames.is_full() || self.pieces.remaining_capacity() < pieces.len() {
            return Err(BatchFull);
        }
        self.pieces.extend(pieces.iter().copied());
        self.frames.push(Frame { header, needs, length, first, pieces: count });
        self.needs = self.needs.with(needs);
        self.bytes += u64::from(length);
        Ok(())
    }

    /// Takes a header of `length` bytes off the front of every frame, and checks it. Where nothing is allowed to be asked for in
    /// it, it is not even read: a guest that does so is not listened to, and a cache line stays where it is. For frames that were added with the header
    /// in their pieces, but not in their length: a source adds all before it looks at the first, so that the CPU can fetch
    /// the memory of many at once.
    ///
    /// # Errors
    /// The first [`HeaderFault`]; then the batch is good for nothing.
    #[inline]
    pub(crate) fn take_headers(&mut self, length: u8, allowed: Offloads) -> Result<(), HeaderFault> {
        for frame in &mut self.frames {
            let first = usize::from(frame.first);
            let pieces = self.pieces.get_mut(first..first + usize::from(frame.pieces)).unwrap_or_default();
            if allowed == Offloads::NONE {
                skip_header(pieces, length);
            } else {
                frame.header = take_header(pieces, length);
                frame.needs = frame.header.check(frame.length, allowed)?;
            }
            self.needs = self.needs.with(frame.needs);
            // A header in a buffer of its own leaves nothing of that.
            while frame.pieces > 1
                && self.pieces.get(usize::from(frame.first)).is_some_and(Readable::is_empty)
            {
                frame.first += 1;
                frame.pieces -= 1;
            }
        }
        Ok(())
    }

    /// How many frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// What any of its frames needs.
    #[inline]
    pub fn needs(&self) -> Offloads {
        self.needs
    }

    /// Bytes of the first `count` frames, without headers.
    #[inline]
    pub fn bytes_of(&self, count: usize) -> u64 {
        if count == self.frames.len() {
            self.bytes
        } else {
            self.frames.iter().take(count).map(|frame| u64::from(frame.length)).sum()
        }
    }

    /// The frames in order, each with its pieces.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&Frame, &[Readable<'m>])> {
        self.frames.iter().map(|frame| {
            let first = usize::from(frame.first);
            let pieces = self.pieces.get(first..first + usize::from(frame.pieces));
            (frame, pieces.unwrap_or_default())
        })
    }
}

/// Cuts a header off the front of pieces that hold more than that.
#[inline]
fn skip_header(pieces: &mut [Readable<'_>], length: u8) {
    let mut left = u32::from(length);
    for piece in pieces {
        let here = left.min(piece.len());
        *piece = piece.skip(here);
        left -= here;
        if left == 0 {
            break;
        }
    }
}

/// Reads a header from the front of pieces that hold more than that, and cuts it off.
#[inline]
fn take_header(pieces: &mut [Readable<'_>], length: u8) -> Header {
    if let [first, ..] = pieces
        && length == Header::LONG
        && let Some([header @ .., _, _]) = first.read_first::<{ Header::LONG as usize }>()
    {
        *first = first.skip(length.into());
        return Header::from_bytes(header);
    }
    let mut bytes = [0; Header::LONG as usize];
    let mut have = 0;
    for piece in pieces {
        let wanted = bytes.get_mut(have..usize::from(length)).unwrap_or_default();
        if wanted.is_empty() {
            break;
        }
        let read = piece.read(wanted);
        have += read;
        #[expect(clippy::cast_possible_truncation, reason = "at most 12")]
        let read = read as u32;
        *piece = piece.skip(read);
    }
    let [header @ .., _, _] = bytes;
    Header::from_bytes(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads =
        Offloads::CHECKSUM.with(Offloads::TSO4).with(Offloads::TSO6).with(Offloads::USO).with(Offloads::ECN);

    fn header(flags: u8, gso_type: u8, gso_size: u16, checksum_start: u16, checksum_offset: u16) -> Header {
        Header { flags, gso_type, header_length: 54, gso_size, checksum_start, checksum_offset }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = header(1, gso::TCP6 | gso::ECN, 1440, 54, 16);
        let bytes = header.to_bytes(3);
        assert_eq!(Header::from_bytes(bytes[..10].try_into().unwrap()), header);
        assert_eq!(bytes[10..], [3, 0]);
        let (first, second) = header.to_words(3);
        assert_eq!([&first.to_le_bytes()[..], &second.to_le_bytes()].concat(), bytes);
    }

    #[test]
    fn honest_headers_say_what_they_need() {
        let needs = |header: Header| header.check(1514, ALL).unwrap();
        assert_eq!(needs(Header::NONE), Offloads::NONE);
        assert_eq!(needs(header(flags::DATA_VALID, 0, 0, 9999, 0)), Offloads::NONE);
        assert_eq!(needs(header(1, gso::NONE, 0, 34, 16)), Offloads::CHECKSUM);
        assert_eq!(needs(header(1, gso::UDP, 1400, 34, 6)), Offloads::CHECKSUM.with(Offloads::USO));
        let ecn = Offloads::CHECKSUM.with(Offloads::TSO4).with(Offloads::ECN);
        assert_eq!(needs(header(1, gso::TCP4 | gso::ECN, 1400, 34, 16)), ecn);
    }

    #[test]
    fn headers_that_lie_are_told() {
        let lies = [
            (header(1, gso::NONE, 0, 50, 13), HeaderFault::Checksum { start: 50, offset: 13, length: 64 }),
            (
                header(1, gso::NONE, 0, 65_535, 65_535),
                HeaderFault::Checksum { start: 65_535, offset: 65_535, length: 64 },
            ),
            (header(1, 2, 100, 34, 16), HeaderFault::GsoType(2)),
            (header(1, gso::ECN, 100, 34, 16), HeaderFault::GsoType(0x80)),
            (header(1, gso::UDP | gso::ECN, 100, 34, 6), HeaderFault::GsoType(0x85)),
            (header(1, gso::TCP4, 0, 34, 16), HeaderFault::GsoSize),
            (header(0, gso::TCP4, 100, 34, 16), HeaderFault::GsoWithoutChecksum),
        ];
        for (header, fault) in lies {
            assert_eq!(header.check(64, ALL), Err(fault));
        }
        let tso = header(1, gso::TCP4, 100, 34, 16);
        assert_eq!(tso.check(64, Offloads::CHECKSUM), Err(HeaderFault::NotNegotiated));
    }

    #[test]
    fn a_full_batch_takes_nothing_more() {
        let bytes = [0; 64];
        let mut batch = Batch::new();
        for _ in 0..BATCH {
            batch.push(Header::NONE, Offloads::NONE, 64, &[Readable::own(&bytes)]).unwrap();
        }
        assert_eq!(batch.push(Header::NONE, Offloads::NONE, 64, &[Readable::own(&bytes)]), Err(BatchFull));
        assert_eq!((batch.len(), batch.bytes_of(BATCH), batch.bytes_of(2)), (BATCH, 64 * 64, 128));
    }
}
