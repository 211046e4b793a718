//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

/// A PCI function as Linux writes it: `domain:bus:device.function`, `0000:07:10.1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// Why a text is no PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address (domain:bus:device.function in hexadecimal, such as 0000:07:10.1)")]
pub struct PciAddressError(String);

impl PciAddress {
    /// The PCI domain (segment).
    pub const fn domain(self) -> u16 {
        self.domain
    }

    /// The bus, 0 to 255.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function of its device, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, PciAddressError> {
        parse(text).ok_or_else(|| PciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let hex = |digits: &str, len: usize| {
        let well_formed = digits.len() == len && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        well_formed.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
    };
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let device = u8::try_from(hex(device, 2)?).ok().filter(|device| *device < 32)?;
    let function = u8::try_from(hex(function, 1)?).ok().filter(|function| *function < 8)?;
    Some(PciAddress { domain: hex(domain, 4)?, bus: u8::try_from(hex(bus, 2)?).ok()?, device, function })
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

crate::serde_by_text!(PciAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_it_was_read() {
        for text in ["0000:00:00.0", "0000:07:10.1", "ffff:ff:1f.7"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("0000:AF:00.0".parse::<PciAddress>().unwrap().to_string(), "0000:af:00.0");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "07:10.1",
            "0000:07:20.0",
            "0000:07:10.8",
            "0000:7:10.1",
            "0000:07:10",
            "+000:07:10.1",
            "../../x",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
