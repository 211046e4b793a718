//! A guest's receive ring: a sink for frames.

use arrayvec::ArrayVec;

use super::chain::{Chain, Direction, LONGEST, Walked};
use super::layout::Descriptor;
use super::{Ring, Used};
use crate::fault::Fault;
use crate::frame::{Batch, Frame, Header, Offloads, PIECES, flags};
use crate::memory::{Readable, Writable, copy, set_words};
use crate::port::Pushed;

/// Chains given back at once. A frame that fills more than half of that is refused: 64 KiB in buffers of 128 bytes.
const CHAINS: usize = 1024;

/// A receive ring, taken over.
#[derive(Debug)]
pub struct RxQueue {
    ring: Ring,
    /// What its guest takes unfinished.
    accepts: Offloads,
    /// Whether a frame may go over several chains.
    mergeable: bool,
}

/// Why a frame was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The guest has made too few buffers available; later there may be more.
    NoRoom,
    /// The frame is longer than the guest's buffers are.
    TooBig,
}

impl RxQueue {
    /// A sink into `ring`.
    pub fn new(ring: Ring, accepts: Offloads, mergeable: bool) -> Self {
        Self { ring, accepts, mergeable }
    }

    /// What frames may need when they are pushed.
    #[inline]
    pub fn accepts(&self) -> Offloads {
        self.accepts
    }

    /// The ring below.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring below.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Writes frames to the guest, from the batch's front until there is no room; interrupts it once.
    ///
    /// # Errors
    /// A [`Fault`] of this guest; then nothing of the ring may be used any more.
    pub fn push(&mut self, batch: &Batch<'_>) -> Result<Pushed, Fault> {
        let mut free = self.ring.available()?;
        if free == 0 {
            return Ok(Pushed::default());
        }
        self.prefetch(free, batch.len());
        let mut used: ArrayVec<Used, CHAINS> = ArrayVec::new();
        let mut pushed = Pushed::default();
        for (frame, pieces) in batch.iter() {
            if used.remaining_capacity() < CHAINS / 2 {
                self.ring.complete(&used);
                used.clear();
            }
            let before = used.len();
            match self.place(frame, pieces, free, &mut used)? {
                #[expect(clippy::cast_possible_truncation, reason = "at most free")]
                Ok(()) => free -= (used.len() - before) as u16,
                Err(why) => {
                    used.truncate(before);
                    if why == Refused::NoRoom {
                        break;
                    }
                    pushed.refused += 1;
                }
            }
            pushed.taken += 1;
        }
        if pushed.taken > pushed.refused {
            // Found out while writing; there may be no next time to look.
            if self.ring.memory.is_gone() {
                return Err(Fault::MemoryGone);
            }
            self.ring.complete(&used);
            self.ring.signal()?;
        }
        Ok(pushed)
    }

    /// Asks the CPU to fetch where frames will be written. What is wrong with a descriptor is told when it is used.
    #[inline]
    fn prefetch(&self, free: u16, frames: usize) {
        let Ring { vring, memory, features, .. } = &self.ring;
        for ahead in (0..free).take(frames) {
            let head = self.ring.head(ahead);
            if head < vring.size() {
                let Descriptor { address, length, .. } = vring.descriptor(head);
                if let Some(room) = memory.writable(address, length) {
                    room.prefetch(features.header_length);
                }
            }
        }
    }

    /// Writes one frame to as many chains as it needs, and adds those to `used`.
    #[inline]
    fn place(
        &self,
        frame: &Frame,
        pieces: &[Readable<'_>],
        free: u16,
        used: &mut ArrayVec<Used, CHAINS>,
    ) -> Result<Result<(), Refused>, Fault> {
        let need = u32::from(self.ring.features.header_length) + frame.length;
        let mut targets: ArrayVec<Writable<'_>, PIECES> = ArrayVec::new();
        let (mut room, mut chains, mut descriptors) = (0, 0_u16, 0);
        while room < need {
            if chains == free {
                return Ok(Err(Refused::NoRoom));
            }
            // The last one is for chains whose descriptors have no bytes, which fill no target however many they are.
            if usize::from(chains) == CHAINS / 2 || targets.is_full() || descriptors >= LONGEST {
                return Ok(Err(Refused::TooBig));
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most CHAINS")]
            let head = self.ring.head(used.len() as u16);
            let chain = self.chain(head, &mut targets)?;
            used.push(Used { head, written: chain.bytes.min(need - room) });
            room = room.saturating_add(chain.bytes);
            descriptors += chain.descriptors;
            chains += 1;
            if room < need && !self.mergeable {
                return Ok(Err(Refused::TooBig));
            }
        }
        self.write(self.header(frame), chains, frame, pieces, &targets);
        Ok(Ok(()))
    }

    /// The room of one chain, without what does not fit into `targets`.
    #[inline]
    fn chain<'m>(&'m self, head: u16, targets: &mut ArrayVec<Writable<'m>, PIECES>) -> Result<Walked, Fault> {
        let chain = Chain {
            vring: &self.ring.vring,
            memory: &self.ring.memory,
            head,
            direction: Direction::Write,
            indirect_allowed: self.ring.features.indirect,
        };
        let mut room = 0_u32;
        let Walked { descriptors, .. } = chain.walk(|piece| {
            if targets.try_push(piece).is_ok() {
                room = room.saturating_add(piece.len());
            }
        })?;
        if room == 0 { Err(Fault::EmptyBuffer { head }) } else { Ok(Walked { bytes: room, descriptors }) }
    }

    /// "Checksum verified" is only for guests that negotiated checksums.
    #[inline]
    fn header(&self, frame: &Frame) -> Header {
        if frame.needs == Offloads::NONE {
            let valid = if self.accepts.contains(Offloads::CHECKSUM) { flags::DATA_VALID } else { 0 };
            Header { flags: frame.header.flags & valid, ..Header::NONE }
        } else {
            Header { flags: frame.header.flags & (flags::NEEDS_CHECKSUM | flags::DATA_VALID), ..frame.header }
        }
    }

    #[inline]
    fn write(
        &self,
        header: Header,
        chains: u16,
        frame: &Frame,
        pieces: &[Readable<'_>],
        targets: &[Writable<'_>],
    ) {
        let header_length = u32::from(self.ring.features.header_length);
        if let ([target], [piece]) = (targets, pieces)
            && header_length == u32::from(Header::LONG)
            && let (first, second) = header.to_words(chains)
            && set_words(first, second, *target)
        {
            copy(*piece, target.skip(header_length));
            self.ring.mark_written(target.guest_address(), header_length + frame.length);
            return;
        }
        let header = header.to_bytes(chains);
        let header = header.get(..header_length as usize).unwrap_or_default();
        let sources = std::iter::once(Readable::own(header)).chain(pieces.iter().copied());
        let mut targets = targets.iter().copied();
        let Some(mut target) = targets.next() else { return };
        for mut source in sources {
            while !source.is_empty() {
                if target.is_empty() {
                    let Some(next) = targets.next() else { return };
                    target = next;
                }
                let copied = copy(source, target);
                self.ring.mark_written(target.guest_address(), copied);
                source = source.skip(copied);
                target = target.skip(copied);
            }
        }
    }
}
