//! The DSDT: devices that cannot be found by looking.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed,
    Method, Name, Notify, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::hotplug::{OnInterrupt, Slots};
use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::control::PciSlot;
use crate::vmm::legacy::{gsi, ports};
use crate::vmm::memory::layout;

/// Notification that a button was pressed (ACPI 6.5, table 5.168).
const BUTTON_PRESSED: u8 = 0x80;

/// PCI functions may come to and leave `slots`.
pub(super) fn build(slots: &[PciSlot]) -> impl Aml {
    let mut body = Vec::new();
    let (root, events) = (PciRoot { slots }, EventDevice { hotplug: !slots.is_empty() });
    let scope: [&dyn Aml; 5] = [&root, &Motherboard, &SerialPort, &PowerButton, &events];
    Scope::new("_SB_".into(), scope.to_vec()).to_aml_bytes(&mut body);
    soft_off().to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// `_S5_`: the sleep type that means soft off.
fn soft_off() -> impl Aml {
    struct SoftOff;
    impl Aml for SoftOff {
        fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
            Name::new("_S5_".into(), &Package::new(vec![&ports::SLEEP_TYPE_SOFT_OFF])).to_aml_bytes(sink);
        }
    }
    SoftOff
}

/// A device's name, its `_HID` and what else it has.
fn device(sink: &mut dyn acpi_tables::AmlSink, name: &str, hid: &dyn Aml, more: &[&dyn Aml]) {
    let hid = Name::new("_HID".into(), hid);
    let mut children: Vec<&dyn Aml> = vec![&hid];
    children.extend(more);
    Device::new(Path::new(name), children).to_aml_bytes(sink);
}

fn resources(list: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(list))
}

/// The PCI host bridge: bus 0 of segment 0, and the windows that BARs lie in.
struct PciRoot<'a> {
    slots: &'a [PciSlot],
}

impl Aml for PciRoot<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (first, last) = (window(layout::HOLE), window(layout::PCI_WINDOW_END - 1));
        let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
        let crs = resources(vec![
            &AddressSpace::new_bus_number(0_u16, 0),
            &IO::new(ports::PCI_CONFIG, ports::PCI_CONFIG, 1, 8),
            &memory,
        ]);
        let compatible = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
        let segment = Name::new("_SEG".into(), &ZERO);
        let bus = Name::new("_BBN".into(), &ZERO);
        let uid = Name::new("_UID".into(), &ZERO);
        let hid = EISAName::new("PNP0A08");
        device(sink, "PCI0", &hid, &[&compatible, &segment, &bus, &uid, &crs, &Slots(self.slots)]);
    }
}

/// Keeps the guest from placing anything on the configuration space; Linux uses ECAM only if it stands here.
struct Motherboard;

impl Aml for Motherboard {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let crs = resources(vec![&Memory32Fixed::new(true, window(layout::ECAM), window(layout::ECAM_SIZE))]);
        device(sink, "MBRD", &EISAName::new("PNP0C02"), &[&Name::new("_UID".into(), &ZERO), &crs]);
    }
}

/// ttyS0.
struct SerialPort;

impl Aml for SerialPort {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let crs = resources(vec![
            &IO::new(ports::SERIAL, ports::SERIAL, 1, 8),
            &Interrupt::new(true, true, false, false, gsi::SERIAL),
        ]);
        device(sink, "COM1", &EISAName::new("PNP0501"), &[&Name::new("_UID".into(), &ZERO), &crs]);
    }
}

struct PowerButton;

impl Aml for PowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        device(sink, "PWRB", &EISAName::new("PNP0C0C"), &[&Name::new("_UID".into(), &ZERO)]);
    }
}

/// The generic event device (ACPI 6.5, 5.6.9): an interrupt means that the power button was pressed, another that PCI
/// devices came or are to go.
struct EventDevice {
    hotplug: bool,
}

impl Aml for EventDevice {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let interrupt = |gsi| Interrupt::new(true, true, false, false, gsi);
        let (pressed, changed) = (interrupt(gsi::POWER_BUTTON), interrupt(gsi::HOTPLUG));
        let button = Path::new("\\_SB_.PWRB");
        let notify = Notify::new(&button, &BUTTON_PRESSED);
        let when_pressed = Equal::new(&Arg(0), &gsi::POWER_BUTTON);
        let when_pressed = If::new(&when_pressed, vec![&notify]);
        let when_changed = OnInterrupt(gsi::HOTPLUG);
        let (mut interrupts, mut handlers): (Vec<&dyn Aml>, Vec<&dyn Aml>) =
            (vec![&pressed], vec![&when_pressed]);
        if self.hotplug {
            interrupts.push(&changed);
            handlers.push(&when_changed);
        }
        let crs = resources(interrupts);
        let event = Method::new("_EVT".into(), 1, true, handlers);
        let uid = Name::new("_UID".into(), &ONE);
        device(sink, "GED_", &"ACPI0013", &[&uid, &crs, &event]);
    }
}

/// A 32-bit address from the map of the hole below 4 GiB.
#[expect(clippy::cast_possible_truncation, reason = "constants below 4 GiB")]
const fn window(address: u64) -> u32 {
    address as u32
}
