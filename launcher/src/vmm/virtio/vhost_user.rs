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
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::control_queue::{self, Control, Follower, Verdict};
use super::device_config::DeviceConfig;
use super::queue::LentRing;
use super::{Cause, Device, Kind, Progress, Queues, Server};
use crate::control::{Mtu, QueuePairs};
use crate::vmm::memory::GuestRam;
use crate::vmm::outcome::End;
use net_types::Mac;

pub(crate) use mailbox::{Mailbox, Outbox};

use mailbox::Driver;
use thread::Thread;

/// The size of each queue that the backend serves, and of the one for commands, which are obeyed here.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
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
    /// How long the backend may take for all that is asked of it at a time; half as long again if it stalls at the end.
    pub(crate) patience: Duration,
}

/// Asks the backend what it can do, and starts the thread that speaks with it. Without a backend, or with one that makes
/// no sense, the device offers all it knows, and has no link. Connections of the supervisor's go to the mailbox.
pub(crate) fn device(
    settings: VhostSettings,
    ram: Arc<GuestRam>,
    outbox: Arc<Outbox>,
    end: End,
) -> io::Result<(Device, Arc<Mailbox>)> {
    let VhostSettings { nic, socket, pairs, mac, mtu, patience } = settings;
    let mailbox = Arc::new(Mailbox::new(nic)?);
    let mut config = [0; 12];
    config[..6].copy_from_slice(&mac.octets());
    config[8..10].copy_from_slice(&u16::from(pairs).to_le_bytes());
    config[10..].copy_from_slice(&u16::from(mtu).to_le_bytes());
    let config = DeviceConfig::new(&config);
    let mut thread = Thread::new(Arc::clone(&mailbox), Arc::clone(&config), ram, outbox, (pairs, patience));
    let offered = socket.and_then(|socket| thread.connect(socket));
    thread.spawn(end)?;
    let shared = offered.unwrap_or(u64::MAX) & bits(&SHARED);
    let of_rings = bits(&[VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC]);
    let mut queue_sizes = vec![QUEUE_SIZE; pairs.count() * 2];
    queue_sizes.resize(control_queue::queues(pairs), CONTROL_SIZE);
    let mut servers: Vec<Box<dyn Server>> =
        vec![Box::new(Lender { pairs, lent: Vec::new(), mailbox: Arc::clone(&mailbox) })];
    if pairs > QueuePairs::ONE {
        servers.push(Box::new(Control::new(pairs, Pairs(Arc::clone(&mailbox)))));
    }
    let device = Device {
        kind: Kind { id: 1, class: 0x02_0000, name: "virtio-net" },
        features: shared & !of_rings | bits(&OWN) | control_queue::features(pairs),
        // What both sides of the rings know.
        ring_features: shared,
        queue_sizes,
        config,
        servers,
    };
    Ok((device, mailbox))
}

/// Leaves the rings to the thread, which lends them to the backend.
struct Lender {
    pairs: QueuePairs,
    lent: Vec<LentRing>,
    mailbox: Arc<Mailbox>,
}

impl Server for Lender {
    fn hears(&self) -> Vec<usize> {
        Vec::new()
    }

    fn queues(&self, features: u64) -> Range<usize> {
        0..control_queue::usable(self.pairs, features).count() * 2
    }

    fn lends(&self) -> bool {
        true
    }

    fn lend(&mut self, rings: Vec<LentRing>) {
        self.lent = rings;
    }

    fn activate(&mut self, features: u64) {
        let rings = std::mem::take(&mut self.lent);
        self.mailbox
            .want(Some(Driver { features: features & (bits(&SHARED) | 1 << VIRTIO_NET_F_MQ), rings }));
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

/// Has the backend serve more or fewer pairs.
struct Pairs(Arc<Mailbox>);

impl Follower for Pairs {
    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn follow(&mut self, pairs: QueuePairs) -> Verdict {
        self.0.use_pairs(pairs);
        Verdict::Pending
    }

    /// Without a backend it is done as well: the next one is told.
    fn verdict(&self) -> Verdict {
        if self.0.is_behind() { Verdict::Pending } else { Verdict::Done }
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.0.followed.as_raw_fd())
    }
}
