//! What is agreed on with a connected backend, and the rings it serves.

use std::os::fd::AsRawFd as _;

use vm_memory::{Address as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, ConnectionError, Request};
use super::mailbox::Driver;
use crate::control::QueuePairs;
use crate::vmm::memory::GuestRam;
use crate::vmm::virtio::queue::LentRing;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Protocol features that are used where the backend has them.
const MULTI_QUEUE: u64 = 1 << 0;
const REPLY_ACK: u64 = 1 << 3;

/// A backend need not know the guest's word for several pairs: it is this side that obeys the guest's commands.
const SEVERAL_PAIRS: u64 = 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

/// Why a backend cannot serve the device.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("the backend lacks features that every backend needs: {0:#x}")]
    Needed(u64),
    #[error("the guest uses features that this backend lacks: {0:#x}")]
    Lacks(u64),
    #[error("the backend has {found} queue pairs; the guest has {wanted}")]
    QueuePairs { found: u64, wanted: usize },
    #[error("guest memory is no file that a backend can map")]
    Private,
    #[error("a ring is not in guest memory")]
    Outside,
}

/// A backend that has said what it can do.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: Connection,
    /// The virtio features it has.
    pub(super) features: u64,
}

impl Session {
    /// Asks the backend what it can do. It must be able to serve `pairs` queue pairs.
    pub(super) fn open(mut connection: Connection, pairs: usize) -> Result<Self, SessionError> {
        connection.begin();
        connection.tell(Request::SET_OWNER, &[], &[])?;
        let features = u64::from_le_bytes(connection.ask(Request::GET_FEATURES, &[])?);
        let needed = PROTOCOL_FEATURES | 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
        if features & needed != needed {
            return Err(SessionError::Needed(needed & !features));
        }
        let protocol = u64::from_le_bytes(connection.ask(Request::GET_PROTOCOL_FEATURES, &[])?);
        let protocol = protocol & (MULTI_QUEUE | REPLY_ACK);
        connection.tell(Request::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[])?;
        connection.acknowledged = protocol & REPLY_ACK != 0;
        let found = if protocol & MULTI_QUEUE != 0 {
            u64::from_le_bytes(connection.ask(Request::GET_QUEUE_NUM, &[])?)
        } else {
            1
        };
        if usize::try_from(found).is_ok_and(|found| found < pairs) {
            return Err(SessionError::QueuePairs { found, wanted: pairs });
        }
        Ok(Self { connection, features })
    }

    /// Has the backend serve the driver's rings, each from the place in `bases` on, and of them `pairs` pairs.
    pub(super) fn start(
        &mut self,
        driver: &Driver,
        pairs: QueuePairs,
        bases: &[u16],
        ram: &GuestRam,
    ) -> Result<(), SessionError> {
        let Driver { features, rings } = driver;
        self.connection.begin();
        match features & !self.features & !SEVERAL_PAIRS {
            0 => {}
            lacking => return Err(SessionError::Lacks(lacking)),
        }
        let features = features & self.features | PROTOCOL_FEATURES;
        self.connection.tell(Request::SET_FEATURES, &features.to_le_bytes(), &[])?;
        self.share_memory(ram)?;
        for (ring, base) in rings.iter().zip(bases) {
            self.set_up(ring, *base, ram)?;
        }
        self.enable(driver, pairs)
    }

    /// Has the backend serve the rings of the first `pairs` pairs, and no other.
    pub(super) fn enable(&mut self, driver: &Driver, pairs: QueuePairs) -> Result<(), SessionError> {
        self.connection.begin();
        for ring in &driver.rings {
            let on = ring.index < pairs.count() * 2;
            self.state(Request::SET_VRING_ENABLE, ring, on.into())?;
        }
        Ok(())
    }

    /// Takes the rings back; returns how far each had come.
    pub(super) fn stop(&mut self, driver: &Driver) -> Result<Vec<u16>, SessionError> {
        self.connection.begin();
        let mut bases = Vec::with_capacity(driver.rings.len());
        for ring in &driver.rings {
            let answer = self.connection.ask(Request::GET_VRING_BASE, &words(index(ring), 0))?;
            let [_, _, _, _, low, high, _, _] = answer;
            bases.push(u16::from_le_bytes([low, high]));
        }
        Ok(bases)
    }

    fn share_memory(&mut self, ram: &GuestRam) -> Result<(), SessionError> {
        let (mut table, mut files) = (Vec::new(), Vec::new());
        for region in ram.iter() {
            let part = region.file_offset().ok_or(SessionError::Private)?;
            let fields =
                [region.start_addr().raw_value(), region.len(), region.as_ptr() as u64, part.start()];
            table.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
            files.push(part.file().as_raw_fd());
        }
        let count = u32::try_from(files.len()).unwrap_or(u32::MAX);
        let body = [&words(count, 0)[..], &table].concat();
        Ok(self.connection.tell(Request::SET_MEM_TABLE, &body, &files)?)
    }

    fn set_up(&mut self, ring: &LentRing, base: u16, ram: &GuestRam) -> Result<(), SessionError> {
        self.state(Request::SET_VRING_NUM, ring, ring.size.into())?;
        self.state(Request::SET_VRING_BASE, ring, base.into())?;
        let mut body = words(index(ring), 0).to_vec();
        for address in [ring.descriptors, ring.used, ring.available] {
            let place =
                ram.get_host_address(GuestAddress(address)).map_err(|_outside| SessionError::Outside)?;
            body.extend((place as u64).to_le_bytes());
        }
        // No log of what is written.
        body.extend(0_u64.to_le_bytes());
        self.connection.tell(Request::SET_VRING_ADDR, &body, &[])?;
        self.event(Request::SET_VRING_CALL, ring, &ring.call)?;
        self.event(Request::SET_VRING_KICK, ring, &ring.kick)
    }

    fn state(&mut self, request: Request, ring: &LentRing, value: u32) -> Result<(), SessionError> {
        Ok(self.connection.tell(request, &words(index(ring), value), &[])?)
    }

    fn event(&mut self, request: Request, ring: &LentRing, event: &EventFd) -> Result<(), SessionError> {
        let body = u64::from(index(ring)).to_le_bytes();
        Ok(self.connection.tell(request, &body, &[event.as_raw_fd()])?)
    }
}

fn index(ring: &LentRing) -> u32 {
    // A device has at most 65536 queues.
    u32::try_from(ring.index).unwrap_or(u32::MAX)
}

fn words(first: u32, second: u32) -> [u8; 8] {
    (u64::from(second) << 32 | u64::from(first)).to_le_bytes()
}
