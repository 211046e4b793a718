//! Captures as files: pcap with nanoseconds (draft-ietf-opsawg-pcap), Ethernet, in this machine's byte order.

use std::io::{self, Write};
use std::time::SystemTime;

use crate::mirror::Record;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const LINKTYPE_ETHERNET: u32 = 1;

/// Writes the file's head. `snap` is the most that is kept of a frame.
pub fn head(to: &mut impl Write, snap: u32) -> io::Result<()> {
    let [major, minor] = VERSION.map(u16::to_ne_bytes);
    let mut bytes = Vec::with_capacity(24);
    bytes.extend(MAGIC_NANOSECONDS.to_ne_bytes());
    bytes.extend(major);
    bytes.extend(minor);
    // Two fields that nobody uses.
    bytes.extend([0; 8]);
    bytes.extend(snap.to_ne_bytes());
    bytes.extend(LINKTYPE_ETHERNET.to_ne_bytes());
    to.write_all(&bytes)
}

/// Writes a frame.
pub fn frame(to: &mut impl Write, record: &Record) -> io::Result<()> {
    let time = record.time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // The format's seconds end in 2106.
    let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    let kept = u32::try_from(record.bytes().len()).unwrap_or(u32::MAX);
    for field in [seconds, time.subsec_nanos(), kept, record.length] {
        to.write_all(&field.to_ne_bytes())?;
    }
    to.write_all(record.bytes())
}
