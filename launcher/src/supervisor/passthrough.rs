//! The PCI functions of a VM, opened for its VMM: at every start, and when one is plugged.

use std::fs;
use std::path::Path;

use net_types::PciAddress;
use vm_api::manifest::Binding;

use crate::control::{HostFunction, Passthrough, Place};
use crate::vfio::{self, Opened, OpenedDevice, VfioError};
use crate::vm::plan::PlannedNic;
use crate::vm::record::{Record, ToGuest};

/// Where functions may be in the guest: a place for each NIC that has or may have one.
pub(super) fn places(record: &Record) -> Vec<Place> {
    nics(record).map(|(_, nic)| Place { slot: nic.slot }).collect()
}

/// The place of NIC `index`, if it is one of those.
pub(super) fn place_of(record: &Record, index: usize) -> Option<usize> {
    nics(record).position(|(nic, _)| nic == index)
}

/// The NIC of a place.
pub(super) fn nic_of(record: &Record, place: usize) -> Option<usize> {
    nics(record).nth(place).map(|(index, _)| index)
}

fn nics(record: &Record) -> impl Iterator<Item = (usize, &PlannedNic)> {
    record.plan.nics.iter().enumerate().filter(|(_, nic)| matches!(nic.binding, Binding::Sriov(_)))
}

/// The function that NIC `index` has.
pub(super) fn function_of(record: &Record, index: usize) -> Option<PciAddress> {
    match record.nics.get(index)?.to_guest {
        ToGuest::Function(address) => Some(address),
        ToGuest::Tap { .. } | ToGuest::VhostUser { .. } | ToGuest::Unplugged => None,
    }
}

/// Opens those of `record`; none if it has none. The VMM, which is started by this process and after this, may pin the
/// guest's memory for them.
pub(super) fn open(record: &Record) -> Result<Option<Passthrough>, VfioError> {
    let functions = nics(record).enumerate();
    let functions: Vec<_> =
        functions.filter_map(|(place, (index, _))| Some((function_of(record, index)?, place))).collect();
    if functions.is_empty() {
        return Ok(None);
    }
    vfio::allow_locked_memory(record.plan.memory.into())?;
    open_in(&functions).map(Some)
}

/// Opens each of `functions` for its place.
pub(super) fn open_in(functions: &[(PciAddress, usize)]) -> Result<Passthrough, VfioError> {
    let addresses: Vec<_> = functions.iter().map(|(address, _)| *address).collect();
    let Opened { container, devices } = vfio::open(&addresses)?;
    let functions = functions.iter().zip(devices);
    let functions = functions
        .map(|((address, place), OpenedDevice { group, device })| HostFunction {
            address: *address,
            group,
            device,
            place: *place,
        })
        .collect();
    Ok(Passthrough { container, functions })
}

/// Another NIC of the VM whose function is in the IOMMU group of NIC `index`'s: neither can go alone.
pub(super) fn partner(record: &Record, index: usize) -> Option<&str> {
    let group = |nic| {
        let address = function_of(record, nic)?;
        fs::read_link(Path::new("/sys/bus/pci/devices").join(address.to_string()).join("iommu_group")).ok()
    };
    let ours = group(index)?;
    let mut others = nics(record).filter(|(other, _)| *other != index);
    others.find_map(|(other, nic)| (group(other)? == ours).then_some(nic.name.as_str()))
}
