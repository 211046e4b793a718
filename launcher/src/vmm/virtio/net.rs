//! A network device (virtio 1.2, 5.1) on a tap.
//!
//! Frames pass with their virtio-net header as they are: checksums and segmentation that both sides agreed to leave
//! undone stay undone, and the kernel at the tap does them if they are needed at all. Each queue pair has a queue of the
//! tap and a thread; each direction of it has one frame buffer, and allocates nothing per frame. Which queue a frame of
//! the tap's comes on is for the kernel, which remembers where the guest sent frames of the same flow.

mod receive;
mod taps;
mod transmit;

use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use net_types::Mac;
use tap::{Offloads, Queue as Tap, TapError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use super::control_queue::{self, Control};
use super::device_config::DeviceConfig;
use super::{Cause, Device, Kind, Progress, Queues, Server};
use crate::control::{Mtu, QueuePairs, ValueError};
use receive::Receive;
use taps::Taps;
use transmit::Transmit;

/// The size of each queue that carries frames, and of the one for commands.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;
/// The largest frame with its header: 12 + Ethernet with two VLAN tags (22) + 65535, rounded up.
const FRAME: usize = 65_536 + 64;
/// Frames moved in one direction before others have their turn.
const BATCH: usize = 64;

/// Why a network device could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// The configuration has no queue, or more than a tap can have.
    #[error("the NIC's queues")]
    Queues(#[from] ValueError),
    /// The descriptor is no tap, or the tap refused.
    #[error("the NIC's queue is unusable")]
    Tap(#[from] TapError),
}

/// A device on a tap with these queues, one per pair, of which only the first gets frames before a driver wants more.
pub(crate) fn device(queues: Vec<OwnedFd>, mac: Mac, mtu: Mtu) -> Result<Device, NetError> {
    let pairs = QueuePairs::try_from(u16::try_from(queues.len()).unwrap_or(u16::MAX))?;
    let taps = queues.into_iter().map(|queue| Tap::from_fd(queue).map(Arc::new)).collect::<Result<_, _>>()?;
    let taps = Taps::new(taps)?;
    let mut config = [0; 12];
    config[..6].copy_from_slice(&mac.octets());
    config[8..10].copy_from_slice(&u16::from(pairs).to_le_bytes());
    config[10..].copy_from_slice(&u16::from(mtu).to_le_bytes());
    let mut queue_sizes = vec![QUEUE_SIZE; pairs.count() * 2];
    queue_sizes.resize(control_queue::queues(pairs), CONTROL_SIZE);
    let features = offered(taps.uso) | control_queue::features(pairs);
    let mut servers: Vec<Box<dyn Server>> = Vec::new();
    for (number, tap) in taps.queues.iter().enumerate() {
        servers.push(Box::new(Pair::new(number, pairs, Arc::clone(tap))));
    }
    // The last: by the time it is reset, no pair is served.
    servers.push(Box::new(Control::new(pairs, taps)));
    Ok(Device {
        kind: Kind { id: 1, class: 0x02_0000, name: "virtio-net" },
        features,
        ring_features: u64::MAX,
        queue_sizes,
        config: DeviceConfig::new(&config),
        servers,
    })
}

/// The feature bits for a tap that knows USO, or does not.
fn offered(uso: bool) -> u64 {
    let always = [
        VIRTIO_NET_F_MAC,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
    ];
    let with_uso = [VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6];
    let with_uso = with_uso.into_iter().filter(|_| uso);
    always.into_iter().chain(with_uso).fold(0, |bits, bit| bits | 1 << bit)
}

/// What a driver that accepted `features` can take unfinished. USO is on or off for both families together.
fn offloads(features: u64) -> Offloads {
    let has = |bit: u32| features & 1 << bit != 0;
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    Offloads {
        checksum,
        tso4: checksum && has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: checksum && has(VIRTIO_NET_F_GUEST_TSO6),
        uso: checksum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    }
}

/// A pair of queues, and the queue of the tap that belongs to it.
struct Pair {
    number: usize,
    /// How many the device has.
    pairs: QueuePairs,
    tap: Arc<Tap>,
    receive: Receive,
    transmit: Transmit,
}

impl Pair {
    fn new(number: usize, pairs: QueuePairs, tap: Arc<Tap>) -> Self {
        Self { number, pairs, tap, receive: Receive::new(), transmit: Transmit::new() }
    }

    fn receive_queue(&self) -> usize {
        self.number * 2
    }

    fn transmit_queue(&self) -> usize {
        self.number * 2 + 1
    }
}

impl Server for Pair {
    fn hears(&self) -> Vec<usize> {
        vec![self.receive_queue(), self.transmit_queue()]
    }

    fn queues(&self, features: u64) -> Range<usize> {
        let first = self.receive_queue();
        if self.number < control_queue::usable(self.pairs, features).count() {
            first..first + 2
        } else {
            first..first
        }
    }

    fn activate(&mut self, features: u64) {
        self.receive.activate(features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0);
    }

    fn reset(&mut self) {
        self.receive.reset();
        self.transmit.reset();
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.tap.as_fd().as_raw_fd())
    }

    fn serve(&mut self, cause: Cause, queues: &mut Queues) -> Progress {
        let mut progress = Progress::Done;
        if cause != Cause::Queue(self.transmit_queue())
            && let Some(queue) = queues.get(self.receive_queue())
            && self.receive.serve(self.tap.file(), queue) == Progress::More
        {
            progress = Progress::More;
        }
        if cause != Cause::Queue(self.receive_queue())
            && let Some(queue) = queues.get(self.transmit_queue())
            && self.transmit.serve(self.tap.file(), queue) == Progress::More
        {
            progress = Progress::More;
        }
        progress
    }
}

#[cfg(test)]
mod tests;
