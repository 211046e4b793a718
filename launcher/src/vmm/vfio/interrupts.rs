//! A host function's MSI-X: the guest's table here, the messages from the device by way of VFIO.
//!
//! VFIO signals an event per vector. While a vector is open, that event is bound to KVM (irqfd) and the interrupt reaches
//! the guest without this process. While it is masked, VFIO signals another event, which only holds the interrupt until
//! the guest unmasks the vector. Called by vCPU threads under the bus's lock.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::vfio::{Device, VfioError};
use crate::vmm::pci::{MsixTable, Wiring, WiringError, event};

/// The vectors of one function.
pub(super) struct Interrupts {
    device: Arc<Device>,
    wiring: Arc<Wiring>,
    table: MsixTable,
    vectors: Vec<Vector>,
    /// Whether VFIO has switched the device's MSI-X on.
    armed: bool,
}

struct Vector {
    /// Interrupts the guest.
    event: EventFd,
    /// Its number there.
    gsi: u32,
    /// Holds what came while the vector was masked.
    held: EventFd,
    /// Which of the two VFIO signals.
    direct: bool,
}

impl Interrupts {
    /// `count` vectors, all masked.
    pub(super) fn new(device: Arc<Device>, wiring: Arc<Wiring>, count: u16) -> Result<Self, WiringError> {
        // Whole from the beginning: what it has is given back if the next vector fails.
        let table = MsixTable::new(count);
        let mut interrupts = Self { device, wiring, table, vectors: Vec::new(), armed: false };
        for _ in 0..count {
            let held = event()?;
            let (event, gsi) = interrupts.wiring.interrupt()?;
            interrupts.vectors.push(Vector { event, gsi, held, direct: false });
        }
        Ok(interrupts)
    }

    /// The guest has written message control.
    pub(super) fn set_control(&mut self, control: u16) {
        self.table.set_control(control);
        let wanted = self.table.is_enabled();
        if wanted != self.armed {
            let changed = if wanted { self.arm() } else { self.device.silence() };
            match changed {
                Ok(()) => self.armed = wanted,
                // The guest's NIC stays silent, and its driver says so.
                Err(error) => tracing::error!("{}", crate::chain(&error)),
            }
        }
        (0..self.vectors.len()).for_each(|vector| self.follow(vector));
    }

    /// Switches MSI-X on, with every vector masked.
    fn arm(&mut self) -> Result<(), VfioError> {
        self.vectors.iter_mut().for_each(|vector| vector.direct = false);
        self.device.signal(0, self.vectors.iter().map(|vector| &vector.held))
    }

    /// Reads the table.
    pub(super) fn read_table(&self, offset: u64, data: &mut [u8]) {
        self.table.read(offset, data);
    }

    /// Writes the table.
    pub(super) fn write_table(&mut self, offset: u64, data: &[u8]) {
        if let Some(vector) = self.table.write(offset, data) {
            self.follow(vector);
        }
    }

    /// Reads the pending bits.
    pub(super) fn read_pending(&mut self, offset: u64, data: &mut [u8]) {
        for (index, vector) in self.vectors.iter().enumerate() {
            if !vector.direct && vector.held.read().is_ok() {
                self.table.set_pending(index);
            }
        }
        self.table.read_pending(offset, data);
    }

    /// Does for a vector what the table says of it.
    fn follow(&mut self, index: usize) {
        let Some(vector) = self.vectors.get_mut(index) else { return };
        if let Some((address, data)) = self.table.message(index)
            && let Err(error) = self.wiring.route(vector.gsi, address, data)
        {
            // The guest loses its own interrupt; nothing else depends on it.
            tracing::debug!("vector {index} is not routed: {error}");
        }
        let open = self.armed && self.table.is_open(index);
        if self.armed && open != vector.direct {
            let target = if open { &vector.event } else { &vector.held };
            // A vector's number fits: a function has at most 2048.
            let number = u32::try_from(index).unwrap_or(u32::MAX);
            match self.device.signal(number, [target]) {
                Ok(()) => vector.direct = open,
                Err(error) => tracing::debug!("{}", crate::chain(&error)),
            }
        }
        let was_held = open && (vector.held.read().is_ok() | self.table.take_pending(index));
        if was_held {
            // A full counter means that the interrupt is on its way already.
            let _ = vector.event.write(1);
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = self.device.silence()
        {
            tracing::error!("{}", crate::chain(&error));
        }
        for Vector { event, gsi, held: _, direct: _ } in &self.vectors {
            self.wiring.give_back(event, *gsi);
        }
    }
}
