//! A raw disk (virtio 1.2, 5.2) on a file or block device.
//!
//! Requests are served one after the other in the device's thread, through a bounce buffer. The cache is the host's:
//! what the guest must not lose it flushes. Discard and write zeroes are deliberately not offered.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};

use super::device_config::DeviceConfig;
use super::queue::VirtQueue;
use super::segments::{BadBuffer, Segments};
use super::{Cause, Device, Kind, Progress, Queues, Server};
use crate::control::{Disk, DiskSerial};

const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
/// Data buffers of a request: a full ring less header and status.
const SEGMENTS_MAX: u32 = 254;
/// Bytes of a request's header: type (4), reserved (4), sector (8).
const HEADER: usize = 16;
/// Bytes moved at once.
const BUFFER: usize = 128 * 1024;
/// Requests served before others have their turn.
const BATCH: usize = 32;

/// Why a disk could not be opened for a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockError {
    /// Its size cannot be found out.
    #[error("cannot find out the size of the disk")]
    Size(#[source] io::Error),
    /// A device needs at least one sector.
    #[error("the disk has {0} bytes, less than one sector of {SECTOR}")]
    TooSmall(u64),
}

/// A disk.
pub(crate) struct Block {
    file: File,
    read_only: bool,
    serial: DiskSerial,
    sectors: u64,
    readable: Segments,
    writable: Segments,
    buffer: Box<[u8]>,
}

/// A request could not be served; what the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Failed,
    Unsupported,
}

impl From<BadBuffer> for Refusal {
    fn from(_bad: BadBuffer) -> Self {
        Self::Failed
    }
}

impl Block {
    /// A disk of as many whole sectors as the file has now.
    pub(crate) fn new(disk: Disk) -> Result<Self, BlockError> {
        let Disk { file, read_only, serial } = disk;
        let mut file = File::from(file);
        let bytes = file.seek(SeekFrom::End(0)).map_err(BlockError::Size)?;
        let sectors = bytes / SECTOR;
        if sectors == 0 {
            return Err(BlockError::TooSmall(bytes));
        }
        let (readable, writable) = (Segments::default(), Segments::default());
        let buffer = vec![0; BUFFER].into();
        Ok(Self { file, read_only, serial, sectors, readable, writable, buffer })
    }

    /// The disk as a device.
    pub(crate) fn device(self) -> Device {
        let mut config = [0; 16];
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
        config[12..].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        Device {
            kind: Kind { id: 2, class: 0x01_8000, name: "virtio-blk" },
            features: read_only | 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX,
            ring_features: u64::MAX,
            queue_sizes: vec![QUEUE_SIZE],
            config: DeviceConfig::new(&config),
            servers: vec![Box::new(self)],
        }
    }

    /// Serves the request in `readable` and `writable`; returns how many bytes were written for the guest.
    fn serve_request(&mut self, queue: &VirtQueue) -> usize {
        // The last byte is the status; without it the driver cannot be told anything.
        let Some(data) = self.writable.length().checked_sub(1) else { return 0 };
        let (status, written) = match self.execute(queue, data) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        match self.writable.write(queue.ram(), data, &[status]) {
            Ok(()) if written == data => data + 1,
            Ok(()) => written,
            Err(BadBuffer) => 0,
        }
    }

    /// `data`: bytes for the guest in front of the status.
    fn execute(&mut self, queue: &VirtQueue, data: usize) -> Result<usize, Refusal> {
        let mut header = [0; HEADER];
        self.readable.read(queue.ram(), 0, &mut header)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                self.transfer(sector, data, |disk, at, from, length| {
                    disk.file.read_exact_at(&mut disk.buffer[..length], at).map_err(|_io| Refusal::Failed)?;
                    Ok(disk.writable.write(queue.ram(), from, &disk.buffer[..length])?)
                })?;
                Ok(data)
            }
            VIRTIO_BLK_T_OUT if self.read_only => Err(Refusal::Failed),
            VIRTIO_BLK_T_OUT => {
                self.transfer(sector, self.readable.length() - HEADER, |disk, at, from, length| {
                    disk.readable.read(queue.ram(), HEADER + from, &mut disk.buffer[..length])?;
                    disk.file.write_all_at(&disk.buffer[..length], at).map_err(|_io| Refusal::Failed)
                })?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => self.file.sync_data().map(|()| 0).map_err(|_io| Refusal::Failed),
            VIRTIO_BLK_T_GET_ID => self.identify(queue, data),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Calls `step` for each piece of `length` bytes at `sector`: place in the file, place in the data, size.
    fn transfer(
        &mut self,
        sector: u64,
        length: usize,
        mut step: impl FnMut(&mut Self, u64, usize, usize) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let length_sectors = length as u64 / SECTOR;
        let end = sector.checked_add(length_sectors).ok_or(Refusal::Failed)?;
        if !(length as u64).is_multiple_of(SECTOR) || end > self.sectors {
            return Err(Refusal::Failed);
        }
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(BUFFER);
            step(self, sector * SECTOR + done as u64, done, piece)?;
            done += piece;
        }
        Ok(())
    }

    fn identify(&self, queue: &VirtQueue, data: usize) -> Result<usize, Refusal> {
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        let serial = self.serial.as_str().as_bytes();
        id[..serial.len()].copy_from_slice(serial);
        let length = id.len().min(data);
        self.writable.write(queue.ram(), 0, &id[..length])?;
        Ok(length)
    }
}

impl Server for Block {
    fn serve(&mut self, _cause: Cause, queues: &mut Queues) -> Progress {
        let Some(queue) = queues.get(0) else { return Progress::Done };
        for _ in 0..BATCH {
            self.readable.clear();
            self.writable.clear();
            let Some(head) = queue.pop_both(&mut self.readable, &mut self.writable) else {
                queue.flush();
                return if queue.wait() { Progress::More } else { Progress::Done };
            };
            let written = self.serve_request(queue);
            queue.push(head, written);
        }
        queue.flush();
        Progress::More
    }
}

#[cfg(test)]
mod tests;
