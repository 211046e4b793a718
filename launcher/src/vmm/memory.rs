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

use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

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
#[error("cannot map {bytes} bytes of guest memory")]
pub(crate) struct MemoryError {
    bytes: u64,
    source: vm_memory::mmap::FromRangesError,
}

/// Maps the guest's memory. Pages are taken from the host as the guest touches them.
pub(crate) fn map(size: MemorySize) -> Result<GuestRam, MemoryError> {
    let bytes = u64::from(size);
    let ranges: Vec<_> = ranges(bytes)
        .into_iter()
        .filter_map(|(start, length)| Some((GuestAddress(start), usize::try_from(length).ok()?)))
        .collect();
    GuestRam::from_ranges(&ranges).map_err(|source| MemoryError { bytes, source })
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
        assert_eq!(low_ram_end(&map((64 << 20).try_into().unwrap()).unwrap()), 64 << 20);
        assert_eq!(low_ram_end(&map((4 << 30).try_into().unwrap()).unwrap()), layout::HOLE);
    }
}
