//! A network device whose queues a vhost-user backend serves.
//!
//! Rings and guest memory are the backend's while it is connected: the guest's notifications reach it by ioeventfd, its
//! interrupts reach the guest by irqfd, and no frame passes through this process. What is left here is the protocol,
//! spoken by a thread per device ([`thread`]) that alone may wait for the backend. vCPUs and the supervisor leave what
//! they want in the device's [`Mailbox`]; what the supervisor should hear is put in an [`Outbox`].
//!
//! A backend that dies, stalls or speaks out of turn costs the connection, not the guest: the link goes down, and comes
//! up again with the supervisor's next connection.

mod connection;
mod mailbox;
mod session;
mod thread;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device_config::DeviceConfig;
use super::queue::LentRing;
use super::{Cause, Device, Kind, Progress, Queues};
use crate::control::{Mtu, QueuePairs};
use crate::vmm::memory::GuestRam;
use crate::vmm::outcome::End;
use net_types::Mac;

pub(crate) use mailbox::{Mailbox, Outbox};

use mailbox::Driver;
use thread::Thread;

/// The size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Where the link's status is in the configuration, and that it is up.
const STATUS: usize = 6;
const LINK_UP: u16 = 1;

/// Features that say how frames and rings are laid out: guest and backend must both know them.
const SHARED: [u32; 15] = [
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
    virtio_bindings::virtio_config::VIRTIO_F_VERSION_1,
];
/// Features of the configuration space, which is ours.
const OWN: [u32; 3] = [VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS];

fn bits(features: &[u32]) -> u64 {
    features.iter().fold(0, |bits, feature| bits | 1 << feature)
}

/// What the device is made of.
pub(crate) struct VhostSettings {
    /// Its place among the NICs of the configuration.
    pub(crate) nic: usize,
    /// The connection, if there is one.
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) pairs: QueuePairs,
    pub(crate) mac: Mac,
    pub(crate) mtu: Mtu,
}

/// The device.
pub(crate) struct VhostUser {
    /// What both sides of the rings know.
    shared: u64,
    config: Arc<DeviceConfig>,
    queue_sizes: Vec<u16>,
    lent: Vec<LentRing>,
    mailbox: Arc<Mailbox>,
}

impl VhostUser {
    /// Asks the backend what it can do, and starts the device's thread. Without a backend, or with one that makes no
    /// sense, the device offers all it knows, and has no link.
    pub(crate) fn new(
        settings: VhostSettings,
        ram: Arc<GuestRam>,
        outbox: Arc<Outbox>,
        end: End,
    ) -> io::Result<Self> {
        let VhostSettings { nic, socket, pairs, mac, mtu } = settings;
        let mailbox = Arc::new(Mailbox::new(nic)?);
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac.octets());
        config[8..10].copy_from_slice(&u16::from(pairs).to_le_bytes());
        config[10..].copy_from_slice(&u16::from(mtu).to_le_bytes());
        let config = DeviceConfig::new(&config);
        let queue_sizes = vec![QUEUE_SIZE; pairs.count() * 2];
        let mut thread =
            Thread::new(Arc::clone(&mailbox), Arc::clone(&config), ram, outbox, queue_sizes.len());
        let offered = socket.and_then(|socket| thread.connect(socket));
        thread.spawn(end)?;
        let shared = offered.unwrap_or(u64::MAX) & bits(&SHARED);
        Ok(Self { shared, config, queue_sizes, lent: Vec::new(), mailbox })
    }

    /// Where the supervisor's connections go.
    pub(crate) fn mailbox(&self) -> Arc<Mailbox> {
        Arc::clone(&self.mailbox)
    }
}

impl Device for VhostUser {
    fn kind(&self) -> Kind {
        Kind { id: 1, class: 0x02_0000, name: "virtio-net" }
    }

    fn features(&self) -> u64 {
        let of_rings = bits(&[VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC]);
        self.shared & !of_rings | bits(&OWN)
    }

    fn ring_features(&self) -> u64 {
        self.shared
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<DeviceConfig> {
        Arc::clone(&self.config)
    }

    fn lends(&self, _index: usize) -> bool {
        true
    }

    fn lend(&mut self, rings: Vec<LentRing>) {
        self.lent = rings;
    }

    fn activate(&mut self, features: u64) {
        let rings = std::mem::take(&mut self.lent);
        self.mailbox.want(Some(Driver { features: features & bits(&SHARED), rings }));
    }

    fn reset(&mut self) {
        self.mailbox.want(None);
    }

    fn is_stopping(&self) -> bool {
        self.mailbox.is_behind()
    }

    fn serve(&mut self, _cause: Cause, _queues: &mut Queues) -> Progress {
        Progress::Done
    }
}
