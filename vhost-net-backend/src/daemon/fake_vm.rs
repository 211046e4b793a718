//! A VM for tests: a vhost-user frontend over a fake guest with one queue pair.

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::fake::{Driver, Guest, HIGH, MIB, USER, WRITE, frame};

/// VERSION_1 and protocol features; tests add to it.
pub(crate) const BASIC: u64 = 1 << 32 | 1 << 30;
/// Mergeable receive buffers.
pub(crate) const MERGEABLE: u64 = 1 << 15;

const ENTRIES: u16 = 64;
/// Where receive buffers are, 2 KiB each; sent frames are behind them.
pub(crate) const BUFFERS: u64 = HIGH;
const FRAMES: u64 = HIGH + MIB / 2;

pub(crate) struct Vm {
    pub(crate) guest: Guest,
    pub(crate) frontend: Frontend,
    pub(crate) rx: Driver,
    pub(crate) tx: Driver,
    /// Kick and call of both rings.
    events: [[EventFd; 2]; 2],
    pub(crate) stream: UnixStream,
}

impl Vm {
    /// Connects, negotiates `features`, and starts both rings, with 32 receive buffers.
    pub(crate) fn connect(socket: &Path, features: u64) -> Self {
        Self::over(UnixStream::connect(socket).unwrap(), features)
    }

    pub(crate) fn over(stream: UnixStream, features: u64) -> Self {
        let mut vm = Self::begin(stream, features);
        (0..2).for_each(|index| vm.start(index, 0));
        vm
    }

    /// Negotiates `features`, and starts no ring yet.
    pub(crate) fn begin(stream: UnixStream, features: u64) -> Self {
        let guest = Guest::new();
        let (mut rx, tx) = (Driver::new(&guest, 0, ENTRIES), Driver::new(&guest, 65_536, ENTRIES));
        for at in 0..32 {
            rx.add(&[(BUFFERS + at * 2048, 2048)], WRITE);
        }
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let events = [[event(), event()], [event(), event()]];
        let frontend = Frontend::from_stream(stream.try_clone().unwrap(), 2);
        let mut vm = Self { guest, frontend, rx, tx, events, stream };
        vm.negotiate(features);
        vm.share_memory();
        vm
    }

    fn negotiate(&mut self, features: u64) {
        let offered = self.frontend.get_features().unwrap();
        assert_eq!(features & !offered, 0, "offered {offered:#x}");
        self.frontend.set_owner().unwrap();
        let protocol = self.frontend.get_protocol_features().unwrap();
        self.frontend.set_protocol_features(protocol).unwrap();
        self.frontend.set_features(features).unwrap();
        // Every request is answered, so that a refusal is seen where it happens.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }

    pub(crate) fn share_memory(&self) {
        self.share_regions(0..).unwrap();
    }

    /// Tells the backend of some of the regions, in place of those it knows.
    pub(crate) fn share_regions(&self, which: std::ops::RangeFrom<usize>) -> vhost::Result<()> {
        self.frontend.set_mem_table(&self.regions()[which]).map(drop)
    }

    /// All of its memory.
    pub(crate) fn regions(&self) -> [VhostUserMemoryRegionInfo; 3] {
        [(0, 0), (MIB, MIB), (HIGH, 2 * MIB)].map(|(guest_phys_addr, mmap_offset)| {
            VhostUserMemoryRegionInfo {
                guest_phys_addr,
                memory_size: MIB,
                userspace_addr: guest_phys_addr + USER,
                mmap_offset,
                mmap_handle: self.guest.file.as_raw_fd(),
            }
        })
    }

    fn driver(&self, index: usize) -> &Driver {
        if index == 0 { &self.rx } else { &self.tx }
    }

    pub(crate) fn start(&mut self, index: usize, base: u16) {
        self.configure(index, base);
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// All that a ring needs, but for enabling it.
    pub(crate) fn configure(&mut self, index: usize, base: u16) {
        let [kick, call] = &self.events[index];
        self.frontend.set_vring_num(index, ENTRIES).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.set_addresses(index).unwrap();
        self.frontend.set_vring_call(index, call).unwrap();
        self.frontend.set_vring_kick(index, kick).unwrap();
    }

    pub(crate) fn set_addresses(&self, index: usize) -> vhost::Result<()> {
        let addresses = self.driver(index).addresses();
        let config = VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: addresses.descriptors,
            used_ring_addr: addresses.used,
            avail_ring_addr: addresses.available,
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config)
    }

    /// Sends a frame, header included, and kicks if the backend wants that.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        let place = FRAMES + u64::from(self.tx.available % ENTRIES) * 8192;
        self.guest.write(place, bytes);
        self.tx.add(&[(place, u32::try_from(bytes.len()).unwrap())], 0);
        self.kick();
    }

    pub(crate) fn kick(&self) {
        self.events[1][0].write(1).unwrap();
    }

    /// Sends a plain frame of 100 bytes.
    pub(crate) fn send(&mut self, seed: u8) {
        self.send_raw(&frame(100, seed));
    }

    /// Waits for the next frames; headers included.
    pub(crate) fn receive(&mut self) -> Vec<Vec<u8>> {
        loop {
            let used = self.rx.used();
            if !used.is_empty() {
                return used.into_iter().map(|(head, length)| self.take(head, length)).collect();
            }
            assert!(await_readable(&self.events[0][1]), "no frame arrived");
            // Another reader there is none; what it counted does not matter.
            let _count = self.events[0][1].read();
        }
    }

    fn take(&mut self, head: u16, length: u32) -> Vec<u8> {
        let place = BUFFERS + u64::from(head) * 2048;
        let bytes = self.guest.read(place, length as usize);
        self.rx.offer(head);
        bytes
    }

    /// Receives exactly the plain frame of this seed.
    pub(crate) fn expect(&mut self, seed: u8) {
        let frames: Vec<_> = self.receive().iter().map(|bytes| bytes[12..].to_vec()).collect();
        assert_eq!(frames, [frame(100, seed)[12..].to_vec()]);
    }

    /// Waits until the backend hangs up.
    pub(crate) fn await_hangup(&mut self) {
        self.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(self.stream.read(&mut [0; 64]).unwrap(), 0, "the backend did not hang up");
    }
}

/// Waits at most ten seconds.
fn await_readable(event: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(10_000, &mut [EpollEvent::default()]).unwrap() > 0
}
