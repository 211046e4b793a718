//! One memory window of a host function: what of it the guest reaches directly, and the rest.
//!
//! Pages of the device are mapped into the guest as long as the guest has the window switched on. Pages with the MSI-X
//! table or its pending bits are not: accesses to them come here, as do all accesses to a window that cannot be mapped,
//! or that the guest has laid over something else.

use std::ops::Range;
use std::sync::Arc;

use crate::vfio::{Device, Region, VfioError};
use crate::vmm::machine::{DeviceMemory, Machine};

/// What the kernel maps: whole pages.
const PAGE: u64 = 4096;

/// A window, in its place or switched off.
pub(super) struct Bar {
    device: Arc<Device>,
    region: Region,
    /// What is mapped, and how far from the window's start.
    direct: Vec<(u64, DeviceMemory)>,
}

impl Bar {
    /// The window over `region`; accesses to the `trapped` parts will come to [`Bar::read`] and [`Bar::write`].
    pub(super) fn new(
        device: Arc<Device>,
        region: Region,
        trapped: &[Range<u64>],
        machine: &Machine,
    ) -> Result<Self, VfioError> {
        let parts = if region.can_be_mapped { direct(region.size, trapped) } else { Vec::new() };
        let direct = parts
            .into_iter()
            .map(|part| {
                let mapping = device.map(region, part.start, part.end - part.start)?;
                Ok((part.start, machine.device_memory(mapping)))
            })
            .collect::<Result<_, VfioError>>()?;
        Ok(Self { device, region, direct })
    }

    /// Follows the window to where the guest has put it.
    pub(super) fn place(&mut self, address: Option<u64>) {
        for (offset, memory) in &mut self.direct {
            let address = address.and_then(|address| address.checked_add(*offset));
            if let Err(error) = memory.place(address) {
                // It works without, only slower.
                tracing::debug!("a device's memory is not where the guest wants it: {error}");
            }
        }
    }

    /// Reads what is not reached directly.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(self.region, offset, data);
    }

    /// Writes what is not reached directly.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        self.device.write(self.region, offset, data);
    }
}

/// The parts of a window of `size` bytes that are made of whole pages without anything trapped.
fn direct(size: u64, trapped: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut pages: Vec<Range<u64>> =
        trapped.iter().map(|range| range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE)).collect();
    pages.sort_by_key(|range| range.start);
    let mut parts = Vec::new();
    let mut from = 0;
    for range in pages {
        if range.start > from {
            parts.push(from..range.start.min(size));
        }
        from = from.max(range.end);
    }
    if from < size && size.is_multiple_of(PAGE) {
        parts.push(from..size);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pairs of start and end.
    fn parts(size: u64, trapped: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let trapped: Vec<_> = trapped.iter().map(|(start, end)| *start..*end).collect();
        direct(size, &trapped).into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn everything_but_the_trapped_pages_is_direct() {
        assert_eq!(parts(0x4000, &[]), [(0, 0x4000)]);
        assert_eq!(parts(0x4000, &[(0, 0x30), (0x2000, 0x2008)]), [(0x1000, 0x2000), (0x3000, 0x4000)]);
        assert_eq!(parts(0x4000, &[(0x2ff8, 0x3008), (0x10, 0x20)]), [(0x1000, 0x2000)]);
        assert_eq!(parts(0x1000, &[(0x800, 0x810)]), []);
        assert_eq!(parts(0x2000, &[(0x2000, 0x3000), (0x1ff0, 0x2010)]), [(0, 0x1000)], "beyond the end");
        assert_eq!(parts(0x100, &[]), [], "less than a page");
    }
}
