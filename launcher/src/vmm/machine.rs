//! The virtual machine as KVM sees it: memory slots, interrupt controllers, vCPUs not yet set up.
//!
//! Made once at start. Everything a guest can touch later is in other modules; this one only talks to KVM.
#![expect(
    unsafe_code,
    reason = "KVM takes a descriptor and memory mappings whose validity only we can vouch for"
)]

use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::memory::{GuestRam, layout};
use crate::control::VcpuCount;
use crate::vfio::Mapping;

/// What we ask of KVM, and the names under which its documentation lists it.
const REQUIRED: [(Cap, &str); 9] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
];

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// Not `/dev/kvm`, or a KVM of another age.
    #[error("the kvm descriptor answers with API version {found}; version {KVM_API_VERSION} is needed")]
    ApiVersion {
        /// What KVM_GET_API_VERSION returned; -1 if it failed.
        found: i32,
    },
    /// This host's KVM lacks something.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// More vCPUs than KVM has.
    #[error("{asked} vCPUs were asked for; this host's KVM has at most {available}")]
    TooManyVcpus {
        /// The configuration's number.
        asked: u8,
        /// KVM's.
        available: usize,
    },
    /// A request failed.
    #[error("{operation} failed")]
    Kvm {
        /// The ioctl's name.
        operation: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
}

/// Names the ioctl in an error.
pub(crate) fn failed(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { operation, source }
}

/// A machine with memory and interrupt controllers.
pub(crate) struct Machine {
    pub(crate) kvm: Kvm,
    pub(crate) vm: Arc<VmFd>,
    /// Kept here so that the mappings outlive the memory slots.
    pub(crate) ram: Arc<GuestRam>,
    slots: Arc<MemorySlots>,
}

/// The numbers of KVM's memory slots.
#[derive(Default)]
struct MemorySlots(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    next: u32,
    free: Vec<u32>,
}

impl MemorySlots {
    /// One that nothing uses.
    fn take(&self) -> u32 {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        })
    }

    fn give_back(&self, slot: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).free.push(slot);
    }
}

impl Machine {
    /// Creates the machine on an open `/dev/kvm`.
    pub(crate) fn new(kvm: OwnedFd, ram: GuestRam) -> Result<Self, MachineError> {
        // SAFETY: the descriptor is open and ours to give away.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        check(&kvm)?;
        let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let tss =
            usize::try_from(layout::KVM_TSS).map_err(|_wide| MachineError::Capability("a 64-bit host"))?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(tss).map_err(failed("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
        let machine = Self { kvm, vm: Arc::new(vm), ram: Arc::new(ram), slots: Arc::default() };
        machine.add_memory_slots()?;
        Ok(machine)
    }

    fn add_memory_slots(&self) -> Result<(), MachineError> {
        for region in self.ram.iter() {
            let region = kvm_userspace_memory_region {
                slot: self.slots.take(),
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a live mapping of that size; `self.ram` keeps it as long as `self.vm` lives,
            // and every thread that runs a vCPU or a device holds the RAM too.
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Makes a device's memory ready to be placed in the guest's.
    pub(crate) fn device_memory(&self, mapping: Mapping) -> DeviceMemory {
        let slots = Arc::clone(&self.slots);
        let slot = slots.take();
        DeviceMemory { vm: Arc::clone(&self.vm), slots, slot, mapping, address: None }
    }

    /// Creates the vCPUs; their index is their APIC identifier.
    pub(crate) fn create_vcpus(&self, count: VcpuCount) -> Result<Vec<VcpuFd>, MachineError> {
        let asked = u8::from(count);
        let available = self.kvm.get_max_vcpus();
        if usize::from(asked) > available {
            return Err(MachineError::TooManyVcpus { asked, available });
        }
        (0..asked).map(|index| self.vm.create_vcpu(index.into()).map_err(failed("KVM_CREATE_VCPU"))).collect()
    }
}

/// A device's memory that a guest reaches directly, without this process.
pub(crate) struct DeviceMemory {
    vm: Arc<VmFd>,
    slots: Arc<MemorySlots>,
    slot: u32,
    mapping: Mapping,
    /// Where it is in the guest, if anywhere.
    address: Option<u64>,
}

impl DeviceMemory {
    /// Moves it to this guest-physical address, or out of the guest. Fails where the guest has something else.
    pub(crate) fn place(&mut self, address: Option<u64>) -> Result<(), MachineError> {
        if address == self.address {
            return Ok(());
        }
        if let Some(old) = self.address.take() {
            // No length: the slot goes.
            self.set(old, 0)?;
        }
        if let Some(new) = address {
            self.set(new, self.mapping.length())?;
            self.address = address;
        }
        Ok(())
    }

    fn set(&self, guest_phys_addr: u64, memory_size: u64) -> Result<(), MachineError> {
        let userspace_addr = self.mapping.address();
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            flags: 0,
            guest_phys_addr,
            memory_size,
            userspace_addr,
        };
        // SAFETY: the mapping is live and of that size, and the slot, which is this value's alone, goes before it.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        match self.place(None) {
            Ok(()) => self.slots.give_back(self.slot),
            Err(error) => tracing::error!("a device's memory stays in the guest: {error}"),
        }
    }
}

fn check(kvm: &Kvm) -> Result<(), MachineError> {
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(MachineError::ApiVersion { found });
    }
    match REQUIRED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(MachineError::Capability(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::vmm::memory;

    /// A machine of 32 MiB for the tests of other modules, which need a real KVM.
    pub(crate) fn machine() -> Machine {
        let kvm = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .expect("these tests need /dev/kvm");
        Machine::new(
            kvm.into(),
            memory::map((32 << 20).try_into().unwrap(), memory::Users::Backends).unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_descriptor_that_is_not_kvm_is_refused() {
        let ram = memory::map((32 << 20).try_into().unwrap(), memory::Users::Own).unwrap();
        let error = Machine::new(tempfile::tempfile().unwrap().into(), ram).err().unwrap();
        assert!(matches!(error, MachineError::ApiVersion { found: -1 }), "{error}");
    }
}
