//! The DSDT's part in hot-plug of PCI devices (ACPI 6.5, 6.3): a device for every slot that a function may come to or
//! leave, whose `_EJ0` lets go of it, and a method that tells the guest's driver what changed.
//!
//! As in every PC, the guest's own acpiphp driver does the rest. The registers are in [`hotplug`](crate::vmm::hotplug).

use acpi_tables::aml::{
    And, Arg, Device, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local,
    Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use crate::control::PciSlot;
use crate::vmm::legacy::ports;

/// Notifications (ACPI 6.5, table 5.165): look whether a device is there; let go of it.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// What stands inside of the PCI host bridge's device. Nothing if there are no slots.
pub(super) struct Slots<'a>(pub(super) &'a [PciSlot]);

impl Aml for Slots<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        if self.0.is_empty() {
            return;
        }
        registers(sink);
        for slot in self.0 {
            device(*slot, sink);
        }
        let mut changes: Vec<Box<dyn Aml>> =
            vec![Box::new(Read { register: "APPR", into: 0 }), Box::new(Read { register: "LEAV", into: 1 })];
        for slot in self.0 {
            changes.push(Box::new(NotifyIf { slot: *slot, local: 0, what: DEVICE_CHECK }));
            changes.push(Box::new(NotifyIf { slot: *slot, local: 1, what: EJECT_REQUEST }));
        }
        let changes = changes.iter().map(AsRef::as_ref).collect();
        Method::new("CHNG".into(), 0, true, changes).to_aml_bytes(sink);
    }
}

/// The part of the event device's method: calls `CHNG` if the event is of interrupt `gsi`.
pub(super) struct OnInterrupt(pub(super) u32);

impl Aml for OnInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let changed = MethodCall::new(Path::new("\\_SB_.PCI0.CHNG"), Vec::new());
        If::new(&Equal::new(&Arg(0), &self.0), vec![&changed]).to_aml_bytes(sink);
    }
}

fn registers(sink: &mut dyn AmlSink) {
    let (base, length) = (ports::APPEARED, ports::HOTPLUG_LAST - ports::APPEARED + 1);
    OpRegion::new("HTPL".into(), OpRegionSpace::SystemIO, &base, &length).to_aml_bytes(sink);
    let names = [*b"APPR", *b"LEAV", *b"EJCT"];
    Field::new(
        "HTPL".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        names.map(|name| FieldEntry::Named(name, 32)).to_vec(),
    )
    .to_aml_bytes(sink);
}

fn name(slot: PciSlot) -> String {
    format!("S{:03}", u8::from(slot))
}

fn mask(slot: PciSlot) -> u32 {
    1 << u8::from(slot)
}

fn device(slot: PciSlot, sink: &mut dyn AmlSink) {
    let number = u8::from(slot);
    let (address, sun) = (u32::from(number) << 16, u32::from(number));
    let mask = mask(slot);
    let register = Path::new("EJCT");
    let eject = Store::new(&register, &mask);
    let (address, sun) = (Name::new("_ADR".into(), &address), Name::new("_SUN".into(), &sun));
    let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
    Device::new(Path::new(&name(slot)), vec![&address, &sun, &eject]).to_aml_bytes(sink);
}

/// Copies a register into a local variable: reading it clears it.
struct Read {
    register: &'static str,
    into: u8,
}

impl Aml for Read {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        Store::new(&Local(self.into), &Path::new(self.register)).to_aml_bytes(sink);
    }
}

/// Notifies a slot if its bit is set in a local variable.
struct NotifyIf {
    slot: PciSlot,
    local: u8,
    what: u8,
}

impl Aml for NotifyIf {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (local, mask, path) = (Local(self.local), mask(self.slot), Path::new(&name(self.slot)));
        let set = And::new(&ZERO, &local, &mask);
        If::new(&set, vec![&Notify::new(&path, &self.what)]).to_aml_bytes(sink);
    }
}
