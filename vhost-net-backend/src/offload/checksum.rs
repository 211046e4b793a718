//! The Internet checksum (RFC 1071).

/// Where a UDP checksum is, from the start of its header.
const UDP_CHECKSUM: usize = 6;

/// The one's complement sum of `bytes` as 16-bit words, added to `sum`; not folded.
pub(super) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, word| sum + u64::from(u32::from_be_bytes(*word)));
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum to the checksum to store.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let folded = sum as u16;
    !folded
}

/// A checksum as UDP sends it: 0 would mean "none" (RFC 768).
pub(super) fn udp(sum: u64) -> u16 {
    match fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Finishes a partial checksum: sums up from `start`, where the pseudo header's sum is already stored at
/// `start + offset`, and stores it there. `None` if that is outside of the frame.
pub(super) fn finish(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let covered = frame.get_mut(start..)?;
    let sum = add(0, covered);
    let field = covered.get_mut(offset..)?.first_chunk_mut()?;
    *field = if offset == UDP_CHECKSUM { udp(sum) } else { fold(sum) }.to_be_bytes();
    Some(())
}
