//! How many descriptors and threads a VMM needs, and its supervisor for it.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::vm::record::{Record, ToGuest};

/// Descriptors of a VMM without NICs of many queues, and as many again.
const DESCRIPTORS: u32 = 512;
/// For each queue pair: the tap's, what its thread waits on, two notifications and two interrupts; a backend is lent
/// copies of these, and of those of the driver before.
const PER_PAIR: u32 = 12;
/// Threads besides one per vCPU and one per queue pair: of disks, control queues, backends.
const THREADS: u32 = 64;
/// Descriptors of a supervisor whose VM's NICs have one queue each.
const OWN: u32 = 256;

/// What is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    /// By the VMM.
    pub(super) descriptors: u32,
    pub(super) threads: u32,
    /// By the supervisor, which opens the queues.
    pub(super) own_descriptors: u32,
}

/// For the VM of `record`.
pub(super) fn needs(record: &Record) -> Needs {
    let nics = record.plan.nics.iter().zip(&record.nics);
    let virtio =
        nics.filter(|(_, wired)| !matches!(wired.to_guest, ToGuest::Function(_) | ToGuest::Unplugged));
    sum(u8::from(record.plan.vcpus), virtio.map(|(nic, _)| u16::from(nic.pairs)))
}

fn sum(vcpus: u8, pairs: impl Iterator<Item = u16>) -> Needs {
    let pairs: u32 = pairs.map(u32::from).sum();
    Needs {
        descriptors: DESCRIPTORS + pairs * PER_PAIR,
        threads: THREADS + u32::from(vcpus) + pairs,
        own_descriptors: OWN + pairs,
    }
}

/// Lets this process have that many descriptors open, if it may not yet.
pub(super) fn raise_own(descriptors: u32) -> io::Result<()> {
    let wanted = u64::from(descriptors);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is without limit.
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let maximum = maximum.map(|maximum| maximum.max(wanted));
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_pair_counts() {
        assert_eq!(sum(1, [1].into_iter()), Needs { descriptors: 524, threads: 66, own_descriptors: 257 });
        let many = sum(254, [254; 4].into_iter());
        assert_eq!(
            many,
            Needs { descriptors: 512 + 1016 * 12, threads: 64 + 254 + 1016, own_descriptors: 1272 }
        );
    }

    #[test]
    fn a_limit_that_is_high_enough_stays() {
        let before = getrlimit(Resource::Nofile);
        raise_own(1).unwrap();
        assert_eq!(getrlimit(Resource::Nofile), before);
    }
}
