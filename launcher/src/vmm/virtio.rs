//! Virtio devices (virtio 1.2, "modern" only) behind one PCI transport.
//!
//! A device is a [`Device`]: what it offers, and what it does with a buffer the guest has made available. The
//! [`transport`] speaks virtio-pci with the guest and knows no device; a [`worker`] thread per device waits for
//! notifications and calls the device; [`queue`] and [`segments`] are what a device sees of a virtqueue.
//!
//! Everything a guest says is checked where it enters: ring addresses when the driver is ready, chains as they are
//! walked, buffers at each access. A guest that breaks its ring loses that queue until it resets the device.

mod blk;
mod common;
mod device_config;
mod net;
mod queue;
mod rng;
mod segments;
mod transport;
mod vhost_user;
mod worker;

use std::os::fd::RawFd;
use std::sync::Arc;

pub(crate) use blk::{Block, BlockError};
pub(crate) use net::{Net, NetError};
pub(crate) use rng::Rng;
pub(crate) use transport::{Transport, TransportError};
pub(crate) use vhost_user::{Mailbox, Outbox, VhostSettings, VhostUser};

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

/// A virtio device, as the transport and the worker see it.
pub(crate) trait Device: Send {
    /// What it is.
    fn kind(&self) -> Kind;
    /// The feature bits it offers, without those of the transport.
    fn features(&self) -> u64;
    /// The largest size of each of its queues; their number is fixed.
    fn queue_sizes(&self) -> &[u16];
    /// The feature bits of its rings, of those that the transport offers.
    fn ring_features(&self) -> u64 {
        u64::MAX
    }
    /// Its configuration space, which no guest can write.
    fn config(&self) -> Arc<DeviceConfig>;
    /// Whether somebody outside this process serves queue `index`.
    fn lends(&self, _index: usize) -> bool {
        false
    }
    /// The queues to lend from the next [`Device::activate`] on.
    fn lend(&mut self, _rings: Vec<LentRing>) {}
    /// A driver is ready, with these features.
    fn activate(&mut self, features: u64);
    /// The driver is gone: back to the state before [`Device::activate`].
    fn reset(&mut self);
    /// Whether what was lent may still be in use after a reset. Until it is not, the driver sees the reset under way.
    fn is_stopping(&self) -> bool {
        false
    }
    /// Something outside the guest to wait for, edge-triggered, for reading and writing.
    fn event_fd(&self) -> Option<RawFd> {
        None
    }
    /// Serves what there is to serve on all queues, up to a bound.
    fn serve(&mut self, cause: Cause, queues: &mut Queues) -> Progress;
}

/// Why a device is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest has notified this queue.
    Queue(usize),
    /// [`Device::event_fd`] is ready.
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

/// The queues of an active device, by number; those the driver did not enable are missing.
pub(crate) struct Queues(Vec<Option<VirtQueue>>);

impl Queues {
    /// Queue `index`, if the driver uses it.
    pub(crate) fn get(&mut self, index: usize) -> Option<&mut VirtQueue> {
        self.0.get_mut(index).and_then(Option::as_mut)
    }
}

#[cfg(test)]
mod ring;
