//! A guest that takes all the memory it can get: of the process's addresses, and of what guards them.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo};

use super::super::fake_vm::{BASIC, Vm};
use super::{Joined, link};

const PAGE: u64 = 4096;

/// Regions of these sizes, one behind the other, all of one file.
fn regions(file: &OwnedFd, sizes: impl Iterator<Item = u64>) -> Vec<VhostUserMemoryRegionInfo> {
    let mut next = 0;
    let region = |memory_size| {
        let guest_phys_addr = next;
        next += memory_size;
        let (userspace_addr, mmap_handle) = (guest_phys_addr, file.as_raw_fd());
        VhostUserMemoryRegionInfo {
            guest_phys_addr,
            memory_size,
            userspace_addr,
            mmap_offset: 0,
            mmap_handle,
        }
    };
    sizes.map(region).collect()
}

/// A memory file of that size, without a page.
fn memory(size: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    file
}

#[test]
fn a_guest_with_more_memory_than_there_is_leaves_room_for_others() {
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    // All that two can get of the process's addresses, found out by trying.
    let file = memory(1 << 46);
    let attempt = |socket: &Path, sizes: &[u64]| {
        let vm = Vm::connect(socket, BASIC);
        (0..2).for_each(|ring| _ = vm.frontend.get_vring_base(ring).unwrap());
        vm.frontend.set_mem_table(&regions(&file, sizes.iter().copied())).is_ok().then_some(vm)
    };
    let _hostile = ["a", "b"].map(|name| {
        let mut sizes = Vec::new();
        for bits in (18..47).rev().flat_map(|bits| [bits; 3]) {
            sizes.push(1 << bits);
            if attempt(&joined.socket(name), &sizes).is_none() {
                sizes.pop();
            }
        }
        attempt(&joined.socket(name), &sizes).unwrap()
    });
    let [mut carol, mut dave] = ["c", "d"].map(|name| Vm::connect(&joined.socket(name), BASIC));
    carol.send(1);
    dave.expect(1);
}

#[test]
fn guests_with_all_the_regions_they_may_have_leave_some_to_others() {
    const LINKS: usize = 20;
    let mut joined = Joined::new();
    let name = |number: usize, end: &str| format!("{end}{number}");
    let file = memory(PAGE);
    let table = regions(&file, std::iter::repeat_n(PAGE, 32));
    let mut hostile = Vec::new();
    for number in 0..LINKS {
        joined.daemon.add(&link(joined.directory.path(), &name(number, "c"), &name(number, "d"))).unwrap();
        for end in ["c", "d"] {
            let vm = Vm::connect(&joined.socket(&name(number, end)), BASIC);
            (0..2).for_each(|ring| _ = vm.frontend.get_vring_base(ring).unwrap());
            vm.frontend.set_mem_table(&table).unwrap();
            hostile.push(vm);
        }
    }
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
}
