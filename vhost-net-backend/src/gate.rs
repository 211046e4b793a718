//! What holds for frames that come from an end: whose address they bear, and how many may come.
//!
//! A [`Gate`] stands between a source and its link's sink, for ends with a [`Policy`]; others have none, and pay nothing.
//! A frame that must not pass is dropped and counted. The Ethernet header that was checked is the one that is sent:
//! it is copied first, so a guest that changes it meanwhile changes nothing.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use net_types::Mac;

use crate::counters::Drops;
use crate::frame::{BATCH, Batch, Frame, Header, MAX_FRAME, Offloads, PIECES, gso};
use crate::memory::{Readable, read_front};
use crate::offload::headers;

/// Bytes of an Ethernet header.
const HEADER: usize = 14;

/// How much may come at once before a limit holds: what the rate allows in this time.
const BURST: Duration = Duration::from_millis(50);

/// What holds for frames from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Only frames from this address pass.
    pub source: Option<Mac>,
    /// At most so many bytes a second, Ethernet headers included. Of a frame that is to be cut up, those of all that it becomes.
    pub bytes: Option<NonZeroU64>,
    /// At most so many frames a second. One that is to be cut up counts as those that it becomes.
    pub packets: Option<NonZeroU64>,
}

/// A policy at work.
#[derive(Debug)]
pub struct Gate {
    source: Option<[u8; 6]>,
    bytes: Option<Rate>,
    packets: Option<Rate>,
    start: Instant,
    heads: [[u8; HEADER]; BATCH],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Spoofed,
    TooMany,
    /// There would be no room for a piece of its own for the header.
    TooManyPieces,
}

impl Gate {
    /// A gate, if the policy asks for anything.
    pub fn new(policy: Policy) -> Option<Box<Self>> {
        let Policy { source, bytes, packets } = policy;
        (policy != Policy::default()).then(|| {
            Box::new(Self {
                source: source.map(Mac::octets),
                bytes: bytes.map(|rate| Rate::new(rate, MAX_FRAME.into())),
                packets: packets.map(|rate| Rate::new(rate, 1)),
                start: Instant::now(),
                heads: [[0; HEADER]; BATCH],
            })
        })
    }

