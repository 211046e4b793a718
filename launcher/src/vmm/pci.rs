//! The guest's PCI bus.

/// A bus without devices.
pub(crate) struct PciRoot;

impl PciRoot {
    pub(crate) fn port_read(&mut self, _offset: u8, data: &mut [u8]) {
        data.fill(0xff);
    }

    pub(crate) fn port_write(&mut self, _offset: u8, _data: &[u8]) {}

    pub(crate) fn ecam_read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    pub(crate) fn ecam_write(&mut self, _offset: u64, _data: &[u8]) {}

    pub(crate) fn memory_read(&mut self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    pub(crate) fn memory_write(&mut self, _address: u64, _data: &[u8]) {}
}
