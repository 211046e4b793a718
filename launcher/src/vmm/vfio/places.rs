//! The places of the guest's bus that functions of the host are in, come to and leave. The main thread's.
//!
//! Functions that come together share a container, so a view of guest memory, which goes with the last of them. What a
//! function had of KVM and the kernel goes when it does: memory slots, interrupts, the group.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::DeviceFd;

use super::{Assigned, PassthroughError};
use crate::control::{HostFunction, Passthrough, PciSlot, Place};
use crate::vfio::{Container, Device};
use crate::vmm::VmmError;
use crate::vmm::bus::Bus;
use crate::vmm::machine::{Machine, failed};
use crate::vmm::pci::{BusFull, PciRoot, Wiring};

/// All places, and what is in them.
pub(in crate::vmm) struct Places {
    machine: Arc<Machine>,
    wiring: Arc<Wiring>,
    /// Tells KVM that there is DMA by devices. KVM has one of these.
    kvm: Arc<DeviceFd>,
    places: Vec<Kept>,
}

/// A slot that is kept for functions of the host.
struct Kept {
    slot: PciSlot,
    occupant: Option<Occupant>,
}

/// A function that is in its place. What the guest sees of it is on the bus.
struct Occupant {
    device: Arc<Device>,
    _group: Group,
    _container: Arc<Container>,
}

/// A function that is about to be.
struct Ready {
    place: usize,
    assigned: Assigned,
    occupant: Occupant,
}

impl Places {
    /// Keeps a slot for each of `places`.
    pub(in crate::vmm) fn new(
        places: &[Place],
        machine: &Arc<Machine>,
        wiring: &Arc<Wiring>,
        root: &mut PciRoot,
    ) -> Result<Self, VmmError> {
        let mut kvm = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, ..Default::default() };
        let kvm = machine.vm.create_device(&mut kvm).map_err(failed("KVM_CREATE_DEVICE"))?;
        let places = places.iter().map(|place| Ok(Kept { slot: root.keep(place.slot)?, occupant: None }));
        Ok(Self {
            machine: Arc::clone(machine),
            wiring: Arc::clone(wiring),
            kvm: Arc::new(kvm),
            places: places.collect::<Result<_, BusFull>>()?,
        })
    }

    /// The slots.
    pub(in crate::vmm) fn slots(&self) -> Vec<PciSlot> {
        self.places.iter().map(|place| place.slot).collect()
    }

    /// The slot of an occupied place; none if it is empty.
    pub(in crate::vmm) fn occupied(&self, place: usize) -> Result<Option<PciSlot>, PassthroughError> {
        let kept = self.places.get(place).ok_or(PassthroughError::NoPlace(place))?;
        Ok(kept.occupant.as_ref().map(|_| kept.slot))
    }

    /// Puts functions in their places before the guest runs, their windows where firmware would.
    pub(in crate::vmm) fn fill(
        &mut self,
        passthrough: Passthrough,
        root: &mut PciRoot,
    ) -> Result<(), VmmError> {
        let ready = self.prepare(passthrough, |size| root.assign_bar(size))?;
        self.settle(ready, root).map(drop)
    }

    /// Puts functions in their places while the guest runs, all or none, and says in which slots. The guest chooses
    /// where their windows are.
    pub(in crate::vmm) fn plug(
        &mut self,
        passthrough: Passthrough,
        bus: &Bus,
    ) -> Result<Vec<PciSlot>, VmmError> {
        // Pinning memory takes its time, so without the bus's lock.
        let ready = self.prepare(passthrough, |_size| Ok(0))?;
        self.settle(ready, &mut bus.pci())
    }

    /// Empties the place in `slot`, whose function is off the bus already; which that is.
    pub(in crate::vmm) fn empty(&mut self, slot: PciSlot) -> Option<usize> {
        let place = self.places.iter().position(|place| place.slot == slot)?;
        let occupant = self.places.get_mut(place)?.occupant.take()?;
        occupant.reset();
        Some(place)
    }

    /// Stops whatever the functions are at. The kernel does so too when the descriptors are closed, as they are if this
    /// process is killed.
    pub(in crate::vmm) fn reset(&self) {
        self.places.iter().filter_map(|place| place.occupant.as_ref()).for_each(Occupant::reset);
    }

    /// Lets functions reach the guest's memory, and makes what the guest sees of them.
    fn prepare(
        &self,
        passthrough: Passthrough,
        mut assign: impl FnMut(u32) -> Result<u32, BusFull>,
    ) -> Result<Vec<Ready>, VmmError> {
        let Passthrough { container, functions } = passthrough;
        let container = Container::from(container);
        container.map(&self.machine.ram).map_err(VmmError::Vfio)?;
        let container = Arc::new(container);
        let ready = functions.into_iter().map(|function| {
            let address = function.address;
            self.prepare_one(function, Arc::clone(&container), &mut assign)
                .map_err(|source| VmmError::Passthrough { address, source })
        });
        ready.collect()
    }

    fn prepare_one(
        &self,
        function: HostFunction,
        container: Arc<Container>,
        assign: impl FnMut(u32) -> Result<u32, BusFull>,
    ) -> Result<Ready, PassthroughError> {
        let HostFunction { address: _, group, device, place } = function;
        if let Some(slot) = self.occupied(place)? {
            return Err(BusFull::Taken(slot).into());
        }
        let group = Group::new(group, Arc::clone(&self.kvm))?;
        let device = Arc::new(Device::new(device)?);
        device.reset()?;
        let assigned = Assigned::new(Arc::clone(&device), &self.machine, &self.wiring, assign)?;
        let occupant = Occupant { device, _group: group, _container: container };
        Ok(Ready { place, assigned, occupant })
    }

    /// Puts them on the bus.
    fn settle(&mut self, ready: Vec<Ready>, root: &mut PciRoot) -> Result<Vec<PciSlot>, VmmError> {
        let mut slots = Vec::new();
        for Ready { place, assigned, occupant } in ready {
            let Some(kept) = self.places.get_mut(place) else { continue };
            root.add(Box::new(assigned), Some(kept.slot))?;
            kept.occupant = Some(occupant);
            slots.push(kept.slot);
        }
        Ok(slots)
    }
}

