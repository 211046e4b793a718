//! A batch's way into a sink: as it is where the sink takes what its frames need, finished in software where not.

use std::ops::Range;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::spread::Spread;
use crate::counters::{Counter, Direction, Drops};
use crate::fault::Fault;
use crate::frame::{BATCH, Batch, Header, Offloads};
use crate::memory::Readable;
use crate::offload::Finisher;
use crate::port::Port;

/// How long a full sink is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(5);

/// The most frames that are finished in software before other lanes have their turn: more than honest guests' batches become.
const FINISHED: usize = 4096;

/// How long a queue of the lane's sink has been full.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    #[default]
    No,
    Since(Instant),
    /// For longer than we wait.
    Long,
}

/// A batch's way into a sink.
pub(super) struct Delivery<'l> {
    pub(super) sink: &'l mut Port,
    /// The source's queue, and how many it has.
    pub(super) queue: usize,
    pub(super) sources: usize,
    pub(super) counters: &'l Direction,
    /// Of each queue of the sink.
    pub(super) full: &'l mut [Full],
    pub(super) finisher: &'l mut Finisher,
    /// Frames that were finished so far.
    pub(super) finished: usize,
    /// What ended the sink.
    pub(super) fault: Option<Fault>,
}

impl Delivery<'_> {
    /// How many frames of the batch are done with: passed on or dropped.
    #[inline]
    pub(super) fn push(&mut self, batch: &Batch<'_>) -> usize {
        match Spread::new(self.queue, self.sources, self.sink.receivers()) {
            None => self.push_to(self.queue, batch),
            Some(spread) => self.spread(spread, batch),
        }
    }

    /// As [`push`](Self::push), each flow to its own queue. Neighbours for one queue go there together.
    fn spread(&mut self, spread: Spread, batch: &Batch<'_>) -> usize {
        let queues: ArrayVec<usize, BATCH> =
            batch.iter().map(|(_, pieces)| spread.queue_for(pieces)).collect();
        let mut done = 0;
        for neighbours in queues.chunk_by(|one, next| one == next) {
            let queue = neighbours.first().copied().unwrap_or_default();
            let count = neighbours.len();
            let taken = self.push_to(queue, &part(batch, done..done + count));
            done += taken;
            if taken < count || self.finished >= FINISHED {
                break;
            }
        }
        done
    }

    #[inline]
    fn push_to(&mut self, queue: usize, batch: &Batch<'_>) -> usize {
        let counters = self.counters;
        let Some(accepts) = self.sink.accepts(queue) else {
            counters.drops.peer_down.add(batch.len() as u64);
            return batch.len();
        };
        let pushed = if accepts.contains(batch.needs()) {
            self.sink.push(queue, batch).map(|pushed| {
                counters.drops.refused.add(pushed.refused as u64);
                pushed.taken
            })
        } else {
            let Self { sink, finisher, finished, .. } = self;
            Slow { sink, queue, accepts, finisher, finished }.push(batch, &counters.drops)
        };
        // A sink that has fewer queues than the source: all of this lane go to one of them.
        let at = if queue < self.full.len() { queue } else { 0 };
        let Some(full) = self.full.get_mut(at) else { return 0 };
        match pushed {
            Ok(0) => full.drop_if_long(batch, &counters.drops.no_room),
            Ok(taken) => {
                *full = Full::No;
                counters.packets.add(taken as u64);
                counters.bytes.add(batch.bytes_of(taken));
                counters.batches.add(1);
                taken
            }
            Err(fault) => {
                self.fault = Some(fault);
                0
            }
        }
    }
}

/// Some frames of a batch.
fn part<'m>(batch: &Batch<'m>, which: Range<usize>) -> Batch<'m> {
    let mut part = Batch::new();
    for (frame, pieces) in batch.iter().take(which.end).skip(which.start) {
        // What was in a batch fits into one.
        let _never_full = part.push(frame.header, frame.needs, frame.length, pieces);
    }
    part
}

impl Full {
    /// The sink took nothing: says how many frames to drop.
    fn drop_if_long(&mut self, batch: &Batch<'_>, dropped: &Counter) -> usize {
        match *self {
            Self::No => *self = Self::Since(Instant::now()),
            Self::Since(start) if start.elapsed() >= PATIENCE => *self = Self::Long,
            Self::Since(_) => {}
            Self::Long => {
                dropped.add(batch.len() as u64);
                return batch.len();
            }
        }
        0
    }
}

/// Frame by frame: for a sink that cannot take what some frame of a batch needs.
struct Slow<'l> {
    sink: &'l mut Port,
    queue: usize,
    accepts: Offloads,
    finisher: &'l mut Finisher,
    finished: &'l mut usize,
}

impl Slow<'_> {
    /// How many frames of the batch are done with.
    fn push(&mut self, batch: &Batch<'_>, drops: &Drops) -> Result<usize, Fault> {
        let mut done = 0;
        for (frame, pieces) in batch.iter() {
            if self.accepts.contains(frame.needs) {
                let mut one = Batch::new();
                // An empty batch has room for any frame.
                let _never_full = one.push(frame.header, frame.needs, frame.length, pieces);
                let pushed = self.sink.push(self.queue, &one)?;
                drops.refused.add(pushed.refused as u64);
                if pushed.taken == 0 {
                    break;
                }
            } else {
                let Ok(finished) = self.finisher.finish(frame, pieces) else {
                    drops.unfinished.add(1);
                    done += 1;
                    continue;
                };
                let finished = finished.inspect(|_| *self.finished += 1);
                if !push_finished(self.sink, self.queue, finished, drops)? {
                    break;
                }
            }
            done += 1;
            if *self.finished >= FINISHED {
                break;
            }
        }
        Ok(done)
    }
}

/// Pushes finished frames; those that find no room behind others that did are lost, as on any wire.
///
/// # Returns
/// Whether any found room.
fn push_finished<'s>(
    sink: &mut Port,
    queue: usize,
    mut finished: impl Iterator<Item = &'s [u8]>,
    drops: &Drops,
) -> Result<bool, Fault> {
    let mut next = finished.next();
    let mut any = false;
    while next.is_some() {
        let mut batch = Batch::new();
        while let Some(bytes) = next {
            let piece = Readable::own(bytes);
            if batch.push(Header::NONE, Offloads::NONE, piece.len(), &[piece]).is_err() {
                break;
            }
            next = finished.next();
        }
        let pushed = sink.push(queue, &batch)?;
        drops.refused.add(pushed.refused as u64);
        if pushed.taken == 0 && !any {
            return Ok(false);
        }
        any = true;
        drops.no_room.add((batch.len() - pushed.taken) as u64);
    }
    Ok(any)
}
