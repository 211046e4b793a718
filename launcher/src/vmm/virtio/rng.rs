//! Entropy (virtio 1.2, 5.4): fills whatever the guest makes available with the host's random bytes.

use rustix::rand::GetRandomFlags;

use super::device_config::DeviceConfig;
use super::segments::{Direction, Segments};
use super::{Cause, Device, Kind, Progress, Queues, Server};

const QUEUE_SIZE: u16 = 64;
/// Bytes given for one buffer at most; a driver takes what it gets.
const CHUNK: usize = 4096;
/// Buffers served before others have their turn.
const BATCH: usize = 16;

/// A source of entropy.
pub(crate) struct Rng {
    segments: Segments,
    bytes: Box<[u8; CHUNK]>,
}

impl Rng {
    /// One, as a device.
    pub(crate) fn device() -> Device {
        let rng = Self { segments: Segments::default(), bytes: Box::new([0; CHUNK]) };
        Device {
            kind: Kind { id: 4, class: 0xff_0000, name: "virtio-rng" },
            features: 0,
            ring_features: u64::MAX,
            queue_sizes: vec![QUEUE_SIZE],
            config: DeviceConfig::new(&[]),
            servers: vec![Box::new(rng)],
        }
    }
}

impl Server for Rng {
    fn serve(&mut self, _cause: Cause, queues: &mut Queues) -> Progress {
        let Some(queue) = queues.get(0) else { return Progress::Done };
        let Self { segments, bytes } = self;
        for _ in 0..BATCH {
            segments.clear();
            let Some(head) = queue.pop(Direction::Writable, segments) else {
                queue.flush();
                return if queue.wait() { Progress::More } else { Progress::Done };
            };
            let wanted = segments.length().min(CHUNK);
            // Fewer bytes than wanted are as good; none at all, and the guest asks again.
            let got = rustix::rand::getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            let written = segments.write(queue.ram(), 0, &bytes[..got]).map_or(0, |()| got);
            queue.push(head, written);
        }
        queue.flush();
        Progress::More
    }
}
