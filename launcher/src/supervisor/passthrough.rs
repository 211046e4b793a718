//! The PCI functions of a VM, opened for its VMM at every start.

use crate::control::{HostFunction, Passthrough};
use crate::vfio::{self, Opened, OpenedDevice, VfioError};
use crate::vm::record::{Record, ToGuest};

/// Opens those of `record`; none if it has none. The VMM, which is started by this process and after this, may pin the
/// guest's memory for them.
pub(super) fn open(record: &Record) -> Result<Option<Passthrough>, VfioError> {
    let nics = record.plan.nics.iter().zip(&record.nics);
    let functions: Vec<_> = nics
        .filter_map(|(nic, wired)| match wired.to_guest {
            ToGuest::Function(address) => Some((address, nic.slot)),
            ToGuest::Tap { .. } => None,
        })
        .collect();
    if functions.is_empty() {
        return Ok(None);
    }
    vfio::allow_locked_memory(record.plan.memory.into())?;
    let addresses: Vec<_> = functions.iter().map(|(address, _)| *address).collect();
    let Opened { container, devices } = vfio::open(&addresses)?;
    let functions = functions.into_iter().zip(devices);
    let functions = functions
        .map(|((address, slot), OpenedDevice { group, device })| HostFunction {
            address,
            group,
            device,
            slot,
        })
        .collect();
    Ok(Some(Passthrough { container, functions }))
}
