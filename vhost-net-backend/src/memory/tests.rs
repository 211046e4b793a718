//! Tables of regions, and what may be one.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{
    GuestMemory, MAX_REGIONS, MapError, NewRegion, Readable, Region, TableError, copy, sigbus, write_pieces,
};

fn memfd(size: u64) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, size).unwrap();
    file
}

fn region(guest: u64, size: u64, user: u64, offset: u64) -> Arc<Region> {
    Arc::new(Region::map(NewRegion { guest, size, user, offset, file: memfd(0x20000) }).unwrap())
}

fn refusal(offset: u64, size: u64, file: OwnedFd) -> MapError {
    match Region::map(NewRegion { guest: 0, size, user: 0, offset, file }).unwrap_err() {
        TableError::Map { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn only_memory_files_that_are_long_enough_are_mapped() {
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(matches!(refusal(0, 4096, reader.into()), MapError::NotMemory));
    let device = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(matches!(refusal(0, 4096, device.into()), MapError::NotMemory));
    assert!(matches!(refusal(0, 0x20001, memfd(0x20000)), MapError::BehindEnd { .. }));
    assert!(matches!(refusal(0x10000, 0x10001, memfd(0x20000)), MapError::BehindEnd { .. }));
    assert!(matches!(refusal(u64::MAX, 2, memfd(0x20000)), MapError::BehindEnd { .. }));
    assert!(matches!(refusal(0, 0, memfd(0x20000)), MapError::Empty));
}

#[test]
fn regions_may_touch_but_not_overlap() {
    let table = |regions: Vec<Arc<Region>>| GuestMemory::new(regions).map(drop);
    assert!(table(vec![region(0, 0x1000, 0, 0), region(0x1000, 0x1000, 0x1000, 0)]).is_ok());
    let guest = table(vec![region(0, 0x1001, 0, 0), region(0x1000, 0x1000, 0x8000, 0)]);
    assert!(matches!(guest, Err(TableError::Overlap(0x1000))));
    let user = table(vec![region(0, 0x1000, 0, 0), region(0x8000, 0x1000, 0xfff, 0)]);
    assert!(matches!(user, Err(TableError::Overlap(0x8000))));
    let many = (0..=MAX_REGIONS as u64).map(|at| region(at << 20, 0x1000, at << 20, 0)).collect();
    assert!(matches!(table(many), Err(TableError::TooMany)));
}

#[test]
fn an_offset_in_the_file_need_not_be_a_page() {
    let file = memfd(0x20000);
    let copied = file.try_clone().unwrap();
    let region =
        Region::map(NewRegion { guest: 0x1000, size: 0x100, user: 0, offset: 0x1234, file }).unwrap();
    let memory = GuestMemory::new(vec![Arc::new(region)]).unwrap();
    assert_eq!(copy(Readable::own(b"here"), memory.writable(0x1010, 4).unwrap()), 4);
    let mut bytes = [0; 4];
    rustix::io::pread(&copied, &mut bytes, 0x1244).unwrap();
    assert_eq!(&bytes, b"here");
}

#[test]
fn copies_of_every_length_are_exact() {
    let memory = GuestMemory::new(vec![region(0, 0x1000, 0, 0)]).unwrap();
    for length in 0..700_u32 {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + length).to_le_bytes()[0]).collect();
        let behind = memory.writable(3 + u64::from(length), 1).unwrap();
        copy(Readable::own(&[0xee]), behind);
        if length > 0 {
            copy(Readable::own(&bytes), memory.writable(3, length).unwrap());
        }
        let mut back = vec![0; bytes.len() + 1];
        memory.readable(3, length + 1).unwrap().read(&mut back);
        assert_eq!((&back[..bytes.len()], back[bytes.len()]), (bytes.as_slice(), 0xee));
    }
}

#[test]
fn lookups_end_where_a_region_does() {
    let memory = GuestMemory::new(vec![region(0x1000, 0x1000, 0x9000, 0)]).unwrap();
    let length = |address, length| memory.readable(address, length).map(|bytes| bytes.len());
    assert_eq!(length(0x1000, 0x1000), Some(0x1000));
    assert_eq!(length(0x1fff, 0x1000), Some(1));
    assert_eq!(length(0x2000, 1), None);
    assert_eq!(length(0xfff, 10), None);
    assert!(memory.ring(0x9000, 0x1000).is_some());
    assert!(memory.ring(0x9001, 0x1000).is_none());
    assert!(memory.ring(u64::MAX, 2).is_none());
}

#[test]
fn memory_that_the_kernel_finds_missing_is_gone() {
    sigbus::install().unwrap();
    let file = memfd(0x20000);
    let copied = file.try_clone().unwrap();
    let region = NewRegion { guest: 0, size: 0x20000, user: 0, offset: 0, file };
    let memory = GuestMemory::new(vec![Arc::new(Region::map(region).unwrap())]).unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let write = || write_pieces(writer.as_fd(), b"", &[memory.readable(0x7ff0, 0x20).unwrap()]);
    assert_eq!((write().unwrap(), memory.is_gone()), (0x20, false));
    ftruncate(&copied, 0x8000).unwrap();
    let missing = write_pieces(writer.as_fd(), b"", &[memory.readable(0x8000, 1).unwrap()]);
    assert_eq!(missing.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    assert!(memory.is_gone());
}
