//! The zero page: what a boot loader tells the kernel (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::LoadError;
use crate::vmm::memory::{GuestRam, layout};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// "A boot loader without an assigned number."
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes command line and zero page.
pub(super) fn write(ram: &GuestRam, header: setup_header, command_line: &str) -> Result<(), LoadError> {
    let length = command_line.len();
    if length >= layout::COMMAND_LINE_MAX || command_line.contains('\0') {
        return Err(LoadError::CommandLine(length));
    }
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE_POINTER;
    params.hdr.cmdline_size = u32::try_from(length).map_err(|_long| LoadError::CommandLine(length))?;
    params.acpi_rsdp_addr = layout::ACPI;
    for (entry, (addr, size, r#type)) in params.e820_table.iter_mut().zip(memory_map(ram)) {
        *entry = boot_e820_entry { addr, size, r#type };
        params.e820_entries += 1;
    }
    let failed = |what| move |source| LoadError::Memory { what, source };
    ram.write_slice(command_line.as_bytes(), GuestAddress(layout::COMMAND_LINE))
        .map_err(failed("the command line"))?;
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE)).map_err(failed("the boot parameters"))
}

/// [`layout::COMMAND_LINE`] as the header's 32-bit field wants it.
#[expect(clippy::cast_possible_truncation, reason = "a constant below 1 MiB")]
const COMMAND_LINE_POINTER: u32 = layout::COMMAND_LINE as u32;

/// The e820 map: start, size, type.
fn memory_map(ram: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, layout::LOW_MEMORY_END, E820_RAM),
        (layout::ACPI, layout::HIGH_MEMORY - layout::ACPI, E820_RESERVED),
        (layout::ECAM, layout::ECAM_SIZE, E820_RESERVED),
        (layout::KVM_IDENTITY_MAP, 4 * 4096, E820_RESERVED),
    ];
    map.extend(ram.iter().map(|region| {
        let start = region.start_addr().0.max(layout::HIGH_MEMORY);
        (start, region.start_addr().0 + region.len() - start, E820_RAM)
    }));
    map.sort_unstable_by_key(|(start, ..)| *start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;

    #[test]
    fn the_memory_map_has_all_ram_and_no_overlap() {
        for bytes in [64_u64 << 20, 3 << 30, 5 << 30] {
            let map = memory_map(&memory::map(bytes.try_into().unwrap(), memory::Users::Own).unwrap());
            for pair in map.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
            }
            let ram: u64 = map.iter().filter(|entry| entry.2 == E820_RAM).map(|entry| entry.1).sum();
            assert_eq!(ram, bytes - (layout::HIGH_MEMORY - layout::LOW_MEMORY_END));
        }
    }

    #[test]
    fn a_command_line_is_written_or_refused_whole() {
        let ram = memory::map((32 << 20).try_into().unwrap(), memory::Users::Own).unwrap();
        write(&ram, setup_header::default(), "console=ttyS0").unwrap();
        let params: boot_params = ram.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        assert_eq!(({ params.hdr.cmd_line_ptr }, { params.hdr.cmdline_size }), (0x2_0000, 13));
        let long = "x".repeat(layout::COMMAND_LINE_MAX);
        assert!(matches!(write(&ram, setup_header::default(), &long), Err(LoadError::CommandLine(2048))));
        assert!(matches!(write(&ram, setup_header::default(), "a\0b"), Err(LoadError::CommandLine(3))));
    }
}
