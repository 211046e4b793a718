//! Kernel and initial RAM disk: from files of the user's into guest memory.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{self, KernelLoader as _};
use vm_memory::{Bytes as _, GuestAddress};

use crate::vmm::memory::{GuestRam, layout, low_ram_end};

/// A bzImage's 64-bit entry point, from where it was loaded.
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64`: the kernel has that entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The boot protocol's magic number, `HdrS`.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The boot sector's, at its end.
const BOOT_FLAG: u16 = 0xaa55;
const PAGE: u64 = 4096;

/// Why a guest could not be loaded. Messages name the role of the file, for the VMM does not know its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file is empty, a directory, a pipe …
    #[error("cannot read the {role}")]
    Read {
        /// `kernel` or `initrd`.
        role: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Neither format, or cut short.
    #[error("the kernel is neither a bzImage nor an ELF file that can be loaded")]
    Kernel(#[source] loader::Error),
    /// A 32-bit kernel, or one older than boot protocol 2.12.
    #[error("the kernel has no 64-bit entry point (boot protocol {}.{})", version >> 8, version & 0xff)]
    NoEntry64 {
        /// The protocol's version as the header has it.
        version: u16,
    },
    /// The guest is too small for its kernel.
    #[error("the kernel needs memory up to {needed:#x}; the guest's ends at {available:#x}")]
    KernelTooLarge {
        /// In bytes.
        needed: u64,
        /// In bytes.
        available: u64,
    },
    /// The guest is too small for its initial RAM disk.
    #[error(
        "the initrd of {size} bytes does not fit into the guest's memory between {start:#x} and {end:#x}"
    )]
    InitrdTooLarge {
        /// In bytes.
        size: u64,
        /// The end of the kernel.
        start: u64,
        /// The end of what both guest and kernel allow.
        end: u64,
    },
    /// The initrd has no content.
    #[error("the initrd is empty")]
    InitrdEmpty,
    /// The command line does not fit or has a NUL.
    #[error(
        "the kernel command line of {0} bytes is not allowed: at most {max} without NUL are",
        max = layout::COMMAND_LINE_MAX - 1
    )]
    CommandLine(usize),
    /// Guest memory refused an access, which a guest this small cannot have.
    #[error("cannot write {what} into guest memory")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Where it went wrong.
        source: vm_memory::GuestMemoryError,
    },
}

/// A kernel in guest memory.
pub(super) struct Kernel {
    pub(super) entry: u64,
    pub(super) header: setup_header,
    /// The first byte that the kernel does not need while it unpacks itself.
    end: u64,
}

pub(super) fn load(ram: &GuestRam, mut file: File) -> Result<Kernel, LoadError> {
    let unreadable = |source| LoadError::Read { role: "kernel", source };
    let mut magic = [0; 4];
    file.rewind().map_err(unreadable)?;
    file.read_exact(&mut magic).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if magic == *b"\x7fELF" { load_elf(ram, file) } else { load_bzimage(ram, file) }
}

fn load_bzimage(ram: &GuestRam, mut file: File) -> Result<Kernel, LoadError> {
    let at = GuestAddress(layout::HIGH_MEMORY);
    let loaded = BzImage::load(ram, Some(at), &mut file, Some(at)).map_err(LoadError::Kernel)?;
    let header = loaded.setup_header.unwrap_or_default();
    if header.version < 0x020c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(LoadError::NoEntry64 { version: header.version });
    }
    // It unpacks itself to its preferred address, and needs `init_size` bytes there.
    let end = loaded.kernel_end.max(header.pref_address.saturating_add(header.init_size.into()));
    check_end(ram, end)?;
    Ok(Kernel { entry: layout::HIGH_MEMORY + BZIMAGE_ENTRY_64, header, end })
}

fn load_elf(ram: &GuestRam, mut file: File) -> Result<Kernel, LoadError> {
    let at = GuestAddress(layout::HIGH_MEMORY);
    let loaded = Elf::load(ram, None, &mut file, Some(at)).map_err(LoadError::Kernel)?;
    check_end(ram, loaded.kernel_end)?;
    let header = setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: 0x020c,
        initrd_addr_max: u32::MAX,
        ..Default::default()
    };
    Ok(Kernel { entry: loaded.kernel_load.0, header, end: loaded.kernel_end })
}

fn check_end(ram: &GuestRam, needed: u64) -> Result<(), LoadError> {
    let available = low_ram_end(ram);
    if needed > available { Err(LoadError::KernelTooLarge { needed, available }) } else { Ok(()) }
}

/// Puts the initial RAM disk as high as guest and kernel allow, as boot loaders do, and notes it in the header.
pub(super) fn load_initrd(ram: &GuestRam, mut file: File, kernel: &mut Kernel) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Read { role: "initrd", source };
    let size = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if size == 0 {
        return Err(LoadError::InitrdEmpty);
    }
    let end = low_ram_end(ram).min(u64::from(kernel.header.initrd_addr_max) + 1);
    let start = end.checked_sub(size).map(|start| start / PAGE * PAGE).filter(|start| *start >= kernel.end);
    let too_large = LoadError::InitrdTooLarge { size, start: kernel.end, end };
    // Both are below 4 GiB, as `end` is.
    let (Some(start), Ok(short_size), Ok(size)) = (start, u32::try_from(size), usize::try_from(size)) else {
        return Err(too_large);
    };
    let Ok(short_start) = u32::try_from(start) else {
        return Err(too_large);
    };
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, size)
        .map_err(|source| LoadError::Memory { what: "the initrd", source })?;
    kernel.header.ramdisk_image = short_start;
    kernel.header.ramdisk_size = short_size;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::vmm::memory;

    fn ram() -> GuestRam {
        memory::map((32 << 20).try_into().unwrap(), memory::Users::Own).unwrap()
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    /// A bzImage of one setup sector and `body`, whose header `change` can spoil.
    fn bzimage(body: &[u8], change: impl FnOnce(&mut setup_header)) -> File {
        let mut header = setup_header {
            setup_sects: 1,
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: 0x020f,
            loadflags: 1,
            code32_start: 0x10_0000,
            initrd_addr_max: 0x7fff_ffff,
            xloadflags: XLF_KERNEL_64,
            pref_address: 0x100_0000,
            init_size: 0x10_0000,
            ..Default::default()
        };
        change(&mut header);
        let mut image = vec![0; 1024];
        let header = vm_memory::ByteValued::as_slice(&header);
        image[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
        image.extend_from_slice(body);
        file(&image)
    }

    #[test]
    fn a_bzimage_is_loaded_behind_its_setup_code() {
        let ram = ram();
        let kernel = load(&ram, bzimage(b"the kernel", |_| ())).unwrap();
        let mut start = [0; 10];
        ram.read_slice(&mut start, GuestAddress(layout::HIGH_MEMORY)).unwrap();
        assert_eq!(&start, b"the kernel");
        assert_eq!((kernel.entry, kernel.end), (0x10_0200, 0x110_0000));
    }

    #[test]
    fn garbage_is_no_kernel() {
        for garbage in [&b"#!/bin/sh\n"[..], &[0xff; 4096], b"\x7fELF but no more", &[0; 100_000]] {
            assert!(matches!(load(&ram(), file(garbage)), Err(LoadError::Kernel(_))));
        }
        let empty = load(&ram(), file(b"")).err().unwrap();
        assert_eq!(empty.to_string(), "cannot read the kernel");
    }

    #[test]
    fn a_kernel_that_lies_about_itself_is_refused() {
        let lie = |change: fn(&mut setup_header)| load(&ram(), bzimage(b"x", change)).err().unwrap();
        assert!(matches!(lie(|header| header.setup_sects = 200), LoadError::Kernel(_)));
        assert!(matches!(lie(|header| header.xloadflags = 0), LoadError::NoEntry64 { version: 0x020f }));
        assert!(matches!(lie(|header| header.init_size = u32::MAX), LoadError::KernelTooLarge { .. }));
        assert!(matches!(lie(|header| header.pref_address = u64::MAX), LoadError::KernelTooLarge { .. }));
    }

    #[test]
    fn an_initrd_goes_to_the_top_of_memory_but_never_over_the_kernel() {
        let ram = ram();
        let mut kernel = load(&ram, bzimage(b"x", |_| ())).unwrap();
        load_initrd(&ram, file(&[7; 5000]), &mut kernel).unwrap();
        assert_eq!((kernel.header.ramdisk_image, { kernel.header.ramdisk_size }), ((32 << 20) - 8192, 5000));
        let large = file(&[]);
        large.set_len(20 << 20).unwrap();
        assert!(matches!(load_initrd(&ram, large, &mut kernel), Err(LoadError::InitrdTooLarge { .. })));
        assert!(matches!(load_initrd(&ram, file(b""), &mut kernel), Err(LoadError::InitrdEmpty)));
    }

    #[test]
    fn a_low_initrd_limit_of_the_kernel_is_kept() {
        let ram = ram();
        let mut kernel = load(&ram, bzimage(b"x", |header| header.initrd_addr_max = 0x17f_ffff)).unwrap();
        load_initrd(&ram, file(&[7; 4096]), &mut kernel).unwrap();
        assert_eq!({ kernel.header.ramdisk_image }, 0x17f_f000);
    }
}
