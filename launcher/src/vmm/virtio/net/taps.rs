//! The queues of a tap, as far as all of them are concerned: how finished its frames must be, and which get frames.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tap::{Offloads, Queue as Tap, TapError};

use super::offloads;
use crate::control::QueuePairs;
use crate::vmm::virtio::control_queue::{Follower, Verdict};

/// Switching queues holds a lock of the whole node (rtnl). A guest that does it all the time has it for one part in so
/// many of the time, and waits itself meanwhile, but never for longer than this.
const SHARE: u32 = 5;
const LONGEST_REST: Duration = Duration::from_millis(100);

/// A tap's queues.
pub(super) struct Taps {
    pub(super) queues: Vec<Arc<Tap>>,
    /// Whether the kernel knows USO.
    pub(super) uso: bool,
    /// How many get frames: the first ones.
    used: usize,
    /// When the next change may be made.
    rested: Instant,
}

impl Taps {
    /// The queues of one tap, all of which get frames when they are opened; from now on only the first does.
    pub(super) fn new(queues: Vec<Arc<Tap>>) -> Result<Self, TapError> {
        // Older kernels do not know USO; asking is the only way to find out.
        let finished = Offloads::default();
        let uso = match queues.first() {
            Some(tap) => {
                let uso = tap.set_offloads(Offloads { checksum: true, uso: true, ..finished }).is_ok();
                tap.set_offloads(finished)?;
                uso
            }
            None => false,
        };
        let mut taps = Self { used: queues.len(), queues, uso, rested: Instant::now() };
        taps.switch(1)?;
        Ok(taps)
    }

    /// From the last queue down and up again, so that the kernel numbers them as we do.
    fn switch(&mut self, pairs: usize) -> Result<(), TapError> {
        while self.used > pairs {
            if let Some(tap) = self.queues.get(self.used - 1) {
                tap.detach()?;
            }
            self.used -= 1;
        }
        while self.used < pairs.min(self.queues.len()) {
            if let Some(tap) = self.queues.get(self.used) {
                tap.attach()?;
            }
            self.used += 1;
        }
        Ok(())
    }

    /// [`Taps::switch`], but not all the time.
    fn change(&mut self, pairs: usize) -> Verdict {
        if pairs == self.used {
            return Verdict::Done;
        }
        sleep(self.rested.saturating_duration_since(Instant::now()));
        let begun = Instant::now();
        let verdict = match self.switch(pairs) {
            Ok(()) => Verdict::Done,
            Err(error) => {
                tracing::warn!("frames come on {} queues, not {pairs}: {}", self.used, crate::chain(&error));
                Verdict::Refused
            }
        };
        let rest = begun.elapsed() * (SHARE - 1);
        self.rested = Instant::now() + rest.min(LONGEST_REST);
        verdict
    }

    fn set_offloads(&self, offloads: Offloads) {
        // The link has one setting for all queues.
        if let Some(Err(error)) = self.queues.first().map(|tap| tap.set_offloads(offloads)) {
            // Only what was offered can be accepted, and only what the tap took is offered.
            tracing::warn!("the tap refused offloads it knew before: {error}");
        }
    }
}

impl Follower for Taps {
    fn activate(&mut self, features: u64) {
        self.set_offloads(offloads(features));
    }

    fn reset(&mut self) {
        self.set_offloads(Offloads::default());
        self.change(1);
    }

    fn follow(&mut self, pairs: QueuePairs) -> Verdict {
        self.change(pairs.count())
    }
}
