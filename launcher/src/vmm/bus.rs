//! Where a guest's port and memory accesses go. Called by every vCPU thread, with whatever the guest made up:
//! any port, any address, any length KVM reports. What nobody answers reads as all ones and writes to nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hotplug::Hotplug;
use super::legacy::{PowerPorts, SerialPort, ports};
use super::memory::layout;
use super::pci::PciRoot;

/// All devices a guest can reach.
pub(crate) struct Bus {
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) power: PowerPorts,
    pub(crate) pci: Mutex<PciRoot>,
    pub(crate) hotplug: Hotplug,
}

impl Bus {
    pub(crate) fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            // A string instruction reports many bytes for one port.
            ports::SERIAL..=ports::SERIAL_LAST => {
                data.fill_with(|| self.serial.read(offset(port, ports::SERIAL)));
            }
            ports::PCI_CONFIG..=ports::PCI_CONFIG_LAST => {
                self.pci().port_read(offset(port, ports::PCI_CONFIG), data);
            }
            ports::APPEARED..=ports::HOTPLUG_LAST => self.hotplug.read(port, data),
            ports::KEYBOARD_COMMAND | ports::SLEEP_CONTROL | ports::SLEEP_STATUS => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    pub(crate) fn port_write(&self, port: u16, data: &[u8]) {
        match port {
            ports::SERIAL..=ports::SERIAL_LAST => {
                data.iter().for_each(|byte| self.serial.write(offset(port, ports::SERIAL), *byte));
            }
            ports::PCI_CONFIG..=ports::PCI_CONFIG_LAST => {
                self.pci().port_write(offset(port, ports::PCI_CONFIG), data);
            }
            ports::APPEARED..=ports::HOTPLUG_LAST => {
                for slot in self.hotplug.write(port, data) {
                    let function = self.pci().remove(slot);
                    // Without the bus's lock: other devices go on.
                    drop(function);
                    self.hotplug.gone(slot);
                }
            }
            ports::KEYBOARD_COMMAND | ports::SLEEP_CONTROL | ports::SLEEP_STATUS => {
                data.iter().for_each(|byte| self.power.write(port, *byte));
            }
            _ => {}
        }
    }

    pub(crate) fn memory_read(&self, address: u64, data: &mut [u8]) {
        match address.checked_sub(layout::ECAM) {
            Some(offset) if offset < layout::ECAM_SIZE => self.pci().ecam_read(offset, data),
            _ => self.pci().memory_read(address, data),
        }
    }

    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        match address.checked_sub(layout::ECAM) {
            Some(offset) if offset < layout::ECAM_SIZE => self.pci().ecam_write(offset, data),
            _ => self.pci().memory_write(address, data),
        }
    }

    /// The PCI bus, held.
    pub(crate) fn pci(&self) -> MutexGuard<'_, PciRoot> {
        // A panic in a device ends the process in a release build; in tests the next access may still look.
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A register's number within its device.
#[expect(clippy::cast_possible_truncation, reason = "callers match the port to a device of eight registers")]
fn offset(port: u16, base: u16) -> u8 {
    (port - base) as u8
}
