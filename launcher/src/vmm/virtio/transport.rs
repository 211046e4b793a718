//! virtio-pci (virtio 1.2, 4.1): a virtio device as a PCI function with one memory BAR and MSI-X.
//!
//! Called by vCPU threads under the bus's lock. Notifications do not come here: while the BAR is mapped, each queue's
//! notify register is an ioeventfd. INTx, legacy registers and the ISR status are deliberately absent: MSI-X only.

use std::io;
use std::sync::Arc;

use virtio_queue::QueueT as _;
use vmm_sys_util::eventfd::EventFd;

use super::common::{Action, CommonConfig, QueueSetup};
use super::device_config::DeviceConfig;
use super::queue::{LentRing, VirtQueue};
use super::worker::{self, Lane};
use super::{Device, Queues, Server};
use crate::vmm::memory::GuestRam;
use crate::vmm::outcome::End;
use crate::vmm::pci::{
    BarOffset, BusFull, ConfigSpace, Function, Identity, MSIX_CONTROL_WRITABLE, Msix, PciRoot, Wiring,
    WiringError, event,
};

/// The one BAR, and what lies where in it; each part has a page, the table what is left.
const BAR: usize = 0;
const BAR_SIZE: u32 = 0x8000;
const PART_SIZE: u32 = 0x1000;
const COMMON: u32 = 0;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_PENDING: u32 = 0x4000;
/// To the end of the BAR: 768 entries.
const MSIX_TABLE: u32 = 0x5000;

/// Registers of the common configuration that say what the device says.
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;

/// Bytes between the notify registers of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

const VENDOR: u16 = 0x1af4;
/// The device number of virtio device 0.
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;
/// `cfg_type` of the capabilities (virtio 1.2, 4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// An event or an interrupt could not be had.
    #[error("cannot wire the device's events")]
    Wiring(#[from] WiringError),
    /// There is no place for its BAR.
    #[error("cannot place the device's memory window")]
    Bus(#[from] BusFull),
    /// Its thread could not be started.
    #[error("cannot start the device's thread")]
    Thread(#[source] io::Error),
}

/// A virtio device on the bus.
pub(crate) struct Transport {
    config: ConfigSpace,
    msix: Arc<Msix>,
    msix_capability: usize,
    common: CommonConfig,
    device_config: Arc<DeviceConfig>,
    /// The status before the last reset: what a driver sees until the device has stopped.
    status_before: u8,
    /// One per server of the device.
    lanes: Vec<Arc<Lane>>,
    /// One per queue: the guest's notification.
    kicks: Arc<[EventFd]>,
    ram: Arc<GuestRam>,
    wiring: Arc<Wiring>,
    /// Where the notify registers are connected now.
    notify_at: Option<u64>,
}

impl Transport {
    /// Puts `device` behind a PCI function for `root`, and starts its threads.
    pub(crate) fn new(
        device: Device,
        root: &mut PciRoot,
        ram: Arc<GuestRam>,
        wiring: Arc<Wiring>,
        end: End,
    ) -> Result<Self, TransportError> {
        let Device { kind, features, ring_features, queue_sizes, config: device_config, servers } = device;
        let common = CommonConfig::new(features, ring_features, &queue_sizes);
        let queues = common.queues.len();
        // One vector a queue, and one for changes of the configuration, as drivers ask for.
        let vectors = u16::try_from(queues + 1).map_err(|_many| WiringError::NoInterruptLeft)?;
        let msix = Arc::new(Msix::new(Arc::clone(&wiring), vectors)?);
        device_config.tell_by(Arc::clone(&msix));
        let kicks: Arc<[EventFd]> = (0..queues).map(|_| event()).collect::<Result<_, _>>()?;
        let lanes: Vec<_> = servers.into_iter().map(|server| Arc::new(Lane::new(server))).collect();
        for lane in &lanes {
            worker::spawn(Arc::clone(lane), Arc::clone(&kicks), kind.name, end.clone())
                .map_err(TransportError::Thread)?;
        }

        let number = DEVICE_BASE + kind.id;
        let identity = Identity {
            vendor: VENDOR,
            device: number,
            revision: REVISION,
            class: kind.class,
            subsystem_vendor: VENDOR,
            subsystem: number,
        };
        let mut config = ConfigSpace::new(&identity);
        config.add_bar(BAR, BAR_SIZE, root.assign_bar(BAR_SIZE)?);
        let msix_capability = add_capabilities(&mut config, vectors);
        Ok(Self {
            config,
            msix,
            msix_capability,
            common,
            device_config,
            status_before: 0,
            lanes,
            kicks,
            ram,
            wiring,
            notify_at: None,
        })
    }

    /// Follows the BAR with the notify registers' ioeventfds.
    fn follow_bar(&mut self) {
        let wanted = self.config.bar(BAR).map(|bar| bar + u64::from(NOTIFY));
        if wanted == self.notify_at {
            return;
        }
        if let Some(old) = self.notify_at.take() {
            self.each_notify_register(old, Wiring::disconnect);
        }
        if let Some(new) = wanted {
            self.each_notify_register(new, Wiring::connect);
            self.notify_at = Some(new);
        }
    }

    fn each_notify_register(
        &self,
        first: u64,
        change: fn(&Wiring, &EventFd, u64) -> Result<(), WiringError>,
    ) {
        for (queue, kick) in (0..).zip(self.kicks.iter()) {
            // Fails where the guest laid two devices' registers over each other; then the write reaches `bar_write`.
            if let Err(error) = change(&self.wiring, kick, first + queue * u64::from(NOTIFY_MULTIPLIER)) {
                tracing::debug!("a notify register is not connected: {error}");
            }
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Activate => {
                if self.activate().is_none() {
                    self.common.refuse();
                }
            }
            Action::Reset => {
                for lane in &self.lanes {
                    let mut state = lane.state();
                    if state.queues.take().is_some() {
                        state.server.reset();
                    }
                }
            }
        }
    }

    /// Builds the live queues and hands them to the servers, which serve or lend them. `None` if a ring is not wholly in
    /// memory.
    fn activate(&mut self) -> Option<()> {
        let features = self.common.features();
        let built = self.lanes.iter().map(|lane| self.build(lane.state().server.as_ref(), features));
        // All of them, before any is served.
        let built = built.collect::<Option<Vec<_>>>()?;
        for (lane, (queues, lent)) in self.lanes.iter().zip(built) {
            let mut state = lane.state();
            state.server.lend(lent);
            state.server.activate(features);
            state.queues = Some(queues);
        }
        // The driver may have filled its rings before it was ready, and the outside may have spoken already.
        for kick in self.kicks.iter() {
            let _ = kick.write(1);
        }
        Some(())
    }

    /// The queues of one server.
    fn build(&self, server: &dyn Server, features: u64) -> Option<(Queues, Vec<LentRing>)> {
        let range = server.queues(features);
        let (first, mut queues, mut lent) = (range.start, Vec::new(), Vec::new());
        for index in range {
            let setup = self.common.queues.get(index)?;
            let mut own = None;
            if setup.enabled {
                let queue = setup.build(self.common.event_idx())?;
                if !queue.is_valid(self.ram.as_ref()) {
                    return None;
                }
                if server.lends() {
                    lent.push(self.lent(index, setup, queue.size())?);
                } else {
                    let (ram, msix) = (Arc::clone(&self.ram), Arc::clone(&self.msix));
                    own = Some(VirtQueue::new(queue, ram, msix, setup.vector));
                }
            }
            queues.push(own);
        }
        Some((Queues { first, queues }, lent))
    }

    /// A ring with the events of its queue, for somebody else to serve. `None` if the process has no descriptors left.
    fn lent(&self, index: usize, setup: &QueueSetup, size: u16) -> Option<LentRing> {
        Some(LentRing {
            index,
            size,
            descriptors: setup.descriptors,
            available: setup.driver,
            used: setup.device,
            kick: self.kicks.get(index)?.try_clone().ok()?,
            call: self.msix.event(setup.vector).ok()?,
        })
    }

    /// Reads the common configuration, with what the device has to say in it.
    fn read_common(&self, offset: u64, data: &mut [u8]) {
        self.common.read(offset, data);
        let mut put = |register: u64, value: u8| {
            let place = register.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = place.and_then(|at| data.get_mut(at)) {
                *byte = value;
            }
        };
        put(GENERATION, self.device_config.generation());
        if self.common.status == 0 && self.lanes.iter().any(|lane| lane.state().server.is_stopping()) {
            put(STATUS, self.status_before);
        }
    }
}

/// Adds MSI-X and the capabilities that say where in the BAR what is; returns where MSI-X's is.
fn add_capabilities(config: &mut ConfigSpace, vectors: u16) -> usize {
    let mut body = [0; 10];
    body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&MSIX_TABLE.to_le_bytes());
    body[6..].copy_from_slice(&MSIX_PENDING.to_le_bytes());
    let msix = config.add_capability(CAPABILITY_MSIX, &body, &MSIX_CONTROL_WRITABLE.to_le_bytes());
    for (kind, offset, length) in [
        (CFG_COMMON, COMMON, PART_SIZE),
        (CFG_ISR, ISR, 4),
        (CFG_DEVICE, DEVICE, PART_SIZE),
        (CFG_NOTIFY, NOTIFY, PART_SIZE),
    ] {
        // struct virtio_pci_cap, without the two bytes every capability has.
        let mut body = vec![16, kind, 0, 0, 0, 0];
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&length.to_le_bytes());
        if kind == CFG_NOTIFY {
            body[0] += 4;
            body.extend_from_slice(&NOTIFY_MULTIPLIER.to_le_bytes());
        }
        config.add_capability(CAPABILITY_VENDOR, &body, &[]);
    }
    msix
}

