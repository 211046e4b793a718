use std::io::Write as _;

use super::*;
use crate::vmm::virtio::ring::{BUFFERS, Buffer, Driver, nonsense, only, readable, writable};

const STATUS: u64 = BUFFERS + 0x10_0000;

/// A disk of `sectors` sectors, each full of its own number.
fn disk(sectors: u8, read_only: bool) -> Block {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..sectors {
        file.write_all(&[sector; 512]).unwrap();
    }
    let serial = String::from("serial-1").try_into().unwrap();
    Block::new(Disk { file: file.into(), read_only, serial }).unwrap()
}

/// Sends one request with `data` between header and status; returns status and bytes written.
fn request(
    disk: &mut Block,
    driver: &mut Driver,
    queues: &mut Queues,
    kind: u32,
    sector: u64,
    data: &[Buffer],
) -> (u8, u32) {
    driver.write(BUFFERS, &[kind.to_le_bytes(), [0; 4]].concat());
    driver.write(BUFFERS + 8, &sector.to_le_bytes());
    driver.write(STATUS, &[0xee]);
    let chain = [&[readable(BUFFERS, 16)], data, &[writable(STATUS, 1)]].concat();
    driver.offer(&chain);
    disk.serve(Cause::Queue(0), queues);
    let [(_, written)] = driver.used()[..] else { panic!("one request, one answer") };
    (driver.read(STATUS, 1)[0], written)
}

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn sectors_are_read_into_any_buffers() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(8, true), only(queue));
    let at = BUFFERS + 0x1000;
    let data = [writable(at, 100), writable(at + 100, 924)];
    assert_eq!(request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_IN, 3, &data), (OK, 1025));
    assert_eq!(driver.read(at, 1024), [[3; 512], [4; 512]].concat());
}

#[test]
fn what_is_written_is_read_back() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(8, false), only(queue));
    let at = BUFFERS + 0x1000;
    driver.write(at, &[0x5a; 512]);
    assert_eq!(
        request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_OUT, 7, &[readable(at, 512)]),
        (OK, 1)
    );
    assert_eq!(request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    driver.write(at, &[0; 512]);
    assert_eq!(
        request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_IN, 7, &[writable(at, 512)]),
        (OK, 513)
    );
    assert_eq!(driver.read(at, 512), [0x5a; 512]);
}

#[test]
fn a_request_larger_than_the_buffer_is_served_whole() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(255, false), only(queue));
    disk.file.set_len(1 << 20).unwrap();
    disk.sectors = 2048;
    let at = BUFFERS + 0x20_0000;
    let data = [writable(at, 1 << 20)];
    assert_eq!(request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_IN, 0, &data), (OK, (1 << 20) + 1));
    assert_eq!(driver.read(at + 254 * 512, 512), [254; 512]);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(8, true), only(queue));
    let data = [readable(BUFFERS + 0x1000, 512)];
    assert_eq!(request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_OUT, 0, &data).0, FAILED);
    let mut sector = [9; 512];
    disk.file.read_exact_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [0; 512]);
    assert_ne!(disk.device().features & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn the_serial_number_is_told() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(1, true), only(queue));
    let at = BUFFERS + 0x1000;
    let status = request(&mut disk, &mut driver, &mut queues, VIRTIO_BLK_T_GET_ID, 0, &[writable(at, 20)]).0;
    assert_eq!((status, driver.read(at, 9)), (OK, b"serial-1\0".to_vec()));
}

#[test]
fn requests_beyond_the_disk_or_memory_fail() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(8, false), only(queue));
    let at = BUFFERS + 0x1000;
    let outside = crate::vmm::virtio::ring::END - 256;
    for (kind, sector, data) in [
        (VIRTIO_BLK_T_IN, 8, writable(at, 512)),
        (VIRTIO_BLK_T_IN, 7, writable(at, 1024)),
        (VIRTIO_BLK_T_IN, u64::MAX, writable(at, 512)),
        (VIRTIO_BLK_T_OUT, u64::MAX / 512 + 1, readable(at, 512)),
        (VIRTIO_BLK_T_IN, 0, writable(at, 511)),
        (VIRTIO_BLK_T_IN, 0, writable(outside, 512)),
        (VIRTIO_BLK_T_OUT, 0, readable(outside, 512)),
        (VIRTIO_BLK_T_OUT, 0, readable(at, 1 << 31)),
    ] {
        assert_eq!(
            request(&mut disk, &mut driver, &mut queues, kind, sector, &[data]).0,
            FAILED,
            "{data:x?}"
        );
    }
    assert_eq!(request(&mut disk, &mut driver, &mut queues, 77, 0, &[]).0, UNSUPPORTED);
}

#[test]
fn a_request_without_header_or_status_is_handed_back() {
    let (mut driver, queue) = Driver::new();
    let (mut disk, mut queues) = (disk(8, false), only(queue));
    driver.offer(&[readable(BUFFERS, 16)]);
    driver.offer(&[readable(BUFFERS, 15), writable(STATUS, 1)]);
    driver.offer(&[writable(STATUS, 1)]);
    disk.serve(Cause::Queue(0), &mut queues);
    assert_eq!(driver.used().len(), 3);
    assert_eq!(driver.read(STATUS, 1), [FAILED]);
}

#[test]
fn nonsense_does_no_harm() {
    for (_name, write) in nonsense() {
        let (mut driver, queue) = Driver::new();
        let (mut disk, mut queues) = (disk(8, false), only(queue));
        write(&mut driver);
        for _ in 0..10 {
            disk.serve(Cause::Queue(0), &mut queues);
        }
    }
}

#[test]
fn a_disk_without_a_sector_is_refused() {
    let serial = String::new().try_into().unwrap();
    let file = tempfile::tempfile().unwrap();
    let result = Block::new(Disk { file: file.into(), read_only: true, serial });
    assert!(matches!(result, Err(BlockError::TooSmall(0))));
}
