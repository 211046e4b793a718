//! Getting a guest to its first instruction: kernel and initial RAM disk in memory, boot parameters, CPU state.
//!
//! Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`), for bzImage and ELF kernels alike. There is
//! no firmware in the guest: what firmware would have set up is done here, once, before the vCPUs run.

pub(crate) mod cpuid;
mod kernel;
mod params;
pub(crate) mod registers;
mod reset_vector;

use std::fs::File;

pub(crate) use kernel::LoadError;

use super::memory::GuestRam;

/// What is to be booted.
pub(crate) struct Sources {
    pub(crate) kernel: File,
    pub(crate) initrd: Option<File>,
    pub(crate) command_line: String,
}

/// Loads everything; returns the address of the kernel's 64-bit entry point. ACPI tables are put in place separately.
pub(crate) fn load(ram: &GuestRam, sources: Sources) -> Result<u64, LoadError> {
    let Sources { kernel, initrd, command_line } = sources;
    let mut kernel = kernel::load(ram, kernel)?;
    if let Some(initrd) = initrd {
        kernel::load_initrd(ram, initrd, &mut kernel)?;
    }
    params::write(ram, kernel.header, &command_line)?;
    reset_vector::write(ram)?;
    Ok(kernel.entry)
}