impl Function for Transport {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        self.follow_bar();
        self.msix.set_control(self.config.word(self.msix_capability + 2));
    }

    fn decode(&self, address: u64) -> Option<BarOffset> {
        self.config.decode(address)
    }

    fn bar_read(&mut self, at: BarOffset, data: &mut [u8]) {
        data.fill(0);
        let (part, offset) = split(at);
        match part {
            COMMON => self.read_common(offset, data),
            DEVICE => self.device_config.read(offset, data),
            MSIX_TABLE => self.msix.read_table(offset, data),
            MSIX_PENDING => self.msix.read_pending(offset, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, at: BarOffset, data: &[u8]) {
        let (part, offset) = split(at);
        match part {
            COMMON => {
                let status = self.common.status;
                let action = self.common.write(offset, data, self.msix.count());
                if action == Action::Reset && status != 0 {
                    self.status_before = status;
                }
                self.device_config.set_vector(self.common.config_vector);
                self.perform(action);
            }
            NOTIFY => {
                let queue = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).unwrap_or(usize::MAX);
                if let Some(kick) = self.kicks.get(queue) {
                    let _ = kick.write(1);
                }
            }
            MSIX_TABLE => self.msix.write_table(offset, data),
            _ => {}
        }
    }
}

/// The part of the BAR, and the offset in that part.
fn split(at: BarOffset) -> (u32, u64) {
    let size = u64::from(PART_SIZE);
    // Decoding has checked that the offset is inside the BAR.
    let part = u32::try_from(at.offset / size * size).unwrap_or(u32::MAX).min(MSIX_TABLE);
    (part, at.offset - u64::from(part))
}

#[cfg(test)]
mod tests;
