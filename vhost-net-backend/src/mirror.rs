//! Copies of a link's frames for whoever captures them.
//!
//! A [`Mirror`] belongs to the link's worker, its [`Viewer`] to the thread that writes the capture. Records travel
//! in a circle between the two, so that the worker allocates nothing; when the viewer is slow and no record is free,
//! frames are missed by the capture, and counted. A mirror whose viewer is gone goes too.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use crate::counters::Counter;
use crate::frame::Batch;

/// Records of one capture.
const RECORDS: usize = 512;

/// One frame as it was seen.
#[derive(Debug)]
pub struct Record {
    /// When, by the wall clock.
    pub time: SystemTime,
    /// Which end of the link it came from.
    pub side: usize,
    /// Its bytes, before any were left out.
    pub length: u32,
    bytes: Vec<u8>,
}

impl Record {
    /// What of the frame was kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The worker's side.
#[derive(Debug)]
pub struct Mirror {
    free: Receiver<Box<Record>>,
    filled: SyncSender<Box<Record>>,
    snap: usize,
    missed: Arc<Counter>,
}

/// The capture's side.
#[derive(Debug)]
pub struct Viewer {
    free: SyncSender<Box<Record>>,
    filled: Receiver<Box<Record>>,
    missed: Arc<Counter>,
}

/// What a viewer sees next.
#[derive(Debug)]
pub enum Seen {
    /// A frame.
    Frame(Box<Record>),
    /// Nothing in that time.
    Nothing,
    /// The link is gone.
    End,
}

/// A mirror that keeps at most `snap` bytes of each frame, and its viewer.
pub fn mirror(snap: usize) -> (Mirror, Viewer) {
    let (free, to_fill) = sync_channel(RECORDS);
    let (filled, to_view) = sync_channel(RECORDS);
    for _ in 0..RECORDS {
        let bytes = Vec::with_capacity(snap);
        let record = Box::new(Record { time: SystemTime::UNIX_EPOCH, side: 0, length: 0, bytes });
        // There is room for all of them, and the other end is right here.
        let _kept = free.try_send(record);
    }
    let missed = Arc::new(Counter::default());
    let mirror = Mirror { free: to_fill, filled, snap, missed: Arc::clone(&missed) };
    (mirror, Viewer { free, filled: to_view, missed })
}

impl Mirror {
    /// Whether there is still a viewer.
    pub(crate) fn is_viewed(&self) -> bool {
        Arc::strong_count(&self.missed) > 1
    }

    /// Copies the first `taken` frames of a batch from `side`; says whether anybody still looks.
    pub(crate) fn copy(&mut self, side: usize, batch: &Batch<'_>, taken: usize) -> bool {
        let time = SystemTime::now();
        for (frame, pieces) in batch.iter().take(taken) {
            let mut record = match self.free.try_recv() {
                Ok(record) => record,
                Err(TryRecvError::Empty) => {
                    self.missed.add(1);
                    continue;
                }
                Err(TryRecvError::Disconnected) => return false,
            };
            (record.time, record.side, record.length) = (time, side, frame.length);
            // Within what was allocated.
            record.bytes.clear();
            record.bytes.resize(self.snap.min(frame.length as usize), 0);
            let mut at = 0;
            for piece in pieces {
                at += piece.read(record.bytes.get_mut(at..).unwrap_or_default());
            }
            if let Err(TrySendError::Disconnected(_)) = self.filled.try_send(record) {
                return false;
            }
        }
        true
    }
}

impl Viewer {
    /// The next frame, or that there was none for `wait`; a time of 0 is only a look.
    pub fn next(&self, wait: Duration) -> Seen {
        match self.filled.recv_timeout(wait) {
            Ok(record) => Seen::Frame(record),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Seen::Nothing,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Seen::End,
        }
    }

    /// Gives a record back, to be filled again.
    pub fn give_back(&self, record: Box<Record>) {
        // Only as many are out as there is room for; a mirror that is gone needs none.
        let _ignored = self.free.try_send(record);
    }

    /// Frames that the capture missed.
    pub fn missed(&self) -> u64 {
        self.missed.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_knows_without_a_frame_that_nobody_looks_any_more() {
        let (mirror, viewer) = mirror(64);
        assert!(mirror.is_viewed());
        drop(viewer);
        assert!(!mirror.is_viewed());
    }
}
