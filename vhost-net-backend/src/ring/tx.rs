//! A guest's transmit ring: a source of frames.

use arrayvec::ArrayVec;

use super::chain::{Chain, Direction, Walked};
use super::{Ring, Used};
use crate::fault::Fault;
use crate::frame::{BATCH, Batch, Header, MAX_FRAME, MIN_FRAME, Offloads, PIECES};
use crate::memory::Readable;
use crate::port::{Polled, Unfit};

/// A transmit ring, taken over.
#[derive(Debug)]
pub struct TxQueue {
    ring: Ring,
    /// What its guest may ask for.
    allowed: Offloads,
}

impl TxQueue {
    /// A source of the frames of `ring`, whose guest negotiated `allowed`.
    pub fn new(ring: Ring, allowed: Offloads) -> Self {
        Self { ring, allowed }
    }

    /// The ring below.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The ring below.
    pub fn ring_mut(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// Lends what the guest has to send, at most a batch, to `deliver`, which says how many it has taken from the
    /// front; gives those back to the guest. The rest is lent again by the next poll.
    ///
    /// # Errors
    /// A [`Fault`] of this guest; then nothing of the ring may be used any more.
    #[inline]
    pub fn poll(&mut self, deliver: &mut dyn FnMut(&Batch<'_>) -> usize) -> Result<Polled, Fault> {
        let available = usize::from(self.ring.available()?).min(BATCH);
        if available == 0 {
            return Ok(Polled::default());
        }
        let mut used: ArrayVec<Used, BATCH> = ArrayVec::new();
        let mut batch = Batch::new();
        let mut unfit = None;
        for ahead in 0..available {
            #[expect(clippy::cast_possible_truncation, reason = "below BATCH")]
            let head = self.ring.head(ahead as u16);
            match self.lend(head, &mut batch)? {
                Lent::Yes => used.push(Used { head, written: 0 }),
                Lent::Later => break,
                // It is given back alone, so that frames and chains stay one to one.
                Lent::Unfit(why) if used.is_empty() => {
                    unfit = Some(why);
                    used.push(Used { head, written: 0 });
                    break;
                }
                Lent::Unfit(_) => break,
            }
        }
        batch.take_headers(self.ring.features.header_length, self.allowed)?;
        let lent = batch.len();
        let taken = if unfit.is_some() { 0 } else { deliver(&batch).min(lent) };
        drop(batch);
        let complete = if unfit.is_some() { 1 } else { taken };
        if complete > 0 {
            self.ring.complete(used.get(..complete).unwrap_or_default());
            self.ring.signal()?;
        }
        Ok(Polled { lent, taken, unfit })
    }

    #[inline]
    fn lend<'m>(&'m self, head: u16, batch: &mut Batch<'m>) -> Result<Lent, Fault> {
        let ring = &self.ring;
        let chain = Chain {
            vring: &ring.vring,
            memory: &ring.memory,
            head,
            direction: Direction::Read,
            indirect_allowed: ring.features.indirect,
        };
        let mut pieces: ArrayVec<Readable<'m>, PIECES> = ArrayVec::new();
        let mut fits = true;
        let Walked { bytes, .. } = chain.walk(|piece| fits &= pieces.try_push(piece.into()).is_ok())?;
        if !fits {
            return Ok(Lent::Unfit(Unfit::Pieces));
        }
        let header_length = ring.features.header_length;
        let length = bytes.saturating_sub(header_length.into());
        if length < MIN_FRAME {
            return Ok(Lent::Unfit(Unfit::Short));
        }
        if length > MAX_FRAME {
            return Ok(Lent::Unfit(Unfit::Long));
        }
        // Its header is looked at when the whole batch is on its way to the cache.
        pieces.iter().take(2).for_each(Readable::prefetch);
        match batch.push(Header::NONE, Offloads::NONE, length, &pieces) {
            Ok(()) => Ok(Lent::Yes),
            Err(_full) => Ok(Lent::Later),
        }
    }
}

enum Lent {
    Yes,
    /// The batch is full.
    Later,
    /// It will never be.
    Unfit(Unfit),
}
