//! CPU state at the kernel's 64-bit entry point, and what firmware would have left in the MSRs.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress};

use super::LoadError;
use crate::vmm::machine::{MachineError, failed};
use crate::vmm::memory::{GuestRam, layout};

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const PAGE_PRESENT_WRITABLE: u64 = 0x3;
const PAGE_LARGE: u64 = 1 << 7;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default.
const MTRR_WRITE_BACK: u64 = 0x806;

/// The boot protocol's `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;

/// Descriptor table and page tables that the first vCPU starts with: memory is mapped one to one.
pub(crate) fn write_tables(ram: &GuestRam) -> Result<(), LoadError> {
    let write = |value: u64, at: u64| {
        ram.write_obj(value, GuestAddress(at))
            .map_err(|source| LoadError::Memory { what: "the boot tables", source })
    };
    let gdt =
        [0, 0, descriptor(&segment(BOOT_CS, SEGMENT_CODE)), descriptor(&segment(BOOT_DS, SEGMENT_DATA))];
    for (index, entry) in (0..).zip(gdt) {
        write(entry, layout::GDT + index * 8)?;
    }
    write(layout::PDPT | PAGE_PRESENT_WRITABLE, layout::PML4)?;
    write(layout::PAGE_DIRECTORY | PAGE_PRESENT_WRITABLE, layout::PDPT)?;
    for index in 0..512 {
        write((index << 21) | PAGE_LARGE | PAGE_PRESENT_WRITABLE, layout::PAGE_DIRECTORY + index * 8)?;
    }
    Ok(())
}

/// Sets up the vCPU that starts the kernel; the others wait for it to send them a SIPI.
pub(crate) fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), MachineError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let (code, data) = (segment(BOOT_CS, SEGMENT_CODE), segment(BOOT_DS, SEGMENT_DATA));
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = layout::PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        // Bit 1 is always set; interrupts are off.
        rflags: 2,
        rip: entry,
        rsi: layout::ZERO_PAGE,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))
}

/// What firmware sets in the MSRs of every vCPU.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    for entry in
        [entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]
    {
        let msrs =
            Msrs::from_entries(&[entry]).map_err(|_size| MachineError::Capability("room for an MSR"))?;
        if vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))? != 1 {
            // AMD has no MISC_ENABLE, and the guest is fine with its value after reset.
            tracing::debug!("KVM does not set MSR {:#x}", entry.index);
        }
    }
    Ok(())
}

/// A flat 4 GiB segment; `type_` tells code from data.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    let code = u8::from(type_ == SEGMENT_CODE);
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: code,
        db: 1 - code,
        ..Default::default()
    }
}

/// The GDT entry of such a segment (Intel SDM 3A, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    const LIMIT: u64 = 0x000f_0000_0000_ffff;
    let access = u64::from(segment.type_) | 1 << 4 | 1 << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | 1 << 3;
    LIMIT | access << 40 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_boot_protocols_flat_ones() {
        assert_eq!(descriptor(&segment(BOOT_CS, SEGMENT_CODE)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(BOOT_DS, SEGMENT_DATA)), 0x00cf_9300_0000_ffff);
    }
}
