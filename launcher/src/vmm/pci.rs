//! The guest's PCI bus: one bus of up to 32 single-function devices, the first of which is the host bridge.
//!
//! Called under one lock by vCPU threads, for accesses that are rare once a guest runs: notifications and interrupts
//! go through eventfds past it ([`wiring`]). Configuration space is reached by ports 0xCF8/0xCFC and by ECAM; both
//! end in [`Function::config_read`] and [`Function::config_write`].

mod config;
mod msix;
mod msix_table;
mod wiring;

pub(crate) use config::{COMMAND, ConfigSpace, Identity};
pub(crate) use msix::Msix;
pub(crate) use msix_table::{
    CONTROL_WRITABLE as MSIX_CONTROL_WRITABLE, ENTRY_SIZE as MSIX_ENTRY_SIZE, MsixTable,
};
pub(crate) use wiring::{Wiring, WiringError, event};

use super::memory::layout;
use crate::control::PciSlot;

/// How many devices fit on a bus.
const SLOTS: usize = 32;
/// Bits of the address register: enable, bus, device, function, register.
const ADDRESS_ENABLE: u32 = 1 << 31;

/// One device on the bus. Offsets and lengths are whatever the guest made up.
pub(crate) trait Function: Send {
    /// Reads registers from `offset` on.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes registers from `offset` on.
    fn config_write(&mut self, offset: u16, data: &[u8]);
    /// Which BAR has `address`, and where in it, if memory decoding is on.
    fn decode(&self, address: u64) -> Option<BarOffset>;
    /// Reads from a BAR.
    fn bar_read(&mut self, at: BarOffset, data: &mut [u8]);
    /// Writes to a BAR.
    fn bar_write(&mut self, at: BarOffset, data: &[u8]);
}

/// A place in one of a device's memory windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BarOffset {
    /// The BAR's number.
    pub(crate) bar: usize,
    /// Bytes from its start.
    pub(crate) offset: u64,
}

/// There is no room for another device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusFull {
    /// There are more devices than a bus has slots.
    #[error("more than {SLOTS} PCI devices are not supported")]
    Slots,
    /// Two devices want one slot.
    #[error("two devices are to be in PCI slot {0}")]
    Taken(PciSlot),
    /// Their memory does not fit below 4 GiB.
    #[error("{0} bytes do not fit into the PCI memory window")]
    Window(u32),
}

/// A place on the bus.
enum Slot {
    Free,
    /// Kept for a device that is to be there and nowhere else.
    Reserved,
    Taken(Box<dyn Function>),
}

/// The bus.
pub(crate) struct PciRoot {
    slots: [Slot; SLOTS],
    /// The address register, port 0xCF8.
    address: u32,
    /// Where the next BAR goes.
    next_bar: u64,
}

impl PciRoot {
    /// A bus with a host bridge, and places kept for devices that will be added to these slots.
    pub(crate) fn new(reserved: impl IntoIterator<Item = PciSlot>) -> Result<Self, BusFull> {
        let mut slots = [const { Slot::Free }; SLOTS];
        slots[0] = Slot::Taken(Box::new(HostBridge::new()));
        for slot in reserved {
            match &mut slots[slot.index()] {
                free @ Slot::Free => *free = Slot::Reserved,
                _ => return Err(BusFull::Taken(slot)),
            }
        }
        Ok(Self { slots, address: 0, next_bar: layout::HOLE })
    }

    /// An address for a memory BAR of `size` bytes, a power of two, as firmware would assign it.
    pub(crate) fn assign_bar(&mut self, size: u32) -> Result<u32, BusFull> {
        let at = self.next_bar.next_multiple_of(size.into());
        let end = at + u64::from(size);
        match u32::try_from(at) {
            Ok(address) if end <= layout::PCI_WINDOW_END => {
                self.next_bar = end;
                Ok(address)
            }
            _ => Err(BusFull::Window(size)),
        }
    }

    /// Puts a device into a slot that was reserved for it, or into the first free one.
    pub(crate) fn add(&mut self, function: Box<dyn Function>, at: Option<PciSlot>) -> Result<(), BusFull> {
        let slot = match at {
            Some(slot) => match &mut self.slots[slot.index()] {
                Slot::Taken(_) => return Err(BusFull::Taken(slot)),
                reserved => reserved,
            },
            None => {
                let mut slots = self.slots.iter_mut();
                slots.find(|slot| matches!(slot, Slot::Free)).ok_or(BusFull::Slots)?
            }
        };
        *slot = Slot::Taken(function);
        Ok(())
    }

