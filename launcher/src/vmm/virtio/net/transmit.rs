//! From the guest to the tap.

use std::io::{self, Write};

use super::{BATCH, FRAME, Progress};
use crate::vmm::virtio::queue::{Head, VirtQueue};
use crate::vmm::virtio::segments::{Direction, Segments};

/// One direction of a device.
pub(super) struct Transmit {
    frame: Box<[u8]>,
    segments: Segments,
    /// A frame that the tap would not take yet: its chain and its length in `frame`.
    waiting: Option<(Head, usize)>,
}

impl Transmit {
    pub(super) fn new() -> Self {
        Self { frame: vec![0; FRAME].into(), segments: Segments::default(), waiting: None }
    }

    pub(super) fn reset(&mut self) {
        self.waiting = None;
    }

    pub(super) fn serve(&mut self, mut tap: impl Write, queue: &mut VirtQueue) -> Progress {
        queue.quiet();
        let mut progress = Progress::More;
        for _ in 0..BATCH {
            let Some((head, length)) = self.waiting.take().or_else(|| self.take_frame(queue)) else {
                progress = if queue.wait() { Progress::More } else { Progress::Done };
                break;
            };
            match tap.write(&self.frame[..length]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The tap's next edge calls again.
                    self.waiting = Some((head, length));
                    progress = Progress::Done;
                    break;
                }
                // Sent; or dropped, as a NIC drops what is no frame and what it has no link for.
                Ok(_) | Err(_) => queue.push(head, 0),
            }
        }
        queue.flush();
        progress
    }

    /// Copies the next frame out of guest memory. What cannot be a frame becomes one of no bytes, which no tap takes.
    fn take_frame(&mut self, queue: &mut VirtQueue) -> Option<(Head, usize)> {
        self.segments.clear();
        let head = queue.pop(Direction::Readable, &mut self.segments)?;
        let length = self.segments.length();
        let copied = length <= FRAME && self.segments.read(queue.ram(), 0, &mut self.frame[..length]).is_ok();
        Some((head, if copied { length } else { 0 }))
    }
}
