//! A network device (virtio 1.2, 5.1) on a tap.
//!
//! Frames pass with their virtio-net header as they are: checksums and segmentation that both sides agreed to leave
//! undone stay undone, and the kernel at the tap does them if they are needed at all. Each direction has one frame
//! buffer and works on one thread; neither allocates per frame.

mod receive;
mod transmit;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use net_types::Mac;
use tap::{Offloads, Queue as Tap, TapError};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use super::device_config::DeviceConfig;
use super::{Cause, Device, Kind, Progress, Queues};
use crate::control::Mtu;
use receive::Receive;
use transmit::Transmit;

const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// The largest frame with its header: 12 + Ethernet with two VLAN tags (22) + 65535, rounded up.
const FRAME: usize = 65_536 + 64;
/// Frames moved in one direction before others have their turn.
const BATCH: usize = 64;

/// Why a network device could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// The configuration has no queue, or more than this version serves.
    #[error("{0} queues are not supported; 1 is")]
    Queues(usize),
    /// The descriptor is no tap, or the tap refused.
    #[error("the NIC's queue is unusable")]
    Tap(#[from] TapError),
}

/// A network device.
pub(crate) struct Net {
    tap: Tap,
    features: u64,
    config: [u8; 12],
    receive: Receive,
    transmit: Transmit,
}

impl Net {
    /// A device on a tap with these queues; it does not look at the tap before a driver is ready.
    pub(crate) fn new(queues: Vec<OwnedFd>, mac: Mac, mtu: Mtu) -> Result<Self, NetError> {
        let [queue]: [OwnedFd; 1] =
            queues.try_into().map_err(|queues: Vec<_>| NetError::Queues(queues.len()))?;
        let tap = Tap::from_fd(queue)?;
        // Older kernels do not know USO; asking is the only way to find out.
        let uso = tap.set_offloads(Offloads { checksum: true, uso: true, ..Offloads::default() }).is_ok();
        tap.set_offloads(Offloads::default())?;
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac.octets());
        config[10..].copy_from_slice(&u16::from(mtu).to_le_bytes());
        Ok(Self { tap, features: offered(uso), config, receive: Receive::new(), transmit: Transmit::new() })
    }

    fn set_offloads(&self, offloads: Offloads) {
        if let Err(error) = self.tap.set_offloads(offloads) {
            // Only what was offered can be accepted, and only what the tap took is offered.
            tracing::warn!("the tap refused offloads it knew before: {error}");
        }
    }
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

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind { id: 1, class: 0x02_0000, name: "virtio-net" }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Arc<DeviceConfig> {
        DeviceConfig::new(&self.config)
    }

    fn activate(&mut self, features: u64) {
        self.receive.activate(features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0);
        self.set_offloads(offloads(features));
    }

    fn reset(&mut self) {
        self.set_offloads(Offloads::default());
        self.receive.reset();
        self.transmit.reset();
    }

    fn event_fd(&self) -> Option<RawFd> {
        Some(self.tap.as_fd().as_raw_fd())
    }

    fn serve(&mut self, cause: Cause, queues: &mut Queues) -> Progress {
        let mut progress = Progress::Done;
        if cause != Cause::Queue(TRANSMIT_QUEUE)
            && let Some(queue) = queues.get(RECEIVE_QUEUE)
            && self.receive.serve(self.tap.file(), queue) == Progress::More
        {
            progress = Progress::More;
        }
        if cause != Cause::Queue(RECEIVE_QUEUE)
            && let Some(queue) = queues.get(TRANSMIT_QUEUE)
            && self.transmit.serve(self.tap.file(), queue) == Progress::More
        {
            progress = Progress::More;
        }
        progress
    }
}

#[cfg(test)]
mod tests;
