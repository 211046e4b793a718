//! PCI functions of the host in the guest, by VFIO: called by vCPU threads under the bus's lock. [`places`] puts them on
//! the bus, at start or later, and takes them back.
//!
//! The guest sees the function's identity, its memory windows and its MSI-X, as one more [`Function`] on the bus.
//! Everything else of its configuration space is deliberately absent: expansion ROM, INTx and MSI, power management and
//! the extended capabilities. Windows are presented as 32-bit ones, whatever the hardware has, so that they lie with
//! those of all other devices. DMA is the IOMMU's business: all guest memory is mapped once for functions that came together.

mod bar;
mod interrupts;
mod places;

use std::ops::Range;
use std::sync::Arc;

use self::bar::Bar;
use self::interrupts::Interrupts;
pub(super) use self::places::Places;
use super::machine::{Machine, MachineError};
use super::pci::{
    BarOffset, BusFull, COMMAND, ConfigSpace, Function, Identity, MSIX_CONTROL_WRITABLE, MSIX_ENTRY_SIZE,
    Wiring, WiringError,
};
use crate::vfio::{Device, Msix, VfioError};

/// Memory windows in a header.
const BARS: u32 = 6;
/// Registers of configuration space (PCI 3.0, 6.1).
const VENDOR: u64 = 0x00;
const REVISION: u64 = 0x08;
const FIRST_BAR: u64 = 0x10;
const SUBSYSTEM_VENDOR: u64 = 0x2c;
/// Bit of a BAR: it has ports, not memory.
const BAR_PORTS: u8 = 1;
const CAPABILITY_MSIX: u8 = 0x11;
/// Bits of an MSI-X register that say which BAR; the others are the offset in it.
const BAR_NUMBER: u32 = 0b111;

/// Why a function cannot be in the guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassthroughError {
    #[error(transparent)]
    Vfio(#[from] VfioError),
    #[error("cannot wire the device's interrupts")]
    Wiring(#[from] WiringError),
    #[error("cannot place the device")]
    Bus(#[from] BusFull),
    #[error("cannot tell KVM of the device")]
    Kvm(#[from] MachineError),
    #[error("the device has a memory window of {0} bytes; at most 256 MiB are supported")]
    Window(u64),
    #[error("there is no place {0} for it")]
    NoPlace(usize),
}

/// One function, as the guest sees it.
struct Assigned {
    device: Arc<Device>,
    config: ConfigSpace,
    bars: [Option<Bar>; BARS as usize],
    interrupts: Interrupts,
    msix_capability: usize,
    table: Place,
    pending: Place,
    /// What the device was last told of the command register.
    command: u16,
}

/// A part of a window.
struct Place {
    bar: usize,
    range: Range<u64>,
}

impl Place {
    /// From one of the two registers of the capability, and a length in bytes.
    fn new(register: u32, length: u64) -> Self {
        let offset = u64::from(register & !BAR_NUMBER);
        Self { bar: (register & BAR_NUMBER) as usize, range: offset..offset + length }
    }

    /// How far into it `at` is.
    fn offset(&self, at: BarOffset) -> Option<u64> {
        (at.bar == self.bar && self.range.contains(&at.offset)).then(|| at.offset - self.range.start)
    }
}

impl Assigned {
    /// `assign` chooses the address of a window of this size; 0 leaves that to the guest.
    fn new(
        device: Arc<Device>,
        machine: &Machine,
        wiring: &Arc<Wiring>,
        mut assign: impl FnMut(u32) -> Result<u32, BusFull>,
    ) -> Result<Self, PassthroughError> {
        let Msix { count, table, pending } = device.msix()?;
        let mut config = ConfigSpace::new(&identity(&device)?);
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(count - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let msix_capability =
            config.add_capability(CAPABILITY_MSIX, &body, &MSIX_CONTROL_WRITABLE.to_le_bytes());
        let table = Place::new(table, u64::from(count) * MSIX_ENTRY_SIZE as u64);
        // Pending bits come in words of 64.
        let pending = Place::new(pending, u64::from(count).div_ceil(64) * 8);
        let mut bars = [const { None }; BARS as usize];
        for (index, bar) in (0..BARS).zip(&mut bars) {
            let Some(region) = memory(&device, index)? else { continue };
            let size = u32::try_from(region.size).map_err(|_wide| PassthroughError::Window(region.size))?;
            let place = index as usize;
            config.add_bar(place, size, assign(size)?);
            let trapped = [&table, &pending].into_iter().filter(|trap| trap.bar == place);
            let trapped: Vec<_> = trapped.map(|trap| trap.range.clone()).collect();
            *bar = Some(Bar::new(Arc::clone(&device), region, &trapped, machine)?);
        }
        let interrupts = Interrupts::new(Arc::clone(&device), Arc::clone(wiring), count)?;
        Ok(Self { device, config, bars, interrupts, msix_capability, table, pending, command: 0 })
    }
}

/// Who the function is. The kernel fills in what virtual functions leave out of their own registers.
fn identity(device: &Device) -> Result<Identity, VfioError> {
    let word = |register| device.read_config(register).map(u16::from_le_bytes);
    let class = u32::from_le_bytes(device.read_config(REVISION)?);
    Ok(Identity {
        vendor: word(VENDOR)?,
        device: word(VENDOR + 2)?,
        revision: class.to_le_bytes()[0],
        class: class >> 8,
        subsystem_vendor: word(SUBSYSTEM_VENDOR)?,
        subsystem: word(SUBSYSTEM_VENDOR + 2)?,
    })
}

/// The memory of a BAR; none if it has ports, which no function needs, or nothing.
fn memory(device: &Device, index: u32) -> Result<Option<crate::vfio::Region>, VfioError> {
    let [first] = device.read_config(FIRST_BAR + u64::from(index) * 4)?;
    if first & BAR_PORTS != 0 { Ok(None) } else { device.bar(index) }
}

impl Function for Assigned {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        let command = self.config.command();
        if command != self.command {
            self.command = command;
            if let Err(error) = self.device.write_config(COMMAND as u64, &command.to_le_bytes()) {
                tracing::debug!("{}", crate::chain(&error));
            }
        }
        for (index, bar) in self.bars.iter_mut().enumerate() {
            if let Some(bar) = bar {
                bar.place(self.config.bar(index));
            }
        }
        self.interrupts.set_control(self.config.word(self.msix_capability + 2));
    }

    fn decode(&self, address: u64) -> Option<BarOffset> {
        self.config.decode(address)
    }

    fn bar_read(&mut self, at: BarOffset, data: &mut [u8]) {
        if let Some(offset) = self.table.offset(at) {
            self.interrupts.read_table(offset, data);
        } else if let Some(offset) = self.pending.offset(at) {
            self.interrupts.read_pending(offset, data);
        } else if let Some(Some(bar)) = self.bars.get(at.bar) {
            bar.read(at.offset, data);
        }
    }

    fn bar_write(&mut self, at: BarOffset, data: &[u8]) {
        if let Some(offset) = self.table.offset(at) {
            self.interrupts.write_table(offset, data);
        } else if self.pending.offset(at).is_none()
            && let Some(Some(bar)) = self.bars.get(at.bar)
        {
            bar.write(at.offset, data);
        }
    }
}
