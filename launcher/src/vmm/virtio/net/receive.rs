//! From the tap to the guest.
//!
//! A frame is read only when the guest has a buffer, so that frames wait, and at last are dropped, in the kernel's
//! queue and not here. One that does not fit into the buffers at hand waits in the frame buffer for more of them.

use std::io::Read;

use super::{BATCH, FRAME, Progress};
use crate::vmm::virtio::queue::{Head, VirtQueue};
use crate::vmm::virtio::segments::{Direction, Segments};

/// Where the header's `num_buffers` is (struct virtio_net_hdr_v1).
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;

/// One direction of a device.
pub(super) struct Receive {
    frame: Box<[u8]>,
    /// Bytes in `frame` that wait for buffers; 0 is none.
    waiting: usize,
    /// Whether a frame may be spread over several chains.
    mergeable: bool,
    segments: Segments,
    /// The chains of the frame at hand, and where each ends in it.
    chains: Vec<(Head, usize)>,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    /// The guest has it, or will never have it.
    Over,
    /// More buffers are needed than there were; true if some have come since.
    Waits(bool),
}

impl Receive {
    pub(super) fn new() -> Self {
        Self {
            frame: vec![0; FRAME].into(),
            waiting: 0,
            mergeable: false,
            segments: Segments::default(),
            chains: Vec::new(),
        }
    }

    pub(super) fn activate(&mut self, mergeable: bool) {
        self.mergeable = mergeable;
    }

    pub(super) fn reset(&mut self) {
        self.waiting = 0;
    }

    pub(super) fn serve(&mut self, mut tap: impl Read, queue: &mut VirtQueue) -> Progress {
        queue.quiet();
        let mut progress = Progress::More;
        for _ in 0..BATCH {
            if !self.take_chain(queue) {
                progress = if queue.wait() { Progress::More } else { Progress::Done };
                break;
            }
            if self.waiting == 0 {
                // A tap gives whole frames; there is none, or the link is gone, when it gives nothing.
                match tap.read(&mut self.frame) {
                    Ok(length @ 1..) => self.waiting = length,
                    Ok(0) | Err(_) => {
                        queue.unpop(1);
                        // The tap's next edge calls again; the guest's buffers alone are no reason.
                        progress = Progress::Done;
                        break;
                    }
                }
            }
            if let Delivery::Waits(more) = self.deliver(queue) {
                progress = if more { Progress::More } else { Progress::Done };
                break;
            }
        }
        queue.flush();
        progress
    }

    /// Takes the first chain for the next frame.
    fn take_chain(&mut self, queue: &mut VirtQueue) -> bool {
        self.segments.clear();
        self.chains.clear();
        self.add_chain(queue)
    }

    fn add_chain(&mut self, queue: &mut VirtQueue) -> bool {
        let Some(head) = queue.pop(Direction::Writable, &mut self.segments) else { return false };
        self.chains.push((head, self.segments.length()));
        true
    }

    /// Copies the waiting frame into the chains, taking more of them as it needs.
    fn deliver(&mut self, queue: &mut VirtQueue) -> Delivery {
        while self.mergeable && self.segments.length() < self.waiting {
            if !self.add_chain(queue) {
                // Asked while all chains are taken, so that only new ones count.
                let more = queue.wait();
                queue.unpop(self.chains.len());
                return Delivery::Waits(more);
            }
        }
        let count = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        self.frame[NUM_BUFFERS].copy_from_slice(&count.to_le_bytes());
        let copied = self.segments.write(queue.ram(), 0, &self.frame[..self.waiting]).is_ok();
        // A frame that is too long for the guest, or whose buffers are not memory, is lost; the chains are not.
        let length = if copied { self.waiting } else { 0 };
        self.waiting = 0;
        let mut start = 0;
        for (head, end) in self.chains.drain(..) {
            let end = end.min(length);
            queue.push(head, end - start);
            start = end;
        }
        Delivery::Over
    }
}
