//! The few devices that are found by fixed port numbers, and their interrupt lines.
//!
//! A serial port, the keyboard controller's reset line, and the sleep registers of hardware-reduced ACPI. Reached
//! from vCPU threads by port I/O (see [`bus`](super::bus)).

mod serial;

pub(crate) use serial::SerialPort;

use super::outcome::{End, Outcome};

/// Port numbers and the values that mean something on them.
pub(crate) mod ports {
    /// COM1: eight registers of a 16550.
    pub(crate) const SERIAL: u16 = 0x3f8;
    /// Its last register.
    pub(crate) const SERIAL_LAST: u16 = SERIAL + 7;
    /// The keyboard controller's command register, also ACPI's reset register.
    pub(crate) const KEYBOARD_COMMAND: u16 = 0x64;
    /// "Pulse the CPU's reset line."
    pub(crate) const KEYBOARD_RESET: u8 = 0xfe;
    /// PCI configuration space: address register (4 bytes), then data register (4 bytes).
    pub(crate) const PCI_CONFIG: u16 = 0xcf8;
    /// Its last byte.
    pub(crate) const PCI_CONFIG_LAST: u16 = PCI_CONFIG + 7;
    /// ACPI's sleep control register (ACPI 6.5, 4.8.3.7).
    pub(crate) const SLEEP_CONTROL: u16 = 0x600;
    /// ACPI's sleep status register.
    pub(crate) const SLEEP_STATUS: u16 = 0x601;
    /// Hot-plug of PCI devices, four bytes each: which slots have a new device; which are to let go of theirs; a write
    /// says which did.
    pub(crate) const APPEARED: u16 = 0x610;
    pub(crate) const LEAVING: u16 = APPEARED + 4;
    pub(crate) const EJECT: u16 = APPEARED + 8;
    /// The last byte of these.
    pub(crate) const HOTPLUG_LAST: u16 = EJECT + 3;
    /// The sleep type of `_S5_`.
    pub(crate) const SLEEP_TYPE_SOFT_OFF: u8 = 5;
    /// Sleep control: go to sleep now.
    pub(crate) const SLEEP_ENABLE: u8 = 1 << 5;
}

/// Interrupt lines, as IOAPIC pins.
pub(crate) mod gsi {
    /// COM1's, as on every PC.
    pub(crate) const SERIAL: u32 = 4;
    /// The generic event device's: the power button was pressed.
    pub(crate) const POWER_BUTTON: u32 = 9;
    /// The same device's: PCI devices came, or are to go.
    pub(crate) const HOTPLUG: u32 = 10;
}

/// The ports by which a guest ends itself.
#[derive(Debug)]
pub(crate) struct PowerPorts {
    end: End,
}

impl PowerPorts {
    pub(crate) fn new(end: End) -> Self {
        Self { end }
    }

    pub(crate) fn write(&self, port: u16, value: u8) {
        const SOFT_OFF: u8 = ports::SLEEP_TYPE_SOFT_OFF << 2 | ports::SLEEP_ENABLE;
        match (port, value) {
            (ports::KEYBOARD_COMMAND, ports::KEYBOARD_RESET) => self.end.come(Outcome::Reset),
            (ports::SLEEP_CONTROL, SOFT_OFF) => self.end.come(Outcome::Shutdown),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_words_for_reset_and_soft_off_end_a_guest() {
        let end = End::new().unwrap();
        let power = PowerPorts::new(end.clone());
        for value in 0..=255 {
            if value != ports::KEYBOARD_RESET {
                power.write(ports::KEYBOARD_COMMAND, value);
            }
            if value != 0x34 {
                power.write(ports::SLEEP_CONTROL, value);
            }
            power.write(ports::SLEEP_STATUS, value);
        }
        assert!(!end.has_come());
        power.write(ports::SLEEP_CONTROL, 0x34);
        assert!(matches!(end.outcome(), Some(Outcome::Shutdown)));
    }
}
