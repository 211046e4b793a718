//! Virtio devices (virtio 1.2, "modern" only) behind one PCI transport.
//!
//! A [`Device`] is what it offers, and its [`Server`]s: what they do with a buffer the guest has made available. The
//! [`transport`] speaks virtio-pci with the guest and knows no device; a [`worker`] thread per server waits for
//! notifications and calls it; [`queue`] and [`segments`] are what a server sees of a virtqueue.
//!
//! Everything a guest says is checked where it enters: ring addresses when the driver is ready, chains as they are
//! walked, buffers at each access. A guest that breaks its ring loses that queue until it resets the device.

mod blk;
mod common;
mod control_queue;
mod device_config;
mod net;
mod queue;
mod rng;
mod segments;
mod transport;
mod vhost_user;
mod worker;

use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

pub(crate) use blk::{Block, BlockError};
pub(crate) use net::{NetError, device as net};
pub(crate) use rng::Rng;
pub(crate) use transport::{Transport, TransportError};
pub(crate) use vhost_user::{Mailbox, Outbox, VhostSettings, device as vhost_user};

use device_config::DeviceConfig;
use queue::{LentRing, VirtQueue};

/// What kind of device this is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// The device's number (virtio 1.2, 5).
    pub(crate) id: u16,
    /// The PCI class a guest sorts it by: class, subclass, interface.
    pub(crate) class: u32,
    /// What its thread is called.
    pub(crate) name: &'static str,
}

/// A virtio device: what its driver is told, and who serves its queues.
pub(crate) struct Device {
    /// What it is.
    pub(crate) kind: Kind,
    /// The feature bits it offers, without those of the transport.
    pub(crate) features: u64,
    /// The feature bits of its rings, of those that the transport offers.
    pub(crate) ring_features: u64,
    /// The largest size of each of its queues; their number is fixed.
    pub(crate) queue_sizes: Vec<u16>,
    /// Its configuration space, which no guest can write.
    pub(crate) config: Arc<DeviceConfig>,
    /// Each has a thread of its own, if it has anything to wait for.
    pub(crate) servers: Vec<Box<dyn Server>>,
}

/// Serves queues of a device. Unless it says otherwise, the device has one queue, and one server.
pub(crate) trait Server: Send {
    /// The queues whose notifications it hears.
    fn hears(&self) -> Vec<usize> {
        vec![0]
    }
    /// The queues that are its with a driver of these features; no other server has them.
    fn queues(&self, _features: u64) -> Range<usize> {
        0..1
    }
    /// Whether somebody outside this process serves its queues.
    fn lends(&self) -> bool {
        false
    }
    /// The queues to lend from the next [`Server::activate`] on.
    fn lend(&mut self, _rings: Vec<LentRing>) {}
    /// A driver is ready, with these features.
    fn activate(&mut self, _features: u64) {}
    /// The driver is gone: back to the state before [`Server::activate`].
    fn reset(&mut self) {}
    /// Whether what was lent may still be in use after a reset. Until it is not, the driver sees the reset under way.
    fn is_stopping(&self) -> bool {
        false
    }
    /// Something outside the guest to wait for, edge-triggered, for reading and writing.
    fn event_fd(&self) -> Option<RawFd> {
        None
    }
    /// Serves what there is to serve on its queues, up to a bound.
    fn serve(&mut self, cause: Cause, queues: &mut Queues) -> Progress;
}

/// Why a device is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest has notified this queue.
    Queue(usize),
    /// [`Server::event_fd`] is ready.
    Event,
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing can be done until the next notification or event.
    Done,
    /// A bound was reached: call again for the same cause, after others had their turn.
    More,
}

/// A server's queues while a driver is ready, by their number in the device; those it did not enable are missing.
pub(crate) struct Queues {
    /// The number of the first.
    first: usize,
    queues: Vec<Option<VirtQueue>>,
}

impl Queues {
    /// Queue `index`, if the driver uses it and it is the server's.
    pub(crate) fn get(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.queues.get_mut(index.checked_sub(self.first)?).and_then(Option::as_mut)
    }
}

#[cfg(test)]
mod ring;
