//! The control queue of a network device with several queue pairs (virtio 1.2, 5.1.6.5): the driver says on how many
//! of them it wants frames.
//!
//! That is the one command there is. RSS and hash reports are not offered: which pair a frame comes on is for the side
//! that has the frame. A driver that uses one pair is free to accept the queue without more pairs; then it is the third.

use std::ops::Range;
use std::os::fd::RawFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::queue::{Head, VirtQueue};
use super::segments::Segments;
use super::{Cause, Progress, Queues, Server};
use crate::control::QueuePairs;

/// Commands obeyed before others have their turn.
const BATCH: usize = 8;
/// Bytes of a command: class, number, pairs (u16).
const COMMAND: usize = 4;

/// The features of a device with so many pairs.
pub(super) fn features(pairs: QueuePairs) -> u64 {
    if pairs > QueuePairs::ONE { 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ } else { 0 }
}

/// How many queues such a device has: two per pair, and this one.
pub(super) fn queues(pairs: QueuePairs) -> usize {
    pairs.count() * 2 + usize::from(pairs > QueuePairs::ONE)
}

/// How many pairs a driver of these features may use.
pub(super) fn usable(pairs: QueuePairs, features: u64) -> QueuePairs {
    if features & 1 << VIRTIO_NET_F_MQ != 0 { pairs } else { QueuePairs::ONE }
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Refused,
    /// The follower's event tells when to ask again.
    Pending,
}

/// Whoever brings the frames.
pub(super) trait Follower: Send {
    /// A driver is ready, with these features. It gets frames on the first pair.
    fn activate(&mut self, features: u64);
    /// The driver is gone.
    fn reset(&mut self);
    /// From now on frames go to the first `pairs` pairs, and to no other.
    fn follow(&mut self, pairs: QueuePairs) -> Verdict;
    /// What has become of a pending change.
    fn verdict(&self) -> Verdict {
        Verdict::Done
    }
    /// Signalled when a pending change may be done.
    fn event_fd(&self) -> Option<RawFd> {
        None
    }
}

/// The server of the queue.
pub(super) struct Control<F> {
    pairs: QueuePairs,
    /// As many as the driver may ask for.
    usable: QueuePairs,
    follower: F,
    command: Segments,
    answer: Segments,
    /// A command whose verdict is pending.
    pending: Option<Head>,
}

impl<F: Follower> Control<F> {
    pub(super) fn new(pairs: QueuePairs, follower: F) -> Self {
        let (command, answer) = (Segments::default(), Segments::default());
        Self { pairs, usable: QueuePairs::ONE, follower, command, answer, pending: None }
    }

    /// Obeys the command in `self.command`.
    fn obey(&mut self, queue: &VirtQueue) -> Verdict {
        let mut bytes = [0; COMMAND];
        if self.command.length() != COMMAND || self.command.read(queue.ram(), 0, &mut bytes).is_err() {
            return Verdict::Refused;
        }
        let [class, number, low, high] = bytes;
        let is_known = (class.into(), number.into()) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        match QueuePairs::try_from(u16::from_le_bytes([low, high])) {
            // Without the feature there is no such command.
            Ok(pairs) if is_known && self.usable > QueuePairs::ONE && pairs <= self.usable => {
                self.follower.follow(pairs)
            }
            Ok(_) | Err(_) => Verdict::Refused,
        }
    }

    /// Hands a command back. One without a place for the answer gets none.
    fn answer(&self, queue: &mut VirtQueue, head: Head, verdict: Verdict) {
        let code = if verdict == Verdict::Done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        let written = self.answer.write(queue.ram(), 0, &[code]).map_or(0, |()| 1);
        queue.push(head, written);
    }
}

impl<F: Follower> Server for Control<F> {
    fn hears(&self) -> Vec<usize> {
        if self.pairs == QueuePairs::ONE { Vec::new() } else { vec![2, self.pairs.count() * 2] }
    }

    fn queues(&self, features: u64) -> Range<usize> {
        let first = usable(self.pairs, features).count() * 2;
        first..first + usize::from(features & 1 << VIRTIO_NET_F_CTRL_VQ != 0)
    }

    fn activate(&mut self, features: u64) {
        self.usable = usable(self.pairs, features);
        self.follower.activate(features);
    }

    fn reset(&mut self) {
        self.pending = None;
        self.follower.reset();
    }

    fn event_fd(&self) -> Option<RawFd> {
        self.follower.event_fd()
    }

    fn serve(&mut self, _cause: Cause, queues: &mut Queues) -> Progress {
        let Some(queue) = queues.get(self.usable.count() * 2) else { return Progress::Done };
        let mut progress = Progress::More;
        for _ in 0..BATCH {
            let (head, verdict) = match self.pending.take() {
                Some(head) => (head, self.follower.verdict()),
                None => {
                    self.command.clear();
                    self.answer.clear();
                    let Some(head) = queue.pop_both(&mut self.command, &mut self.answer) else {
                        progress = if queue.wait() { Progress::More } else { Progress::Done };
                        break;
                    };
                    (head, self.obey(queue))
                }
            };
            if verdict == Verdict::Pending {
                self.pending = Some(head);
                progress = Progress::Done;
                break;
            }
            self.answer(queue, head, verdict);
        }
        queue.flush();
        progress
    }
}

#[cfg(test)]
mod tests;