impl Occupant {
    fn reset(&self) {
        if let Err(error) = self.device.reset() {
            tracing::error!("{}", crate::chain(&error));
        }
    }
}

/// A group that KVM knows of.
struct Group {
    kvm: Arc<DeviceFd>,
    group: OwnedFd,
    /// Whether KVM learned of it from this value: of functions that share a group, from the first.
    is_first: bool,
}

impl Group {
    fn new(group: OwnedFd, kvm: Arc<DeviceFd>) -> Result<Self, PassthroughError> {
        match tell(&kvm, KVM_DEV_VFIO_FILE_ADD, &group) {
            Ok(()) => Ok(Self { kvm, group, is_first: true }),
            Err(error) if error.errno() == libc::EEXIST => Ok(Self { kvm, group, is_first: false }),
            Err(error) => Err(failed("KVM_DEV_VFIO_FILE_ADD")(error).into()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // KVM holds the group otherwise, and nobody else could open it.
        if self.is_first
            && let Err(error) = tell(&self.kvm, KVM_DEV_VFIO_FILE_DEL, &self.group)
        {
            tracing::error!("KVM_DEV_VFIO_FILE_DEL failed: {error}");
        }
    }
}

fn tell(kvm: &DeviceFd, what: u32, group: &OwnedFd) -> Result<(), kvm_ioctls::Error> {
    let fd = group.as_raw_fd();
    let attribute =
        kvm_device_attr { group: KVM_DEV_VFIO_FILE, attr: what.into(), addr: &raw const fd as u64, flags: 0 };
    kvm.set_device_attr(&attribute)
}
