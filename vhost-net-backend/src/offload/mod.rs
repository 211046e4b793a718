//! In software what the receiving end cannot do: checksums and segmentation.
//!
//! The slow path of a link: one frame at a time is copied out of the guest's memory, finished, and handed on as one or
//! more finished frames. Nothing is believed of the frame but what was read from the copy, so a guest cannot change it
//! in between.

mod checksum;
mod packet;
mod segment;

use crate::frame::{Frame, MAX_FRAME, Offloads};
use crate::memory::Readable;
pub(crate) use packet::{field, headers, network_at};

/// The most segments made of one frame: 64 KiB at the smallest segment size that TCP stacks use (64 bytes).
const MAX_SEGMENTS: usize = 1024;

/// Why a frame cannot be finished. It is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfinishable {
    /// Its bytes are not the protocol that its header says.
    #[error("the frame is not the packet that its GSO type says")]
    Malformed,
    /// It would become more than 1024 segments.
    #[error("the frame would become more than {MAX_SEGMENTS} segments")]
    TooMany,
}

/// Finishes frames; keeps the buffers for it.
#[derive(Debug)]
pub struct Finisher {
    frame: Vec<u8>,
    segments: segment::Segments,
}

impl Default for Finisher {
    fn default() -> Self {
        Self { frame: Vec::with_capacity(MAX_FRAME as usize), segments: segment::Segments::default() }
    }
}

impl Finisher {
    /// Finishes a frame; returns what became of it, in order.
    pub fn finish<'s>(
        &'s mut self,
        frame: &Frame,
        pieces: &[Readable<'_>],
    ) -> Result<impl Iterator<Item = &'s [u8]>, Unfinishable> {
        self.frame.clear();
        self.frame.resize(frame.length as usize, 0);
        let mut at = 0;
        for piece in pieces {
            at += piece.read(self.frame.get_mut(at..).unwrap_or_default());
        }
        let segmented = !Offloads::CHECKSUM.contains(frame.needs);
        let header = &frame.header;
        if segmented {
            self.segments.make(&self.frame, header.gso_type, header.gso_size)?;
        } else if frame.needs == Offloads::CHECKSUM {
            let (start, offset) = (header.checksum_start.into(), header.checksum_offset.into());
            checksum::finish(&mut self.frame, start, offset).ok_or(Unfinishable::Malformed)?;
        }
        let whole = (!segmented).then_some(self.frame.as_slice());
        let segments = segmented.then(|| self.segments.iter()).into_iter().flatten();
        Ok(whole.into_iter().chain(segments))
    }
}

#[cfg(test)]
mod tests;
