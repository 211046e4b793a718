//! What fuzzers drive: a guest's rings, and a VMM's messages, made of any bytes.
//!
//! For `fuzz/` (libFuzzer) and for the unit tests, which run the inputs kept in `fuzz/corpus`. Whatever the input, the
//! process must live; each function also checks what must still hold after it.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "what fails here is the harness, and is to be seen"
)]
#![expect(clippy::disallowed_types, reason = "the harness of tests")]

use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use net_types::Mac;

use crate::counters::LinkCounters;
use crate::frame::Offloads;
use crate::gate::Policy;
use crate::link::{Link, NewLink};
use crate::memory::{DirtyLog, sigbus};
use crate::mirror::mirror;
use crate::observer::Observer;
use crate::poller::Poller;
use crate::port::{Port, Queue, VhostPort};
use crate::ring::fake::{ALL, Driver, Guest, HIGH, HOLE, MIB, WRITE};
use crate::ring::{RingFeatures, RxQueue, TxQueue};
use crate::spec::LinkSpec;
use crate::vhost::{PortHandle, VhostSettings};
use crate::worker::Worker;

/// Entries of the rings.
const ENTRIES: u16 = 16;

/// Takes an input apart; zeros when it has ended.
struct Input<'i>(&'i [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..front.len()].copy_from_slice(front);
        bytes
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    /// An address: often one near an edge of memory.
    fn address(&mut self) -> u64 {
        let (kind, near) = (self.byte(), u64::from(self.byte()));
        match kind % 8 {
            0 => u64::from_le_bytes(self.bytes()),
            1 => (MIB + near).wrapping_sub(128),
            2 => (HOLE + near).wrapping_sub(128),
            3 => (HIGH + near).wrapping_sub(128),
            4 => (HIGH + MIB + near).wrapping_sub(128),
            _ => HIGH + near * 64,
        }
    }

    fn length(&mut self) -> u32 {
        let kind = self.byte();
        let word = u32::from(self.word());
        match kind % 4 {
            0 => u32::from_le_bytes(self.bytes()),
            1 => word % 128,
            2 => word % 2048,
            _ => word,
        }
    }
}

/// Fills a ring's descriptors and its available ring.
fn fill(driver: &mut Driver, input: &mut Input<'_>) {
    for index in 0..ENTRIES {
        let (address, length) = (input.address(), input.length());
        let (flags, next) = (u16::from(input.byte() % 8), u16::from(input.byte() % 20));
        driver.set_descriptor(index, address, length, flags, next);
    }
    for _ in 0..input.byte() % 20 {
        driver.offer(u16::from(input.byte() % 20));
    }
    if input.byte().is_multiple_of(8) {
        driver.set_available(input.word());
    }
}

/// How a run of rings goes; of a byte behind the rings, so that there is none for an input that ends before.
#[derive(Clone, Copy)]
struct Course(u8);

impl Course {
    /// The receiver is honest: what the sender does must not be to its harm.
    fn receiver_is_honest(self) -> bool {
        self.0 & 1 != 0
    }

    fn truncates(self, guest: usize) -> bool {
        self.0 & 2 << guest != 0
    }

    fn logs(self) -> bool {
        self.0 & 8 != 0
    }

    fn watches(self) -> bool {
        self.0 & 16 != 0
    }

    fn limits(self) -> bool {
        self.0 & 32 != 0
    }

    /// Features of the receiver's ring.
    fn receives(self) -> RingFeatures {
        RingFeatures { indirect: self.0 & 64 == 0, event_index: self.0 & 128 != 0, header_length: 12 }
    }
}

/// Where an honest receiver's buffers are: each in a page of its own, of which the second half stays as it is.
const BUFFERS: u64 = HIGH;
const BUFFER: u32 = 2048;
const PAGE: u64 = 4096;

/// Gives a ring honest buffers, in place of what is in it.
fn offer_buffers(driver: &mut Driver) {
    driver.set_available(0);
    for index in 0..ENTRIES {
        driver.set_descriptor(index, BUFFERS + u64::from(index) * PAGE, BUFFER, WRITE, 0);
        driver.offer(index);
    }
}

