//! One PCI function, as a VMM drives it: its registers, its memory, its interrupts.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use vmm_sys_util::eventfd::EventFd;

use super::{Mapping, VfioError, failed, sys};

/// Numbers of regions and interrupts (VFIO_PCI_*): the six BARs come first.
const BARS: u32 = 6;
const CONFIG_REGION: u32 = 7;
const MSIX_INTERRUPTS: u32 = 2;
/// Registers of configuration space (PCI 3.0, 6.1) and of the MSI-X capability (6.8.2).
const CAPABILITIES: u64 = 0x34;
const CAPABILITY_MSIX: u8 = 0x11;
/// A list that is longer than this runs in circles.
const MAX_CAPABILITIES: usize = 48;

/// A function that VFIO has opened.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    config_offset: u64,
    can_reset: bool,
}

/// A BAR's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// Bytes, a power of two.
    pub(crate) size: u64,
    /// Whether [`Device::map`] works.
    pub(crate) can_be_mapped: bool,
    /// Where it is in the device's file.
    offset: u64,
}

/// Where a function keeps its table of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Msix {
    /// How many messages, 1 to 2048.
    pub(crate) count: u16,
    /// The registers that say where the table is: bits 0 to 2 the BAR, the rest the offset.
    pub(crate) table: u32,
    /// As `table`, for the pending bits.
    pub(crate) pending: u32,
}

impl Device {
    /// Takes a descriptor of [`super::open`].
    pub(crate) fn new(device: OwnedFd) -> Result<Self, VfioError> {
        let info = sys::device_info(&device).map_err(failed("VFIO_DEVICE_GET_INFO"))?;
        if info.flags & sys::DEVICE_PCI == 0 || info.regions <= CONFIG_REGION {
            return Err(VfioError::Unfit("the device is no PCI function"));
        }
        let config =
            sys::region_info(&device, CONFIG_REGION).map_err(failed("VFIO_DEVICE_GET_REGION_INFO"))?;
        let can_reset = info.flags & sys::DEVICE_RESET != 0;
        Ok(Self { file: device.into(), config_offset: config.offset, can_reset })
    }

    /// Makes the function what it is after power-on, if it can.
    pub(crate) fn reset(&self) -> Result<(), VfioError> {
        if self.can_reset { sys::reset(&self.file).map_err(failed("VFIO_DEVICE_RESET")) } else { Ok(()) }
    }

    /// Reads registers of configuration space, as the kernel shows them.
    pub(crate) fn read_config<const N: usize>(&self, register: u64) -> Result<[u8; N], VfioError> {
        let mut data = [0; N];
        self.file
            .read_exact_at(&mut data, self.config_offset + register)
            .map_err(failed("reading configuration space"))?;
        Ok(data)
    }

    /// Writes registers of configuration space.
    pub(crate) fn write_config(&self, register: u64, data: &[u8]) -> Result<(), VfioError> {
        self.file
            .write_all_at(data, self.config_offset + register)
            .map_err(failed("writing configuration space"))
    }

    /// The memory of BAR `bar`, if there is any.
    pub(crate) fn bar(&self, bar: u32) -> Result<Option<Region>, VfioError> {
        debug_assert!(bar < BARS, "there are six");
        let info = sys::region_info(&self.file, bar).map_err(failed("VFIO_DEVICE_GET_REGION_INFO"))?;
        let can_be_mapped = info.flags & sys::REGION_MMAP != 0;
        Ok((info.size > 0).then_some(Region { size: info.size, can_be_mapped, offset: info.offset }))
    }

    /// Where the function's MSI-X table is.
    pub(crate) fn msix(&self) -> Result<Msix, VfioError> {
        let mut next = self.read_config::<1>(CAPABILITIES)?[0] & !3;
        for _ in 0..MAX_CAPABILITIES {
            if next == 0 {
                break;
            }
            let at = u64::from(next);
            let [id, link] = self.read_config(at)?;
            if id == CAPABILITY_MSIX {
                let control = u16::from_le_bytes(self.read_config(at + 2)?);
                return Ok(Msix {
                    count: (control & 0x7ff) + 1,
                    table: u32::from_le_bytes(self.read_config(at + 4)?),
                    pending: u32::from_le_bytes(self.read_config(at + 8)?),
                });
            }
            next = link & !3;
        }
        Err(VfioError::Unfit("the device has no MSI-X, the only interrupts that are supported"))
    }

    /// Maps a part of a region: whole pages.
    pub(crate) fn map(&self, region: Region, offset: u64, length: u64) -> Result<Mapping, VfioError> {
        let length = usize::try_from(length).map_err(io::Error::other);
        length
            .and_then(|length| Mapping::new(&self.file, region.offset + offset, length))
            .map_err(failed("mapping the device's memory"))
    }

    /// Reads a register; all ones if the device does not answer.
    pub(crate) fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        if let Err(error) = self.file.read_exact_at(data, region.offset + offset) {
            tracing::debug!("a device's register at {offset:#x} cannot be read: {error}");
            data.fill(0xff);
        }
    }

    /// Writes a register.
    pub(crate) fn write(&self, region: Region, offset: u64, data: &[u8]) {
        if let Err(error) = self.file.write_all_at(data, region.offset + offset) {
            tracing::debug!("a device's register at {offset:#x} cannot be written: {error}");
        }
    }

    /// Lets messages `first` and following signal these events; switches MSI-X on if it is off.
    pub(crate) fn signal<'a>(
        &self,
        first: u32,
        events: impl IntoIterator<Item = &'a EventFd>,
    ) -> Result<(), VfioError> {
        let events = events.into_iter().map(|event| event.as_raw_fd());
        sys::signal_interrupts(&self.file, MSIX_INTERRUPTS, first, events)
            .map_err(failed("VFIO_DEVICE_SET_IRQS"))
    }

    /// Switches MSI-X off.
    pub(crate) fn silence(&self) -> Result<(), VfioError> {
        sys::disable_interrupts(&self.file, MSIX_INTERRUPTS).map_err(failed("VFIO_DEVICE_SET_IRQS"))
    }
}
