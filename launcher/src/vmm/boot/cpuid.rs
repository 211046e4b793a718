//! What CPUID tells the guest: what KVM supports, with the topology of one socket of single-threaded cores.
//!
//! Leaves: Intel SDM 2A, "CPUID"; AMD APM 3, appendix E.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::control::VcpuCount;
use crate::vmm::machine::{MachineError, failed};

const FEATURE_ECX_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_ECX_HYPERVISOR: u32 = 1 << 31;
const FEATURE_EDX_HTT: u32 = 1 << 28;
const TOPOLOGY_LEVEL_THREAD: u32 = 1;
const TOPOLOGY_LEVEL_CORE: u32 = 2;

/// What KVM can show any guest on this host.
pub(crate) fn supported(kvm: &Kvm) -> Result<CpuId, MachineError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))
}

/// Gives vCPU `index` of `count` its CPUID.
pub(crate) fn set(vcpu: &VcpuFd, supported: &CpuId, index: u8, count: VcpuCount) -> Result<(), MachineError> {
    let topology = Topology { apic_id: index.into(), count: u8::from(count).into() };
    let entries: Vec<_> = topology.apply(supported.as_slice());
    let cpuid =
        CpuId::from_entries(&entries).map_err(|_size| MachineError::Capability("room for its own CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))
}

struct Topology {
    apic_id: u32,
    count: u32,
}

impl Topology {
    fn apply(&self, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let has_leaf_b = supported.iter().any(|entry| entry.function == 0xb);
        let mut entries: Vec<_> = supported
            .iter()
            // Topology leaves are written anew; 0x1f is an extension of 0xb that we have no use for.
            .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
            .map(|entry| self.adapt(*entry))
            .collect();
        if has_leaf_b {
            entries.extend([self.level(0), self.level(1), self.level(2)]);
        }
        entries
    }

    fn adapt(&self, mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | self.count << 16 | self.apic_id << 24;
                entry.ecx |= FEATURE_ECX_TSC_DEADLINE | FEATURE_ECX_HYPERVISOR;
                if self.count > 1 {
                    entry.edx |= FEATURE_EDX_HTT;
                }
            }
            // Caches: the last level (3) is shared by all, the others are a core's own.
            0x4 if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 0x7 == 3 { self.count - 1 } else { 0 };
                let cores = (self.count - 1).min(0x3f);
                entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14 | cores << 26;
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 0x7 == 3 { self.count - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing.min(0xfff) << 14;
            }
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | self.id_bits() << 12 | (self.count - 1),
            // One thread a core, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (self.apic_id, self.apic_id & 0xff, 0),
            _ => {}
        }
        entry
    }

    /// Sub-leaf `level` of leaf 0xb: threads (always one), cores, end of list.
    fn level(&self, level: u32) -> kvm_cpuid_entry2 {
        let (shift, count, kind) = match level {
            0 => (0, 1, TOPOLOGY_LEVEL_THREAD),
            1 => (self.id_bits(), self.count, TOPOLOGY_LEVEL_CORE),
            _ => (0, 0, 0),
        };
        kvm_cpuid_entry2 {
            function: 0xb,
            index: level,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: level | kind << 8,
            edx: self.apic_id,
            ..Default::default()
        }
    }

    /// How many bits of an APIC identifier tell cores apart.
    fn id_bits(&self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ..Default::default() }
    }

    #[test]
    fn every_vcpu_has_its_own_identity_in_one_socket() {
        let topology = Topology { apic_id: 2, count: 3 };
        let supported = [leaf(0x1, 0), leaf(0xb, 0), leaf(0x1f, 0), leaf(0x8000_0008, 0x3030)];
        let entries = topology.apply(&supported);
        let find =
            |function, index| entries.iter().find(|e| (e.function, e.index) == (function, index)).unwrap();
        assert_eq!(find(0x1, 0).ebx, 2 << 24 | 3 << 16);
        assert_ne!(find(0x1, 0).ecx & FEATURE_ECX_HYPERVISOR, 0);
        let (threads, cores) = (find(0xb, 0), find(0xb, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 2));
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!((find(0x8000_0008, 0).eax, find(0x8000_0008, 0).ecx), (0x3030, 2 << 12 | 2));
        assert!(entries.iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn only_the_last_cache_level_is_shared() {
        let topology = Topology { apic_id: 0, count: 4 };
        let (first, last) = (1 << 5 | 1, 3 << 5 | 3);
        let entries = topology.apply(&[leaf(0x4, first), leaf(0x4, last), leaf(0x4, 0)]);
        assert_eq!(entries[0].eax, first | 3 << 26);
        assert_eq!(entries[1].eax, last | 3 << 14 | 3 << 26);
        assert_eq!(entries[2].eax, 0);
    }
}