    /// Hands the frames that may pass to `push`, which says how many it took from their front.
    ///
    /// # Returns
    /// How many frames of the batch, from its front, are done with: taken or dropped.
    pub fn pass(
        &mut self,
        batch: &Batch<'_>,
        drops: &Drops,
        push: impl FnOnce(&Batch<'_>) -> usize,
    ) -> usize {
        let now = self.now();
        let verdicts = self.judge(batch, now);
        let mut passing = Batch::new();
        let frames = batch.iter().zip(&verdicts).zip(&self.heads);
        for (((frame, pieces), _), head) in frames.filter(|((_, verdict), _)| **verdict == Verdict::Pass) {
            let parts = if self.source.is_some() {
                with_head(head, pieces)
            } else {
                pieces.iter().copied().collect()
            };
            // What does not fit, for its pieces, comes again with the next batch.
            if passing.push(frame.header, frame.needs, frame.length, &parts).is_err() {
                break;
            }
        }
        let taken = if passing.is_empty() { 0 } else { push(&passing) };
        drop(passing);
        self.settle(batch, &verdicts, taken, now, drops)
    }

    fn now(&self) -> u64 {
        if self.bytes.is_none() && self.packets.is_none() {
            return 0;
        }
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Says of each frame whether it may pass; nothing is charged yet.
    fn judge(&mut self, batch: &Batch<'_>, now: u64) -> ArrayVec<Verdict, BATCH> {
        let (mut bytes, mut packets) = (self.bytes, self.packets);
        let judged = batch.iter().zip(&mut self.heads).map(|((frame, pieces), head)| {
            if let Some(source) = self.source {
                if pieces.len() >= PIECES {
                    return Verdict::TooManyPieces;
                }
                read_front(pieces, head);
                if head.get(6..12) != Some(source.as_slice()) || rewrites_ethernet(frame) {
                    return Verdict::Spoofed;
                }
            }
            let fits =
                bytes.is_none_or(|rate| rate.allows(now)) && packets.is_none_or(|rate| rate.allows(now));
            if !fits {
                return Verdict::TooMany;
            }
            charge(&mut bytes, &mut packets, now, frame, pieces);
            Verdict::Pass
        });
        judged.collect()
    }

    /// Counts and charges what is done with: everything up to the first passing frame that was not taken.
    fn settle(
        &mut self,
        batch: &Batch<'_>,
        verdicts: &[Verdict],
        mut taken: usize,
        now: u64,
        drops: &Drops,
    ) -> usize {
        let mut done = 0;
        for ((frame, pieces), verdict) in batch.iter().zip(verdicts) {
            match verdict {
                Verdict::Spoofed => drops.spoofed.add(1),
                Verdict::TooMany => drops.rate_limit.add(1),
                Verdict::TooManyPieces => drops.pieces.add(1),
                Verdict::Pass if taken > 0 => {
                    taken -= 1;
                    charge(&mut self.bytes, &mut self.packets, now, frame, pieces);
                }
                Verdict::Pass => break,
            }
            done += 1;
        }
        done
    }
}

fn charge(
    bytes: &mut Option<Rate>,
    packets: &mut Option<Rate>,
    now: u64,
    frame: &Frame,
    pieces: &[Readable<'_>],
) {
    let (count, length) = on_the_wire(frame, pieces);
    if let Some(rate) = bytes {
        rate.charge(now, length);
    }
    if let Some(rate) = packets {
        rate.charge(now, count);
    }
}

/// Whether the checksum that is still to be stored would be stored into the header that was checked: whoever finishes the frame
/// would give it another address.
fn rewrites_ethernet(frame: &Frame) -> bool {
    let Header { checksum_start, checksum_offset, .. } = frame.header;
    frame.needs != Offloads::NONE && usize::from(checksum_start) + usize::from(checksum_offset) < HEADER
}

/// What a frame comes to where it is cut up: how many frames, and how many bytes they have together.
///
/// A guest may change its headers after this look. Where segments are so small that this could hide many, they are counted as
/// if all but the shortest headers were data, each behind the longest.
fn on_the_wire(frame: &Frame, pieces: &[Readable<'_>]) -> (u64, u64) {
    let Header { gso_type, gso_size, .. } = frame.header;
    let whole = u64::from(frame.length);
    if gso_type == gso::NONE {
        return (1, whole);
    }
    let mut front = [0; MOST_HEADERS];
    let (before_data, each) = if gso_size < SMALL {
        (LEAST_HEADERS, MOST_HEADERS)
    } else {
        let length = headers(read_front(pieces, &mut front), gso_type).unwrap_or(LEAST_HEADERS);
        (length, length)
    };
    let data = whole.saturating_sub(before_data as u64);
    let count = data.div_ceil(u64::from(gso_size).max(1)).max(1);
    (count, whole + (count - 1) * each as u64)
}

/// The most bytes in front of a segment's data: Ethernet's header with two tags, IPv4's and TCP's with all options.
const MOST_HEADERS: usize = 14 + 8 + 60 + 60;

/// The fewest: Ethernet's, IPv4's and UDP's.
const LEAST_HEADERS: usize = 14 + 20 + 8;

/// Segments of fewer bytes are smaller than headers may be, and than any stack's.
const SMALL: u16 = 128;

/// A frame's pieces with its first bytes replaced by `head`.
fn with_head<'m>(head: &'m [u8; HEADER], pieces: &[Readable<'m>]) -> ArrayVec<Readable<'m>, PIECES> {
    let mut parts = ArrayVec::new();
    parts.push(Readable::own(head));
    let mut skip = 14;
    for piece in pieces {
        let rest = piece.skip(skip);
        skip -= skip.min(piece.len());
        if !rest.is_empty() && parts.try_push(rest).is_err() {
            break;
        }
    }
    parts
}

/// A limit, as the time at which what has come so far would have come at the rate (generic cell rate algorithm).
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// Nanoseconds that one unit takes, times 2^16. Rounded up: no more may come than the rate says.
    each: u64,
    /// How far ahead of its time a frame may come, in nanoseconds.
    tolerance: u64,
    /// When all that came is due, in nanoseconds.
    due: u64,
    /// What of that is less than a nanosecond, times 2^16.
    part: u64,
}

impl Rate {
    /// A limit of `rate` units a second; `largest` units always pass after a pause.
    fn new(rate: NonZeroU64, largest: u64) -> Self {
        let each = (1_000_000_000_u64 << 16).div_ceil(rate.get());
        let burst = u64::try_from(BURST.as_nanos()).unwrap_or(u64::MAX);
        let one = each.saturating_mul(largest) >> 16;
        Self { each, tolerance: burst.saturating_sub(one), due: 0, part: 0 }
    }

    fn allows(&self, now: u64) -> bool {
        self.due <= now.saturating_add(self.tolerance)
    }

    fn charge(&mut self, now: u64, units: u64) {
        let time = self.each.saturating_mul(units).saturating_add(self.part);
        (self.due, self.part) = (self.due.max(now).saturating_add(time >> 16), time & 0xffff);
    }
}

#[cfg(test)]
mod tests;
