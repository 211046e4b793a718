//! VFIO's requests and mappings (`linux/vfio.h`), each behind a function that cannot be misused.
//!
//! Structures and numbers are the kernel's; only the parts this program needs are here.
#![expect(unsafe_code, reason = "ioctls and mappings of device memory have no safe wrapper")]

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use vm_memory::{Address as _, GuestMemoryRegion as _, GuestRegionMmap};

/// The API's version (VFIO_API_VERSION).
pub(super) const API_VERSION: c_int = 0;
/// The IOMMU model of x86 (VFIO_TYPE1v2_IOMMU).
pub(super) const TYPE1V2_IOMMU: c_int = 3;
/// vfio_group_status: every device of the group belongs to VFIO.
pub(super) const GROUP_VIABLE: u32 = 1;
/// vfio_device_info: it can be reset; it is a PCI function.
pub(super) const DEVICE_RESET: u32 = 1;
pub(super) const DEVICE_PCI: u32 = 1 << 1;
/// vfio_region_info: it can be mapped.
pub(super) const REGION_MMAP: u32 = 1 << 2;
/// vfio_irq_set: what follows, and what to do.
const IRQ_DATA_NONE: u32 = 1;
const IRQ_DATA_EVENTFD: u32 = 1 << 2;
const IRQ_ACTION_TRIGGER: u32 = 1 << 5;
/// vfio_iommu_type1_dma_map: the device may read and write.
const DMA_READ_WRITE: u32 = 0b11;

/// `_IO(';', 100 + number)`.
const fn request(number: u32) -> libc::Ioctl {
    ((b';' as u32) << 8 | (100 + number)) as libc::Ioctl
}

const GET_API_VERSION: libc::Ioctl = request(0);
const CHECK_EXTENSION: libc::Ioctl = request(1);
const SET_IOMMU: libc::Ioctl = request(2);
const GROUP_GET_STATUS: libc::Ioctl = request(3);
const GROUP_SET_CONTAINER: libc::Ioctl = request(4);
const GROUP_GET_DEVICE_FD: libc::Ioctl = request(6);
const DEVICE_GET_INFO: libc::Ioctl = request(7);
const DEVICE_GET_REGION_INFO: libc::Ioctl = request(8);
const DEVICE_SET_IRQS: libc::Ioctl = request(10);
const DEVICE_RESET_REQUEST: libc::Ioctl = request(11);
const IOMMU_MAP_DMA: libc::Ioctl = request(13);
/// What a VMM needs while its guest runs, and a function comes, works and goes.
pub(crate) const REQUESTS_OF_A_VMM: [libc::Ioctl; 5] =
    [DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_SET_IRQS, DEVICE_RESET_REQUEST, IOMMU_MAP_DMA];

#[repr(C)]
struct GroupStatus {
    argsz: u32,
    flags: u32,
}

/// `struct vfio_device_info`.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct DeviceInfo {
    argsz: u32,
    pub(super) flags: u32,
    pub(super) regions: u32,
    irqs: u32,
}

/// `struct vfio_region_info`, without the capabilities that may follow.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct RegionInfo {
    argsz: u32,
    pub(super) flags: u32,
    index: u32,
    capabilities: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// `struct vfio_irq_set`, up to its data.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "structures of a few bytes")]
const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

pub(super) fn api_version(container: impl AsFd) -> io::Result<c_int> {
    number(container, GET_API_VERSION, 0)
}

pub(super) fn has_extension(container: impl AsFd, extension: c_int) -> io::Result<bool> {
    Ok(number(container, CHECK_EXTENSION, extension)? > 0)
}

pub(super) fn set_iommu(container: impl AsFd, model: c_int) -> io::Result<()> {
    number(container, SET_IOMMU, model).map(drop)
}

pub(super) fn reset(device: impl AsFd) -> io::Result<()> {
    number(device, DEVICE_RESET_REQUEST, 0).map(drop)
}

pub(super) fn group_status(group: impl AsFd) -> io::Result<u32> {
    let mut status = GroupStatus { argsz: argsz::<GroupStatus>(), flags: 0 };
    exchange(group, GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags)
}

pub(super) fn set_container(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    exchange(group, GROUP_SET_CONTAINER, &mut container.as_fd().as_raw_fd()).map(drop)
}

