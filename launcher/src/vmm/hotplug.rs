//! The registers by which a guest's ACPI learns of devices that come and that are to go, and says what it let go of.
//!
//! A bit is a slot of the bus. The host raises the interrupt of the generic event device; its method (`acpi::hotplug`)
//! reads [`ports::APPEARED`] and [`ports::LEAVING`], which clears them, and notifies the guest's driver of each slot.
//! `_EJ0` of a slot writes [`ports::EJECT`]. Written and read by vCPU threads; a guest that ejects what nobody asked it
//! to eject is not heard.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::legacy::ports;
use crate::control::PciSlot;

/// The registers.
pub(crate) struct Hotplug {
    state: Mutex<State>,
    /// Raises the guest's interrupt.
    line: EventFd,
    /// Wakes the main thread when the guest has ejected something.
    ejected: EventFd,
}

#[derive(Default)]
struct State {
    /// Not yet told to the guest.
    appeared: u32,
    leaving: u32,
    /// What the guest may eject.
    allowed: u32,
    /// What it has ejected, and the main thread has not heard of.
    ejected: u32,
}

impl Hotplug {
    /// `line` is the interrupt line that the ACPI tables name.
    pub(crate) fn new(line: EventFd) -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), line, ejected: EventFd::new(EFD_NONBLOCK)? })
    }

    /// Tells the guest of a device that is new in `slot`.
    pub(crate) fn announce(&self, slot: PciSlot) {
        let mut state = self.state();
        state.appeared |= bit(slot);
        state.leaving &= !bit(slot);
        self.raise();
    }

    /// Asks the guest to let go of the device in `slot`; it may be asked again.
    pub(crate) fn ask_back(&self, slot: PciSlot) {
        let mut state = self.state();
        state.leaving |= bit(slot);
        state.allowed |= bit(slot);
        self.raise();
    }

    /// The slots that the guest has ejected since this was asked last.
    pub(crate) fn take_ejected(&self) -> impl Iterator<Item = PciSlot> {
        // An empty counter means that they were taken already.
        let _ = self.ejected.read();
        slots(std::mem::take(&mut self.state().ejected))
    }

    /// A read of `data.len()` bytes at `port`.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let mut state = self.state();
        match port {
            ports::APPEARED => *data = std::mem::take(&mut state.appeared).to_le_bytes(),
            ports::LEAVING => *data = std::mem::take(&mut state.leaving).to_le_bytes(),
            _ => {}
        }
    }

    /// A write at `port`: the slots that the guest lets go of now. The caller takes their devices off the bus, then
    /// calls [`Hotplug::gone`].
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> impl Iterator<Item = PciSlot> {
        let bits = match (port, <[u8; 4]>::try_from(data)) {
            (ports::EJECT, Ok(data)) => u32::from_le_bytes(data),
            _ => 0,
        };
        let mut state = self.state();
        let let_go = bits & state.allowed;
        state.allowed &= !let_go;
        slots(let_go)
    }

    /// The device in `slot` is off the bus.
    pub(crate) fn gone(&self, slot: PciSlot) {
        self.state().ejected |= bit(slot);
        // A full counter wakes, too.
        let _ = self.ejected.write(1);
    }

    fn raise(&self) {
        // A full counter means that the interrupt is on its way already.
        let _ = self.line.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable when the guest has ejected something.
impl AsRawFd for Hotplug {
    fn as_raw_fd(&self) -> RawFd {
        self.ejected.as_raw_fd()
    }
}

fn bit(slot: PciSlot) -> u32 {
    1 << u8::from(slot)
}

fn slots(bits: u32) -> impl Iterator<Item = PciSlot> {
    let all = (1..=PciSlot::MAX).filter_map(|slot| PciSlot::try_from(slot).ok());
    all.filter(move |slot| bits & bit(*slot) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hotplug() -> Hotplug {
        Hotplug::new(EventFd::new(EFD_NONBLOCK).unwrap()).unwrap()
    }

    fn slot(number: u8) -> PciSlot {
        number.try_into().unwrap()
    }

    fn read(hotplug: &Hotplug, port: u16) -> u32 {
        let mut data = [0xff; 4];
        hotplug.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    fn eject(hotplug: &Hotplug, bits: u32) -> Vec<u8> {
        hotplug.write(ports::EJECT, &bits.to_le_bytes()).map(u8::from).collect()
    }

    #[test]
    fn a_guest_is_told_once_of_what_comes_and_goes() {
        let hotplug = hotplug();
        hotplug.announce(slot(3));
        hotplug.ask_back(slot(31));
        assert_eq!(hotplug.line.read().unwrap(), 2, "an interrupt each");
        assert_eq!((read(&hotplug, ports::APPEARED), read(&hotplug, ports::LEAVING)), (1 << 3, 1 << 31));
        assert_eq!((read(&hotplug, ports::APPEARED), read(&hotplug, ports::LEAVING)), (0, 0));
    }

    #[test]
    fn only_what_was_asked_back_can_be_ejected_and_only_once() {
        let hotplug = hotplug();
        assert!(eject(&hotplug, u32::MAX).is_empty());
        hotplug.ask_back(slot(4));
        assert_eq!(eject(&hotplug, u32::MAX), [4]);
        assert!(eject(&hotplug, u32::MAX).is_empty());
        hotplug.gone(slot(4));
        assert_eq!(hotplug.take_ejected().collect::<Vec<_>>(), [slot(4)]);
        assert_eq!(hotplug.take_ejected().count(), 0);
    }

    #[test]
    fn accesses_of_any_size_and_place_do_no_harm() {
        let hotplug = hotplug();
        hotplug.ask_back(slot(4));
        for port in ports::APPEARED..=ports::HOTPLUG_LAST {
            for size in [0, 1, 2, 3, 8, 600] {
                assert_eq!(hotplug.write(port, &vec![0xff; size]).count(), 0);
                let mut data = vec![0xff; size];
                hotplug.read(port, &mut data);
                assert!(data.iter().all(|byte| *byte == 0));
            }
        }
        assert_eq!(read(&hotplug, ports::LEAVING), 1 << 4, "reads of other sizes take nothing");
    }
}