/// Nothing was written beside an honest receiver's buffers, and each frame bears the address that its sender has to keep to.
fn check_received(driver: &mut Driver, source: Option<[u8; 6]>) {
    for index in 0..u64::from(ENTRIES) {
        let beside = driver.guest.read(BUFFERS + index * PAGE + u64::from(BUFFER), 2048);
        assert!(beside.iter().all(|byte| *byte == 0), "written beside buffer {index}");
    }
    let used = driver.used();
    let mut used = used.iter();
    while let Some((head, length)) = used.next() {
        let front = driver.guest.read(BUFFERS + u64::from(*head) * PAGE, 12 + 14);
        let buffers = u16::from_le_bytes([front[10], front[11]]);
        assert!(*length >= 12 + 14 && buffers >= 1, "{length} bytes in {buffers} buffers");
        assert!(source.is_none_or(|source| front[18..24] == source), "a frame from another address");
        for _ in 1..buffers {
            used.next().unwrap();
        }
    }
}

/// The end that watches frames for addresses; its thread is there once.
fn observer() -> &'static Observer {
    static OBSERVER: OnceLock<Observer> = OnceLock::new();
    OBSERVER.get_or_init(|| Observer::start().unwrap())
}

/// A log for some of a guest's pages: others are behind its end.
fn dirty_log() -> Arc<DirtyLog> {
    let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 128).unwrap();
    Arc::new(DirtyLog::map(&file, 0, 128).unwrap())
}

/// Two guests on one link; one's transmit ring and the other's receive ring are made of the input.
pub fn rings(data: &[u8]) {
    handle_sigbus();
    let mut input = Input(data);
    let bits = input.byte();
    let bit = |number: u8| bits & 1 << number != 0;
    let (alice, bob) = (Guest::new(), Guest::new());
    // Tables, headers and packets are made of the rest of the input.
    let mut content = [0; 512];
    content[..data.len().min(512)].copy_from_slice(&data[data.len().saturating_sub(512)..]);
    alice.write(HIGH, &content);
    let features =
        RingFeatures { indirect: bit(0), event_index: bit(1), header_length: if bit(2) { 12 } else { 10 } };
    let (mut sender, mut receiver) = (Driver::new(&alice, MIB, ENTRIES), Driver::new(&bob, MIB, ENTRIES));
    fill(&mut sender, &mut input);
    fill(&mut receiver, &mut input);
    let course = Course(input.byte());
    if course.receiver_is_honest() {
        offer_buffers(&mut receiver);
    }
    let log = || course.logs().then(dirty_log);
    let (tx, rx) = (sender.logged_ring(features, log()), receiver.logged_ring(course.receives(), log()));
    let mut ports = [VhostPort::new(1), VhostPort::new(1)];
    ports[0].start(1, Queue::Tx(TxQueue::new(tx, if bit(3) { ALL } else { Offloads::NONE })));
    ports[1].start(0, Queue::Rx(RxQueue::new(rx, if bit(4) { ALL } else { Offloads::NONE }, bit(5))));
    let source = bit(6).then_some([2, 0, 0, 0, 0, 7]);
    let rate = NonZeroU64::new(1_000_000).filter(|_| course.limits());
    let policy = Policy { source: source.map(Mac), bytes: rate, packets: rate };
    let counters = Arc::new(LinkCounters::default());
    let mut link = Link::new(NewLink {
        name: "fuzz".to_owned(),
        ports: ports.map(Port::Vhost),
        policies: [policy, Policy::default()],
        sentinels: [course.watches().then(|| observer().sentinel((1, 0))), None],
        counters: Arc::clone(&counters),
    });
    let (mirror, _viewer) = mirror(96);
    if course.watches() {
        link.capture(mirror);
    }
    let (poller, _caller) = Poller::new().unwrap();
    for round in 0..32 {
        link.turn(0, &poller);
        for (guest, place) in [(&alice, 0), (&bob, 1)] {
            if round == usize::from(bits >> 7) && course.truncates(place) {
                rustix::fs::ftruncate(&*guest.file, MIB + PAGE).unwrap();
            }
        }
    }
    // Nobody got more than was sent; an end that was closed said why.
    let passed = counters.directions[0].packets.get();
    assert!(passed <= u64::from(u16::MAX), "{passed} frames passed");
    let faults = counters.faults();
    assert!(faults.iter().all(|(_, _, count)| *count == 1), "an end was closed twice");
    if course.receiver_is_honest() && !course.truncates(1) {
        assert!(faults.iter().all(|(end, ..)| *end == 0), "an honest end was closed");
        check_received(&mut receiver, source);
    }
    for side in [0, 1] {
        link.unwatch_all(side, &poller);
    }
}

fn handle_sigbus() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| sigbus::install().unwrap());
}

/// A worker with one link, for sessions one after the other. At its other end is an honest guest.
struct Stage {
    port: PortHandle,
    counters: Arc<LinkCounters>,
    guest: Driver,
    sends: Driver,
    /// Frames that it has not got back.
    outstanding: usize,
    _worker: Worker,
}

