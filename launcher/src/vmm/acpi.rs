//! ACPI tables: how the guest finds its CPUs, its PCI bus, its serial port and its power button.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1): no SCI, no PM timer, no legacy mode. Written once before the guest runs;
//! the registers the tables name are in [`legacy`](super::legacy).

mod dsdt;
mod hotplug;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes as _, GuestAddress};

use super::legacy::ports;
use super::memory::{GuestRam, layout};
use crate::control::{PciSlot, VcpuCount};

const OEM: [u8; 6] = *b"GWIRE ";
const OEM_TABLE: [u8; 8] = *b"GWLAUNCH";
const OEM_REVISION: u32 = 1;

/// FADT `iapc_boot_arch` (ACPI 6.5, table 5.11): what a PC has and this machine has not. The bit for an 8042 stays
/// clear, which keeps the guest from probing for one.
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;
const NO_CMOS_RTC: u16 = 1 << 5;

/// Writes all tables at [`layout::ACPI`], RSDP first. PCI functions may come to and leave `slots`. Fails only if guest
/// memory ends below it.
pub(crate) fn write(
    ram: &GuestRam,
    vcpus: VcpuCount,
    slots: &[PciSlot],
) -> Result<(), vm_memory::GuestMemoryError> {
    let mut tables = Placer { ram, next: layout::ACPI + align(Rsdp::len()) };
    let dsdt = tables.place(&dsdt::build(slots))?;
    let fadt = tables.place(&fadt(dsdt))?;
    let madt = tables.place(&madt(vcpus))?;
    let mcfg = tables.place(&mcfg())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = tables.place(&xsdt)?;
    ram.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(layout::ACPI))
}

/// Puts one table behind the other.
struct Placer<'a> {
    ram: &'a GuestRam,
    next: u64,
}

impl Placer<'_> {
    /// The table's address.
    fn place(&mut self, table: &dyn Aml) -> Result<u64, vm_memory::GuestMemoryError> {
        let bytes = bytes(table);
        let at = self.next;
        self.ram.write_slice(&bytes, GuestAddress(at))?;
        self.next += align(bytes.len());
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn align(length: usize) -> u64 {
    length.next_multiple_of(16) as u64
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // The power button is a device of the DSDT, and there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM | NO_CMOS_RTC).into();
    fadt.reset_reg = port(ports::KEYBOARD_COMMAND);
    fadt.reset_value = ports::KEYBOARD_RESET;
    fadt.sleep_control_reg = port(ports::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(ports::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: VcpuCount) -> impl Aml {
    let mut madt =
        MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for id in 0..u8::from(vcpus) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM, 0, 0, 0);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;

    fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {:?}", String::from_utf8_lossy(&bytes[..4]));
        bytes
    }

    #[test]
    fn a_guest_finds_every_table_from_the_rsdp_on() {
        let ram = memory::map((32 << 20).try_into().unwrap(), memory::Users::Own).unwrap();
        let slots: Vec<_> = (1..=PciSlot::MAX).map(|slot| slot.try_into().unwrap()).collect();
        write(&ram, 254.try_into().unwrap(), &slots).unwrap();
        let xsdt_at: u64 = ram.read_obj(GuestAddress(layout::ACPI + 24)).unwrap();
        let xsdt = table(&ram, xsdt_at);
        let mut signatures = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let at = u64::from_le_bytes(entry.try_into().unwrap());
            let found = table(&ram, at);
            assert!(at + found.len() as u64 <= layout::HIGH_MEMORY);
            signatures.push(String::from_utf8(found[..4].to_vec()).unwrap());
            if &found[..4] == b"FACP" {
                let dsdt = u64::from_le_bytes(found[140..148].try_into().unwrap());
                assert_eq!(&table(&ram, dsdt)[..4], b"DSDT");
            }
        }
        assert_eq!(signatures, ["FACP", "APIC", "MCFG"]);
    }
}
