//! Guest memory, and the map of what lies where in guest-physical space.
//!
//! ```text
//! 0            low memory: what the kernel is started with ([`layout`])
//! 0xA0000      VGA's hole
//! 0xE0000      ACPI tables; the reset vector at the end
//! 0x10_0000    RAM, up to 3 GiB
//! 0xC000_0000  hole: PCI memory window, ECAM, IOAPIC, local APICs, KVM's own pages
//! 4 GiB        the rest of RAM
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use crate::control::MemorySize;

/// The guest's RAM, mapped into this process.
pub(crate) type GuestRam = GuestMemoryMmap<()>;

/// Fixed guest-physical addresses.
pub(crate) mod layout {
    /// The boot GDT: four entries.
    pub(crate) const GDT: u64 = 0x500;
    /// The zero page (`struct boot_params`), 4 KiB.
    pub(crate) const ZERO_PAGE: u64 = 0x7000;
    /// The boot page tables: one page of each level.
    pub(crate) const PML4: u64 = 0x9000;
    /// Page directory pointers.
    pub(crate) const PDPT: u64 = 0xa000;
    /// Page directory: 1 GiB in 2 MiB pages.
    pub(crate) const PAGE_DIRECTORY: u64 = 0xb000;
    /// The kernel's command line.
    pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
    /// The most bytes of a command line, NUL included: x86's COMMAND_LINE_SIZE.
    pub(crate) const COMMAND_LINE_MAX: usize = 2048;
    /// The end of low memory; a PC's EBDA would begin here.
    pub(crate) const LOW_MEMORY_END: u64 = 0x9_fc00;
    /// ACPI tables, RSDP first, where a kernel without `acpi_rsdp_addr` scans for it.
    pub(crate) const ACPI: u64 = 0xe_0000;
    /// Where a kernel image and all ordinary memory begins.
    pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
    /// The end of RAM below 4 GiB, and the start of the PCI memory window.
    pub(crate) const HOLE: u64 = 0xc000_0000;
    /// The end (exclusive) of the PCI memory window.
    pub(crate) const PCI_WINDOW_END: u64 = 0xe000_0000;
    /// PCI configuration space by memory access (PCIe ECAM), one bus.
    pub(crate) const ECAM: u64 = 0xe000_0000;
    /// One bus: 32 devices of 8 functions of 4 KiB.
    pub(crate) const ECAM_SIZE: u64 = 1 << 20;
    /// KVM's IOAPIC.
    pub(crate) const IOAPIC: u32 = 0xfec0_0000;
    /// KVM's local APICs.
    pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
    /// A page KVM needs on Intel to run real mode, and three more behind it for a TSS.
    pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
    /// The TSS pages.
    pub(crate) const KVM_TSS: u64 = KVM_IDENTITY_MAP + 0x1000;
    /// RAM goes on here.
    pub(crate) const ABOVE_HOLE: u64 = 1 << 32;
}

/// The guest's memory could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// No mapping.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// How many.
        bytes: u64,
        /// Why not.
        source: vm_memory::mmap::FromRangesError,
    },
    /// No file that another process can map too.
    #[error("cannot make a memory file of {bytes} bytes")]
    File {
        /// How many.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who uses the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// This process and its guest.
    Own,
    /// Backends in other processes too: the memory is a file that they can be given.
    Backends,
}

/// Maps the guest's memory. Pages are taken from the host as the guest touches them.
pub(crate) fn map(size: MemorySize, users: Users) -> Result<GuestRam, MemoryError> {
    let bytes = u64::from(size);
    let file = match users {
        Users::Own => None,
        Users::Backends => Some(Arc::new(file(bytes).map_err(|source| MemoryError::File { bytes, source })?)),
    };
    let mut offset = 0;
    let mut pieces = Vec::new();
    for (start, length) in ranges(bytes) {
        let part = file.clone().map(|file| FileOffset::from_arc(file, offset));
        offset += length;
        pieces.extend(usize::try_from(length).ok().map(|length| (GuestAddress(start), length, part)));
    }
    GuestRam::from_ranges_with_files(pieces).map_err(|source| MemoryError::Map { bytes, source })
}

/// A memory file whose size nobody can change: what is mapped from it stays there.
fn file(bytes: u64) -> io::Result<File> {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Start and length of each piece of RAM.
fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let below = bytes.min(layout::HOLE);
    let above = bytes - below;
    let pieces = [(0, below), (layout::ABOVE_HOLE, above)];
    pieces.into_iter().filter(|(_, length)| *length > 0).collect()
}

/// The end (exclusive) of RAM below the hole.
pub(crate) fn low_ram_end(ram: &GuestRam) -> u64 {
    ram.iter().map(vm_memory::GuestMemoryRegion::last_addr).map(|last| last.0 + 1).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        const GIB: u64 = 1 << 30;
        assert_eq!(ranges(GIB), [(0, GIB)]);
        assert_eq!(ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ranges(5 * GIB), [(0, 3 * GIB), (4 * GIB, 2 * GIB)]);
    }

    #[test]
    fn low_ram_ends_where_the_first_piece_does() {
        let end = |bytes: u64| low_ram_end(&map(bytes.try_into().unwrap(), Users::Own).unwrap());
        assert_eq!((end(64 << 20), end(4 << 30)), (64 << 20, layout::HOLE));
    }

    #[test]
    fn backends_find_all_of_ram_in_one_file_that_keeps_its_size() {
        use vm_memory::{Bytes as _, GuestMemoryRegion as _};
        let ram = map((4 << 30).try_into().unwrap(), Users::Backends).unwrap();
        let parts: Vec<_> =
            ram.iter().map(|region| (region.file_offset().unwrap().start(), region.len())).collect();
        assert_eq!(parts, [(0, layout::HOLE), (layout::HOLE, 1 << 30)]);
        ram.write_obj(7_u8, GuestAddress(layout::ABOVE_HOLE)).unwrap();
        let file = ram.iter().next().unwrap().file_offset().unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut byte, layout::HOLE).unwrap();
        assert_eq!(byte, [7]);
        assert!(file.file().set_len(0).is_err(), "it would fault whoever has mapped it");
    }
}
