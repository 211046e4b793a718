//! A tap as a link's end: the host's kernel is the peer, and finishes what frames need.
//!
//! Frames from the kernel are read into own buffers, so that a guest that is slow loses none that was read; frames to
//! it are written from the guest's memory as they are. One queue; the worker reads it until empty before it sleeps.

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};

use net_types::IfName;
use tap::{Queue, TapError};

use super::{Polled, Pushed, Unfit};
use crate::fault::Fault;
use crate::frame::{Batch, Header, MAX_FRAME, MIN_FRAME, Offloads, flags};
use crate::memory::{Readable, write_pieces};

/// Frames read at once. Each has room for the longest.
const SLOTS: usize = 32;
const SLOT: usize = Header::LONG as usize + MAX_FRAME as usize;

/// What every tap takes unfinished.
const ALWAYS: Offloads = Offloads::CHECKSUM.with(Offloads::TSO4).with(Offloads::TSO6).with(Offloads::ECN);

/// An opened tap.
#[derive(Debug)]
pub struct TapPort {
    /// `None` after a fault.
    queue: Option<Queue>,
    accepts: Offloads,
    offered: tap::Offloads,
    buffer: Vec<u8>,
    lengths: Vec<usize>,
    /// Slots `next..filled` hold frames that nobody took yet.
    next: usize,
    filled: usize,
}

impl TapPort {
    /// Opens the persistent tap `name` of this network namespace.
    ///
    /// # Errors
    /// [`TapError`]: there is none, it has several queues, or another process has it open.
    pub fn open(name: &IfName) -> Result<Self, TapError> {
        let queue = Queue::open(name, false)?;
        // Kernels before 6.2 know no UDP segmentation, and say so here.
        let all = tap::Offloads { checksum: true, tso4: true, tso6: true, uso: true };
        let accepts = ALWAYS.with(Offloads::USO.only_if(queue.set_offloads(all).is_ok()));
        let offered = tap::Offloads::default();
        queue.set_offloads(offered)?;
        let buffer = vec![0; SLOTS * SLOT];
        Ok(Self { queue: Some(queue), accepts, offered, buffer, lengths: vec![0; SLOTS], next: 0, filled: 0 })
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(Queue::as_fd)
    }

    pub(super) fn close(&mut self) {
        self.queue = None;
        self.next = self.filled;
    }

    pub(super) fn accepts(&self) -> Option<Offloads> {
        self.queue.is_some().then_some(self.accepts)
    }

    /// Tells the kernel what the guest takes unfinished.
    pub(super) fn offer(&mut self, accepted: Offloads) -> Result<(), Fault> {
        let checksum = accepted.contains(Offloads::CHECKSUM);
        let wanted = tap::Offloads {
            checksum,
            tso4: checksum && accepted.contains(Offloads::TSO4),
            tso6: checksum && accepted.contains(Offloads::TSO6),
            uso: checksum && accepted.contains(Offloads::USO) && self.accepts.contains(Offloads::USO),
        };
        let Some(queue) = &self.queue else { return Ok(()) };
        if wanted != self.offered {
            queue.set_offloads(wanted).map_err(|error| Fault::Io {
                operation: "TUNSETOFFLOAD",
                source: std::io::Error::other(error),
            })?;
            self.offered = wanted;
        }
        Ok(())
    }