    /// Keeps a place for a device that comes later: the slot that was reserved for it, or the first free one.
    pub(crate) fn keep(&mut self, at: Option<PciSlot>) -> Result<PciSlot, BusFull> {
        if let Some(slot) = at {
            return Ok(slot);
        }
        let free = (1..=PciSlot::MAX).filter_map(|slot| PciSlot::try_from(slot).ok());
        let mut free = free.filter(|slot| matches!(self.slots[slot.index()], Slot::Free));
        let slot = free.next().ok_or(BusFull::Slots)?;
        self.slots[slot.index()] = Slot::Reserved;
        Ok(slot)
    }

    /// Takes the device out of a slot, which stays reserved.
    pub(crate) fn remove(&mut self, slot: PciSlot) -> Option<Box<dyn Function>> {
        match std::mem::replace(&mut self.slots[slot.index()], Slot::Reserved) {
            Slot::Taken(function) => Some(function),
            Slot::Free | Slot::Reserved => None,
        }
    }

    /// A read of `data.len()` bytes at 0xCF8 + `offset`.
    pub(crate) fn port_read(&mut self, offset: u8, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= 4 {
            if let Some((function, register)) = self.addressed(offset) {
                function.config_read(register, data);
            }
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.address.to_le_bytes();
        }
    }

    /// A write at 0xCF8 + `offset`.
    pub(crate) fn port_write(&mut self, offset: u8, data: &[u8]) {
        if offset >= 4 {
            if let Some((function, register)) = self.addressed(offset) {
                function.config_write(register, data);
            }
        } else if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.address = u32::from_le_bytes(data);
        }
    }

    /// What the address register points to, for an access at `offset` (4 to 7) in the data register.
    fn addressed(&mut self, offset: u8) -> Option<(&mut (dyn Function + 'static), u16)> {
        let [register, slot, bus, _] = self.address.to_le_bytes();
        if self.address & ADDRESS_ENABLE == 0 || bus != 0 {
            return None;
        }
        let function = self.slot(slot >> 3, slot & 7)?;
        Some((function, u16::from(register & !3) + u16::from(offset - 4)))
    }

    /// A read at `offset` in the ECAM window.
    pub(crate) fn ecam_read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, register)) = self.in_ecam(offset) {
            function.config_read(register, data);
        }
    }

    /// A write at `offset` in the ECAM window.
    pub(crate) fn ecam_write(&mut self, offset: u64, data: &[u8]) {
        if let Some((function, register)) = self.in_ecam(offset) {
            function.config_write(register, data);
        }
    }

    /// Bits of an ECAM offset: bus, device (5), function (3), register (12).
    fn in_ecam(&mut self, offset: u64) -> Option<(&mut (dyn Function + 'static), u16)> {
        let slot = u8::try_from(offset >> 15).ok()?;
        let function = u8::try_from(offset >> 12 & 7).ok()?;
        let register = u16::try_from(offset & 0xfff).ok()?;
        Some((self.slot(slot, function)?, register))
    }

    fn slot(&mut self, slot: u8, function: u8) -> Option<&mut (dyn Function + 'static)> {
        if function != 0 {
            return None;
        }
        match self.slots.get_mut(usize::from(slot)) {
            Some(Slot::Taken(function)) => Some(function.as_mut()),
            _ => None,
        }
    }

    /// A read of guest-physical memory that is not RAM.
    pub(crate) fn memory_read(&mut self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((function, at)) = self.decode(address) {
            function.bar_read(at, data);
        }
    }

    /// A write to guest-physical memory that is not RAM.
    pub(crate) fn memory_write(&mut self, address: u64, data: &[u8]) {
        if let Some((function, at)) = self.decode(address) {
            function.bar_write(at, data);
        }
    }

    /// The first device that claims the address: a guest that lets BARs overlap gets what it deserves.
    fn decode(&mut self, address: u64) -> Option<(&mut (dyn Function + 'static), BarOffset)> {
        self.slots.iter_mut().find_map(|slot| {
            let Slot::Taken(function) = slot else { return None };
            let at = function.decode(address)?;
            Some((function.as_mut(), at))
        })
    }
}

/// Slot 0: says that there is a bus. Vendor and device number are the ones QEMU's generic PCIe host bridge has.
struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    fn new() -> Self {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0x1b36,
            subsystem: 0,
        };
        Self { config: ConfigSpace::new(&identity) }
    }
}