/// Opens the device of `group` that is called `name`.
pub(super) fn device(group: impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads a string that ends with NUL.
    let fd = check(unsafe { libc::ioctl(group.as_fd().as_raw_fd(), GROUP_GET_DEVICE_FD, name.as_ptr()) })?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn device_info(device: impl AsFd) -> io::Result<DeviceInfo> {
    let mut info = DeviceInfo { argsz: argsz::<DeviceInfo>(), ..DeviceInfo::default() };
    exchange(device, DEVICE_GET_INFO, &mut info)?;
    Ok(info)
}

pub(super) fn region_info(device: impl AsFd, index: u32) -> io::Result<RegionInfo> {
    let mut info = RegionInfo { argsz: argsz::<RegionInfo>(), index, ..RegionInfo::default() };
    exchange(device, DEVICE_GET_REGION_INFO, &mut info)?;
    Ok(info)
}

/// Lets the devices of `container` reach a piece of guest memory, at its guest-physical address. Its pages are pinned
/// until the container is closed.
pub(super) fn map_dma(container: impl AsFd, ram: &GuestRegionMmap<()>) -> io::Result<()> {
    // The region is a live mapping of that size, of ordinary memory that is only ever accessed as a guest's: what a
    // device writes there changes no value of this program. Pinned pages outlive the mapping.
    let mut map = DmaMap {
        argsz: argsz::<DmaMap>(),
        flags: DMA_READ_WRITE,
        vaddr: ram.as_ptr() as u64,
        iova: ram.start_addr().raw_value(),
        size: ram.len(),
    };
    exchange(container, IOMMU_MAP_DMA, &mut map).map(drop)
}

/// Makes interrupts `start` and following of kind `index` signal these events, and switches that kind on if it is off.
pub(super) fn signal_interrupts(
    device: impl AsFd,
    index: u32,
    start: u32,
    events: impl IntoIterator<Item = c_int>,
) -> io::Result<()> {
    let header = size_of::<IrqSet>() / size_of::<u32>();
    let mut words = vec![0_u32; header];
    words.extend(events.into_iter().map(c_int::cast_unsigned));
    let (size, count) = (words.len() * size_of::<u32>(), words.len() - header);
    let (size, count) = (u32::try_from(size), u32::try_from(count));
    let (Ok(argsz), Ok(count)) = (size, count) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
    words[..header].copy_from_slice(&[argsz, flags, index, start, count]);
    // SAFETY: the kernel reads `argsz` bytes, which is the vector's length; words are as aligned as the structure.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), DEVICE_SET_IRQS, words.as_ptr()) }).map(drop)
}

/// Switches interrupts of kind `index` off.
pub(super) fn disable_interrupts(device: impl AsFd, index: u32) -> io::Result<()> {
    let mut set = IrqSet {
        argsz: argsz::<IrqSet>(),
        flags: IRQ_DATA_NONE | IRQ_ACTION_TRIGGER,
        index,
        start: 0,
        count: 0,
    };
    exchange(device, DEVICE_SET_IRQS, &mut set).map(drop)
}

/// A piece of a device's memory, mapped into this process. Nothing here reads or writes it: it is made for KVM.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut c_void,
    length: usize,
}

// SAFETY: only the address is used, as a number; the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `length` bytes at `offset` of a VFIO device.
    pub(super) fn new(device: impl AsFd, offset: u64, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, device.as_fd().as_raw_fd());
        // SAFETY: the kernel chooses a free place, so no memory of this program is touched.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, offset) };
        if address == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address, length })
        }
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> u64 {
        self.address as u64
    }

    /// Its size in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody has a reference into it.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// A request that takes a number.
fn number(fd: impl AsFd, request: libc::Ioctl, argument: c_int) -> io::Result<c_int> {
    // SAFETY: these requests take a number and touch no memory.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, argument) })
}

/// A request that reads and writes a structure, whose size the kernel knows or is told by `argsz`.
fn exchange<T>(fd: impl AsFd, request: libc::Ioctl, argument: &mut T) -> io::Result<c_int> {
    // SAFETY: callers pair each request with its own structure, which is valid for reads and writes.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, std::ptr::from_mut(argument)) })
}

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        assert_eq!((GET_API_VERSION, IOMMU_MAP_DMA), (0x3b64, 0x3b71));
        assert_eq!((DEVICE_SET_IRQS, DEVICE_RESET_REQUEST), (0x3b6e, 0x3b6f));
    }

    #[test]
    fn structures_have_the_sizes_of_the_kernels_header() {
        assert_eq!((size_of::<RegionInfo>(), size_of::<DmaMap>(), size_of::<IrqSet>()), (32, 32, 20));
    }
}
