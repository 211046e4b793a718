//! The ends of links: what frames come from and go to.
//!
//! A link joins two [`Port`]s and moves batches from the sources of each to the sinks of the other. A port has one or
//! more queues; queue i of one end feeds queue i of the other, modulo how many that has, or, where a guest has more, several
//! of them, each flow one. So frames of one flow stay in order. A queue that is not running has no source and no sink.

mod tap;
mod vhost;
mod xdp;

use std::os::fd::BorrowedFd;

pub use tap::TapPort;
pub use vhost::{Hangup, Queue, VhostPort};
pub use xdp::XdpPort;

use crate::fault::Fault;
use crate::frame::{Batch, Offloads};

/// Why a frame of a guest is not passed on, without that being a reason to end the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Shorter than an Ethernet header.
    Short,
    /// Longer than any IP packet.
    Long,
    /// In more pieces than a batch has.
    Pieces,
    /// From a tap, with a header that contradicts it: of a guest, that ends its end.
    Header,
}

/// What one poll of a source came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Polled {
    /// Frames that were lent.
    pub lent: usize,
    /// How many of those were taken.
    pub taken: usize,
    /// One frame was given back without being lent.
    pub unfit: Option<Unfit>,
}

impl Polled {
    /// Whether there was nothing to do.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.lent == 0 && self.unfit.is_none()
    }
}

/// What one push into a sink came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Frames done with, from the front of the batch.
    pub taken: usize,
    /// How many of those the sink could not use: too big for the guest's buffers, or refused by the kernel.
    pub refused: usize,
}

/// One end of a link, in the worker's hands.
#[derive(Debug)]
pub enum Port {
    /// A guest.
    Vhost(VhostPort),
    /// A tap.
    Tap(TapPort),
    /// A NIC, by AF_XDP.
    Xdp(XdpPort),
}

impl Port {
    /// Queues that may have a source. Fixed for the port's life.
    #[inline]
    pub fn queues(&self) -> usize {
        match self {
            Self::Vhost(port) => port.queues(),
            Self::Tap(_) => 1,
            Self::Xdp(port) => port.queues(),
        }
    }

    /// Queues that have a source now.
    #[inline]
    pub fn senders(&self) -> usize {
        match self {
            Self::Vhost(port) => port.senders(),
            Self::Tap(_) => 1,
            Self::Xdp(port) => port.queues(),
        }
    }

    /// Queues over which flows are to be spread: those that a guest receives by now. Other ends have one for that.
    #[inline]
    pub fn receivers(&self) -> usize {
        match self {
            Self::Vhost(port) => port.receivers(),
            Self::Tap(_) | Self::Xdp(_) => 1,
        }
    }

    /// Polls the source of a queue: see [`TxQueue::poll`](crate::ring::TxQueue::poll).
    #[inline]
    pub fn poll(
        &mut self,
        queue: usize,
        deliver: &mut dyn FnMut(&Batch<'_>) -> usize,
    ) -> Result<Polled, Fault> {
        match self {
            Self::Vhost(port) => port.poll(queue, deliver),
            Self::Tap(port) => port.poll(deliver),
            Self::Xdp(port) => port.poll(queue, deliver),
        }
    }

    /// What the sink for a queue takes unfinished; `None` if no sink runs.
    #[inline]
    pub fn accepts(&self, queue: usize) -> Option<Offloads> {
        match self {
            Self::Vhost(port) => port.accepts(queue),
            Self::Tap(port) => port.accepts(),
            Self::Xdp(port) => port.accepts(),
        }
    }

    /// Pushes frames, none of which needs more than [`accepts`](Self::accepts) says, into the sink for a queue.
    #[inline]
    pub fn push(&mut self, queue: usize, batch: &Batch<'_>) -> Result<Pushed, Fault> {
        match self {
            Self::Vhost(port) => port.push(queue, batch),
            Self::Tap(port) => port.push(batch),
            Self::Xdp(port) => port.push(queue, batch),
        }
    }

    /// What becomes readable when a queue's source has frames, or its device is gone; nothing if no source runs.
    pub fn wake_fds(&self, queue: usize) -> impl Iterator<Item = BorrowedFd<'_>> {
        let fds = match self {
            Self::Vhost(port) => [port.kick_fd(queue), None],
            Self::Tap(port) => [port.fd(), None],
            Self::Xdp(port) => port.fds(queue),
        };
        fds.into_iter().flatten()
    }

    /// Whether its queues stay in the poller while they are polled. A NIC's do not: the kernel would wake the poller for
    /// each frame that was sent, which costs a tenth of sending it (`sock_wfree` in `net/core/sock.c`).
    #[inline]
    pub fn is_watched_awake(&self) -> bool {
        !matches!(self, Self::Xdp(_))
    }

    /// Before sleeping: makes sure that the next frame makes [`wake_fds`](Self::wake_fds) readable.
    ///
    /// # Returns
    /// Whether there is a frame already: then do not sleep.
    pub fn enable_wake(&mut self, queue: usize) -> Result<bool, Fault> {
        match self {
            Self::Vhost(port) => port.enable_kicks(queue),
            // Edge-triggered: a frame after the last empty read makes an event.
            Self::Tap(_) => Ok(false),
            Self::Xdp(port) => port.has_frames(queue),
        }
    }

    /// After sleeping: no more events, please.
    pub fn disable_wake(&mut self, queue: usize) {
        match self {
            Self::Vhost(port) => port.suppress_kicks(queue),
            Self::Tap(_) | Self::Xdp(_) => {}
        }
    }

    /// Stops everything after a fault of this end.
    pub fn close(&mut self) {
        match self {
            Self::Vhost(port) => port.close(),
            Self::Tap(port) => port.close(),
            Self::Xdp(port) => port.close(),
        }
    }

    /// Says what the other end takes unfinished, so that less has to be finished here.
    pub fn offer(&mut self, accepted: Offloads) -> Result<(), Fault> {
        match self {
            Self::Vhost(_) | Self::Xdp(_) => Ok(()),
            Self::Tap(port) => port.offer(accepted),
        }
    }
}