    pub(super) fn poll(&mut self, deliver: &mut dyn FnMut(&Batch<'_>) -> usize) -> Result<Polled, Fault> {
        if self.next == self.filled {
            self.read()?;
        }
        let mut batch = Batch::new();
        for slot in self.next..self.filled {
            let at = self.buffer.get(slot * SLOT..);
            let bytes = at.and_then(|at| at.get(..*self.lengths.get(slot)?));
            match bytes.map_or(Err(Unfit::Short), lend) {
                Ok((header, needs, frame)) => {
                    if batch.push(header, needs, frame.len(), &[frame]).is_err() {
                        break;
                    }
                }
                // Given up alone, so that frames and slots stay one to one.
                Err(unfit) if batch.is_empty() => {
                    self.next += 1;
                    return Ok(Polled { unfit: Some(unfit), ..Polled::default() });
                }
                Err(_) => break,
            }
        }
        let lent = batch.len();
        if lent == 0 {
            return Ok(Polled::default());
        }
        let taken = deliver(&batch).min(lent);
        self.next += taken;
        Ok(Polled { lent, taken, unfit: None })
    }

    fn read(&mut self) -> Result<(), Fault> {
        (self.next, self.filled) = (0, 0);
        let Some(queue) = &self.queue else { return Ok(()) };
        for (slot, length) in self.buffer.chunks_exact_mut(SLOT).zip(&mut self.lengths) {
            match queue.file().read(slot) {
                Ok(count) => *length = count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => break,
                Err(source) => return Err(Fault::Io { operation: "read from the tap", source }),
            }
            self.filled += 1;
        }
        Ok(())
    }

    pub(super) fn push(&mut self, batch: &Batch<'_>) -> Result<Pushed, Fault> {
        let Some(queue) = &self.queue else { return Ok(Pushed::default()) };
        let mut pushed = Pushed::default();
        for (frame, pieces) in batch.iter() {
            let header = if frame.needs == Offloads::NONE {
                Header::NONE
            } else {
                Header { flags: flags::NEEDS_CHECKSUM, ..frame.header }
            };
            match write_pieces(queue.as_fd(), &header.to_bytes(0), pieces) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(pushed),
                // The link is down, or the frame's headers are not what its checksum says: the frame's fault.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(
                            libc::EIO
                                | libc::EINVAL
                                | libc::EFAULT
                                | libc::ENOBUFS
                                | libc::ENOMEM
                                | libc::EINTR
                        )
                    ) =>
                {
                    pushed.refused += 1;
                }
                Err(source) => return Err(Fault::Io { operation: "write to the tap", source }),
            }
            pushed.taken += 1;
        }
        Ok(pushed)
    }
}

/// Splits what was read into header and frame. The kernel's headers are held to the same rules as a guest's.
fn lend(bytes: &[u8]) -> Result<(Header, Offloads, Readable<'_>), Unfit> {
    let (header, frame) = bytes.split_first_chunk::<{ Header::LONG as usize }>().ok_or(Unfit::Short)?;
    let [header @ .., _, _] = *header;
    let header = Header::from_bytes(header);
    let frame = Readable::own(frame);
    if frame.len() < MIN_FRAME {
        return Err(Unfit::Short);
    }
    if frame.len() > MAX_FRAME {
        return Err(Unfit::Long);
    }
    let needs = header.check(frame.len(), ALWAYS.with(Offloads::USO)).map_err(|_lies| Unfit::Header)?;
    Ok((header, needs, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_sends_is_dropped_for_the_reason_that_is_true() {
        let of = |header: Header, length: u32| {
            let bytes = [header.to_bytes(0).as_slice(), &vec![0; length as usize]].concat();
            lend(&bytes).map(|(_, needs, frame)| (needs, frame.len()))
        };
        let lies = Header { flags: flags::NEEDS_CHECKSUM, checksum_start: 60, ..Header::NONE };
        assert_eq!(of(Header::NONE, MIN_FRAME), Ok((Offloads::NONE, MIN_FRAME)));
        assert_eq!(of(Header::NONE, MAX_FRAME), Ok((Offloads::NONE, MAX_FRAME)));
        assert_eq!(of(Header::NONE, MIN_FRAME - 1), Err(Unfit::Short));
        assert_eq!(of(Header::NONE, MAX_FRAME + 1), Err(Unfit::Long));
        assert_eq!(of(lies, 60), Err(Unfit::Header));
        assert_eq!(lend(&[0; 11]).err(), Some(Unfit::Short));
    }
}
