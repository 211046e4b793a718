//! The limit on memory that a process may pin (RLIMIT_MEMLOCK), which devices need for all of a guest's memory.

use std::io;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion};

use crate::vmm::GuestRam;

/// The limit is too low.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} MiB of guest memory must be locked for its PCI devices, and this process may lock {}: start vm-launcher with \
     CAP_SYS_RESOURCE, or raise its limit (ulimit -l, LimitMEMLOCK= of a systemd unit)",
    needed >> 20,
    mebibytes(*limit)
)]
pub struct LockedMemory {
    /// Bytes.
    needed: u64,
    /// Bytes; none is no limit.
    limit: Option<u64>,
    source: io::Error,
}

impl LockedMemory {
    /// The kernel refused to pin `ram`.
    pub(super) fn too_little(ram: &GuestRam, source: io::Error) -> Self {
        let needed = ram.iter().map(GuestMemoryRegion::len).sum();
        Self { needed, limit: getrlimit(Resource::Memlock).current, source }
    }
}

fn mebibytes(limit: Option<u64>) -> String {
    limit.map_or("any amount".to_owned(), |bytes| format!("{} MiB", bytes >> 20))
}

/// Raises the limit of this process, and of those it starts from now on, to at least `needed` bytes.
pub(crate) fn allow(needed: u64) -> Result<(), LockedMemory> {
    let limit = getrlimit(Resource::Memlock);
    raise(limit, needed, |wanted| setrlimit(Resource::Memlock, wanted))
}

/// The same for a process that runs.
pub(crate) fn allow_of(process: Pid, needed: u64) -> Result<(), LockedMemory> {
    // prlimit sets and tells in one call; the limit that it is told to keep is looked up first, as a process of this
    // user's own has it: inherited from here.
    let limit = getrlimit(Resource::Memlock);
    raise(limit, needed, |wanted| prlimit(Some(process), Resource::Memlock, wanted).map(drop))
}

fn raise(
    limit: Rlimit,
    needed: u64,
    set: impl FnOnce(Rlimit) -> rustix::io::Result<()>,
) -> Result<(), LockedMemory> {
    let Rlimit { current, maximum } = limit;
    let at_least = |limit: Option<u64>| limit.map(|bytes| bytes.max(needed));
    let wanted = Rlimit { current: at_least(current), maximum: at_least(maximum) };
    if wanted.current == current {
        return Ok(());
    }
    set(wanted).map_err(|errno| LockedMemory { needed, limit: current, source: errno.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_how_much_and_what_to_do() {
        let limit = LockedMemory {
            needed: 4 << 30,
            limit: Some(8 << 20),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        let message = limit.to_string();
        assert!(message.starts_with("4096 MiB of guest memory must be locked"), "{message}");
        assert!(message.contains("may lock 8 MiB") && message.contains("LimitMEMLOCK="), "{message}");
    }

    #[test]
    fn a_limit_that_suffices_stays() {
        let before = getrlimit(Resource::Memlock);
        allow(before.current.unwrap_or(1 << 30).min(1 << 20)).unwrap();
        assert_eq!(getrlimit(Resource::Memlock), before);
    }
}