impl Stage {
    fn new() -> Self {
        handle_sigbus();
        let worker = Worker::start(None).unwrap();
        let guest = Guest::new();
        let (mut receives, sends) = (Driver::new(&guest, MIB, ENTRIES), Driver::new(&guest, 0, ENTRIES));
        offer_buffers(&mut receives);
        let mut other = VhostPort::new(1);
        other.start(0, Queue::Rx(receives.rx(true)));
        other.start(1, Queue::Tx(sends.tx()));
        let counters = Arc::new(LinkCounters::default());
        let link = Link::new(NewLink {
            name: "fuzz".to_owned(),
            ports: [VhostPort::new(2), other].map(Port::Vhost),
            policies: [Policy::default(); 2],
            sentinels: [None, None],
            counters: Arc::clone(&counters),
        });
        let place = worker.handle().call(|links| links.add(link)).unwrap();
        let port = PortHandle::new(worker.handle().clone(), place, 0);
        Self { port, counters, guest: receives, sends, outstanding: 0, _worker: worker }
    }

    /// The honest guest sends some frames, and takes what it has received.
    fn act(&mut self) {
        for (head, _) in self.guest.used() {
            self.guest.offer(head);
        }
        let done = self.sends.used().len();
        self.outstanding -= done;
        while self.outstanding < usize::from(ENTRIES) / 2 {
            let place = BUFFERS + PAGE / 2;
            self.sends.add(&[(place, 12 + 60)], 0);
            self.outstanding += 1;
        }
        rustix::io::write(&*self.sends.kick, &1_u64.to_ne_bytes()).unwrap();
    }
}

fn stage() -> &'static Mutex<Stage> {
    static STAGE: OnceLock<Mutex<Stage>> = OnceLock::new();
    STAGE.get_or_init(|| Mutex::new(Stage::new()))
}

/// One connection of a VMM that sends the input: each message's request, flags and payload are the input's, its descriptors
/// memory files, eventfds and pipes as the input says.
pub fn messages(data: &[u8]) {
    let mut stage = stage().lock().unwrap();
    stage.act();
    let (ours, theirs) = UnixStream::pair().unwrap();
    send(&theirs, data);
    // What it answers is not read: there is room for it in the socket.
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let spec: LinkSpec = "vhost-user:/fuzz?queues=2&mtu=1500,tap:none".parse().unwrap();
    let crate::spec::EndKind::VhostUser(settings) = &spec.ends[0].kind else { return };
    let settings: VhostSettings = settings.clone();
    crate::vhost::serve(&stage.port, &settings, ours, |_why| {}).unwrap();
    // The worker still answers, and nothing of the session is left in it.
    let running = stage.port.worker.call(|links| links.get(0).map(|(link, _)| link.running())).unwrap();
    assert_eq!(running, Some([false, true]));
    assert!(stage.counters.faults().iter().all(|(end, ..)| *end == 0), "the honest end was closed");
}

/// Requests with payloads that are nearly right get further than bytes alone would.
pub(crate) fn send(stream: &UnixStream, data: &[u8]) {
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut input = Input(data);
    while !input.0.is_empty() {
        let (request, flags, descriptors) = (input.byte() % 48, input.byte(), input.byte());
        let length = usize::from(input.byte()).min(input.0.len());
        let (payload, rest) = input.0.split_at(length);
        input.0 = rest;
        let size = if flags & 0x80 == 0 { u32::try_from(length).unwrap() } else { u32::from(flags) * 99 };
        let mut message = Vec::new();
        message.extend(u32::from(request).to_le_bytes());
        message.extend((1 | u32::from(flags & 0x0c)).to_le_bytes());
        message.extend(size.to_le_bytes());
        message.extend(payload);
        let open = |kind: u8| match kind % 4 {
            0 => eventfd(0, EventfdFlags::empty()).unwrap(),
            1 => std::io::pipe().unwrap().0.into(),
            _ => {
                let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
                ftruncate(&file, 1 << 16).unwrap();
                // Rings in it hold more than zeros.
                rustix::io::pwrite(&file, data, 0).unwrap();
                file
            }
        };
        let files: Vec<_> = (0..descriptors & 3).map(|at| open(descriptors >> (2 + at))).collect();
        let files: Vec<_> = files.iter().map(std::os::fd::AsFd::as_fd).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let parts = [std::io::IoSlice::new(&message)];
        if sendmsg(stream, &parts, &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests;