impl Function for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn decode(&self, _address: u64) -> Option<BarOffset> {
        None
    }

    fn bar_read(&mut self, _at: BarOffset, _data: &mut [u8]) {}

    fn bar_write(&mut self, _at: BarOffset, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(root: &mut PciRoot, address: u32) -> u32 {
        root.port_write(0, &address.to_le_bytes());
        let mut data = [0; 4];
        root.port_read(4, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_is_found_by_ports_and_by_ecam() {
        let mut root = PciRoot::new([]).unwrap();
        assert_eq!(read32(&mut root, ADDRESS_ENABLE), 0x0008_1b36);
        let mut data = [0; 4];
        root.ecam_read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0008_1b36);
    }

    #[test]
    fn nothing_is_anywhere_else() {
        let mut root = PciRoot::new([]).unwrap();
        for address in [0, ADDRESS_ENABLE | 1 << 16, ADDRESS_ENABLE | 1 << 11, ADDRESS_ENABLE | 1 << 8] {
            assert_eq!(read32(&mut root, address), u32::MAX, "{address:#x}");
        }
        let mut data = [0; 4];
        root.ecam_read(layout::ECAM_SIZE - 1, &mut data);
        assert_eq!(data, [0xff; 4]);
        root.memory_read(layout::HOLE, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn accesses_of_any_size_and_place_do_no_harm() {
        let mut root = PciRoot::new([]).unwrap();
        for offset in 0..8 {
            for size in [1, 2, 4, 8, 3, 0, 600] {
                root.port_write(0, &ADDRESS_ENABLE.wrapping_add(0xff).to_le_bytes());
                root.port_write(offset, &vec![0xff; size]);
                root.port_read(offset, &mut vec![0; size]);
            }
        }
        for offset in (0..layout::ECAM_SIZE).step_by(509) {
            root.ecam_write(offset, &[0xff; 8]);
            root.ecam_read(offset, &mut [0; 8]);
        }
    }

    #[test]
    fn devices_are_where_they_are_wanted_and_the_others_around_them() {
        let slot = |number: u8| PciSlot::try_from(number).unwrap();
        let function = || Box::new(HostBridge::new());
        let mut root = PciRoot::new([slot(1), slot(31)]).unwrap();
        root.add(function(), None).unwrap();
        root.add(function(), Some(slot(31))).unwrap();
        let there = |root: &mut PciRoot, slot: u32| read32(root, ADDRESS_ENABLE | slot << 11) != u32::MAX;
        let occupied: Vec<_> = (0..32).filter(|slot| there(&mut root, *slot)).collect();
        assert_eq!(occupied, [0, 2, 31], "slot 1 is kept");
        assert!(matches!(root.add(function(), Some(slot(31))), Err(BusFull::Taken(_))));
        assert!(matches!(PciRoot::new([slot(5), slot(5)]), Err(BusFull::Taken(_))));
        assert_eq!(root.keep(None).unwrap(), slot(3));
        while root.add(function(), None).is_ok() {}
        root.add(function(), Some(slot(1))).unwrap();
        assert!(root.remove(slot(1)).is_some() && root.remove(slot(1)).is_none());
        assert!(root.add(function(), None).is_err(), "what was removed leaves its place");
        root.add(function(), Some(slot(1))).unwrap();
        root.add(function(), Some(slot(3))).unwrap();
    }

    #[test]
    fn bars_are_aligned_to_their_size_and_inside_the_window() {
        let mut root = PciRoot::new([]).unwrap();
        let first = root.assign_bar(0x1000).unwrap();
        let second = root.assign_bar(0x8000).unwrap();
        assert_eq!((first, second), (0xc000_0000, 0xc000_8000));
        assert!(matches!(root.assign_bar(1 << 30), Err(BusFull::Window(_))));
    }
}
