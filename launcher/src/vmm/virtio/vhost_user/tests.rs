//! The device against backends that answer, lie, stall and go: a thread at the other end of a socket pair.

mod failing;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use super::connection::{Connection, Request};
use super::*;
use crate::control::Event;
use crate::vmm::memory::{self, Users};

const LIMIT: Duration = Duration::from_secs(60);
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 15 | 1;
/// A message as it arrived: its request and its body.
type Message = (u32, Vec<u8>);

/// Answers what is asked, until `mute` is asked; tells every message.
fn backend(mute: Option<Request>) -> (OwnedFd, Receiver<Message>) {
    slow_backend(mute, Duration::ZERO)
}

/// The same, and takes its time for each answer.
fn slow_backend(mute: Option<Request>, pause: Duration) -> (OwnedFd, Receiver<Message>) {
    answering(move |request, honest| {
        if mute.is_some_and(|mute| mute as u32 == request) {
            return Answer::GoOn(Vec::new());
        }
        if !honest.is_empty() {
            std::thread::sleep(pause);
        }
        Answer::GoOn(honest)
    })
}

/// What a backend sends, and whether it goes on then.
enum Answer {
    GoOn(Vec<u8>),
    HangUp(Vec<u8>),
}

/// A backend that hears each request with what an honest one would send, which may be nothing; tells every message.
fn answering(
    mut answer: impl FnMut(u32, Vec<u8>) -> Answer + Send + 'static,
) -> (OwnedFd, Receiver<Message>) {
    let (ours, theirs) = pair();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut socket = ours;
        let mut head = [0; 12];
        while socket.read_exact(&mut head).is_ok() {
            let [request, flags, length] =
                [0, 4, 8].map(|at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()));
            let mut body = vec![0; length as usize];
            socket.read_exact(&mut body).unwrap();
            let honest = match request {
                1 => Some(FEATURES),
                15 => Some(1 << 3 | 1),
                17 => Some(2),
                11 => Some(u64::from(body[0]) | 7 << 32),
                _ => (flags & 8 != 0).then_some(0),
            };
            if tell.send((request, body)).is_err() {
                return;
            }
            let honest = honest.map(|honest| reply(request, honest));
            let (bytes, goes_on) = match answer(request, honest.unwrap_or_default()) {
                Answer::GoOn(bytes) => (bytes, true),
                Answer::HangUp(bytes) => (bytes, false),
            };
            // The other side may have had enough.
            if socket.write_all(&bytes).is_err() || !goes_on {
                return;
            }
        }
    });
    (theirs.into(), told)
}

/// A reply as it should be.
fn reply(request: u32, answer: u64) -> Vec<u8> {
    let words = [request, 5, 8].into_iter().flat_map(|word| word.to_le_bytes());
    words.chain(answer.to_le_bytes()).collect()
}

/// A socket pair; the second end has the time limits of one that the supervisor made, only shorter.
fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    (ours, theirs)
}

struct Bench {
    device: Device,
    mailbox: Arc<Mailbox>,
    ram: Arc<GuestRam>,
    outbox: Arc<Outbox>,
}

impl Bench {
    fn new(socket: Option<OwnedFd>) -> Self {
        Self::with(socket, QueuePairs::ONE, LIMIT)
    }

    fn with(socket: Option<OwnedFd>, pairs: QueuePairs, patience: Duration) -> Self {
        let ram = Arc::new(memory::map((32 << 20).try_into().unwrap(), Users::Backends).unwrap());
        let outbox = Arc::new(Outbox::new().unwrap());
        let settings = VhostSettings {
            nic: 3,
            socket,
            pairs,
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: 1500.try_into().unwrap(),
            patience,
        };
        let end = End::new().unwrap();
        let (device, mailbox) = device(settings, Arc::clone(&ram), Arc::clone(&outbox), end).unwrap();
        Self { device, mailbox, ram, outbox }
    }

    /// The driver becomes ready, with rings one after the other from 1 MiB on.
    fn activate(&mut self) {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = |index: usize| {
            let at = 0x10_0000 + 0x1_0000 * index as u64;
            let (descriptors, available, used) = (at, at + 0x4000, at + 0x8000);
            LentRing { index, size: 256, descriptors, available, used, kick: event(), call: event() }
        };
        let features = 1 << 32 | 1 << 15 | 1 << 5 | self.device.features & 1 << VIRTIO_NET_F_MQ;
        let rings = self.lender().queues(features).map(ring).collect();
        self.lender().lend(rings);
        self.lender().activate(features);
    }

    /// What lends the rings.
    fn lender(&mut self) -> &mut dyn Server {
        self.device.servers[0].as_mut()
    }

    /// The next event.
    fn event(&self) -> Event {
        let mut events = Vec::new();
        eventually(|| {
            events.extend(self.outbox.take());
            !events.is_empty()
        });
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    fn link_is_up(&self) -> bool {
        let mut status = [0; 2];
        self.device.config.read(STATUS as u64, &mut status);
        u16::from_le_bytes(status) == LINK_UP
    }
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it does not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a message of this kind; returns its body.
fn heard(messages: &Receiver<Message>, wanted: Request) -> Vec<u8> {
    loop {
        let (request, body) = messages.recv_timeout(LIMIT).unwrap();
        if request == wanted as u32 {
            return body;
        }
    }
}

#[test]
fn what_is_offered_is_what_both_know() {
    let (socket, _messages) = backend(None);
    let bench = Bench::new(Some(socket));
    assert_eq!(bench.device.features, 1 << 32 | 1 << 15 | 1 | bits(&OWN));
    assert_eq!(bench.device.ring_features & bits(&[VIRTIO_RING_F_EVENT_IDX]), 0);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    assert!(bench.link_is_up());
}

#[test]
fn rings_go_on_where_a_lost_backend_left_them() {
    let (socket, first) = backend(None);
    let hangs_up = UnixStream::from(socket.try_clone().unwrap());
    let mut bench = Bench::new(Some(socket));
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    bench.activate();
    assert_eq!(heard(&first, Request::SET_VRING_BASE), [0; 8]);
    eventually(|| !bench.mailbox.is_behind());
    // It has given back five buffers of the second ring, and dies.
    bench.ram.write_obj(5_u16, GuestAddress(0x11_8002)).unwrap();
    hangs_up.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(bench.event(), Event::BackendLost { nic: 3, .. }));
    assert!(!bench.link_is_up());

    let (socket, second) = backend(None);
    bench.mailbox.connection(socket);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    assert!(bench.link_is_up());
    let bases = |messages: &Receiver<Message>| [0; 2].map(|_| heard(messages, Request::SET_VRING_BASE));
    assert_eq!(bases(&second), [[0; 8], [1, 0, 0, 0, 5, 0, 0, 0]], "as guest memory has it");

    // One that is only replaced says itself how far it came.
    let (socket, third) = backend(None);
    bench.mailbox.connection(socket);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    assert_eq!(bases(&third), [[0, 0, 0, 0, 7, 0, 0, 0], [1, 0, 0, 0, 7, 0, 0, 0]]);
}

#[test]
fn a_reset_takes_the_rings_back() {
    let (socket, messages) = backend(None);
    let mut bench = Bench::new(Some(socket));
    bench.activate();
    heard(&messages, Request::SET_VRING_ENABLE);
    bench.lender().reset();
    assert_eq!(heard(&messages, Request::GET_VRING_BASE), [0; 8]);
    assert_eq!(heard(&messages, Request::GET_VRING_BASE)[0], 1);
    eventually(|| !bench.mailbox.is_behind());
    bench.activate();
    assert_eq!(heard(&messages, Request::SET_VRING_BASE), [0; 8], "a new driver begins at the beginning");
}

#[test]
fn a_backend_that_stalls_costs_the_link_and_no_more() {
    let (socket, messages) = backend(Some(Request::GET_VRING_BASE));
    let mut bench = Bench::new(Some(socket));
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    bench.activate();
    heard(&messages, Request::SET_VRING_ENABLE);
    bench.lender().reset();
    match bench.event() {
        Event::BackendLost { nic: 3, reason } => {
            assert!(reason.starts_with("GET_VRING_BASE: the backend does not answer"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    eventually(|| !bench.mailbox.is_behind());
    assert!(!bench.link_is_up());
}

#[test]
fn without_a_backend_everything_is_offered_and_there_is_no_link() {
    let mut bench = Bench::new(None);
    assert_eq!(bench.device.ring_features, bits(&SHARED));
    assert!(!bench.link_is_up());
    bench.activate();
    bench.lender().reset();
    eventually(|| !bench.mailbox.is_behind());
    assert_eq!(bench.outbox.take(), []);
}

#[test]
fn a_backend_that_lacks_what_the_guest_uses_is_refused() {
    let mut bench = Bench::new(None);
    bench.lender().lend(Vec::new());
    bench.lender().activate(1 << 32 | 1 << 11);
    let (socket, _messages) = backend(None);
    bench.mailbox.connection(socket);
    match bench.event() {
        Event::BackendLost { reason, .. } => assert!(reason.ends_with("lacks: 0x800"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(!bench.link_is_up());
}

/// The next word on each of the rings: which are on.
fn enabled<const N: usize>(messages: &Receiver<Message>) -> [(u8, u8); N] {
    [0; N].map(|_| {
        let body = heard(messages, Request::SET_VRING_ENABLE);
        (body[0], body[4])
    })
}

#[test]
fn the_backend_serves_as_many_pairs_as_the_guest_uses() {
    let (socket, messages) = backend(None);
    let hangs_up = UnixStream::from(socket.try_clone().unwrap());
    let mut bench = Bench::with(Some(socket), 2.try_into().unwrap(), LIMIT);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    assert_eq!(bench.device.queue_sizes, [256, 256, 256, 256, 64]);
    assert_eq!(bench.device.features & control_queue::features(2.try_into().unwrap()), 1 << 17 | 1 << 22);
    bench.activate();
    assert_eq!(enabled(&messages), [(0, 1), (1, 1), (2, 0), (3, 0)], "one, until more are asked for");
    let mut pairs = Pairs(Arc::clone(&bench.mailbox));
    assert_eq!(pairs.follow(2.try_into().unwrap()), Verdict::Pending);
    assert_eq!(enabled(&messages), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    eventually(|| pairs.verdict() == Verdict::Done);

    // Another backend is told the same; without one, the guest's wish is kept for the next.
    hangs_up.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(bench.event(), Event::BackendLost { nic: 3, .. }));
    let (socket, messages) = backend(None);
    bench.mailbox.connection(socket);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    assert_eq!(enabled(&messages), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    pairs.follow(QueuePairs::ONE);
    assert_eq!(enabled(&messages), [(0, 1), (1, 1), (2, 0), (3, 0)]);
    // A driver that accepts commands but not several pairs has its third ring for these: it is not lent.
    assert_eq!(bench.lender().queues(1 << 32 | 1 << 17), 0..2);
}

#[test]
fn a_backend_of_fewer_pairs_than_the_guest_has_is_refused() {
    let (socket, _messages) = backend(None);
    let bench = Bench::with(Some(socket), 3.try_into().unwrap(), LIMIT);
    match bench.event() {
        Event::BackendLost { reason, .. } => {
            assert_eq!(reason, "the backend has 2 queue pairs; the guest has 3");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_backend_that_is_slow_at_every_answer_has_an_end_too() {
    let (socket, messages) = slow_backend(None, Duration::from_millis(30));
    let mut bench = Bench::with(Some(socket), 2.try_into().unwrap(), Duration::from_millis(150));
    // Six answers to begin with would be in time, more than a dozen for four rings are not.
    bench.activate();
    match bench.event() {
        Event::BackendLost { reason, .. } => assert!(reason.contains("does not answer"), "{reason}"),
        Event::BackendConnected { .. } => {
            assert!(matches!(bench.event(), Event::BackendLost { .. }));
        }
        other => panic!("{other:?}"),
    }
    eventually(|| !bench.mailbox.is_behind());
    drop(messages);
}

#[test]
fn a_refusal_is_told_and_descriptors_nobody_asked_for_are_closed() {
    let (mut ours, theirs) = pair();
    ours.write_all(&reply(Request::SET_OWNER as u32, 22)).unwrap();
    let mut connection = Connection::new(theirs.into(), LIMIT);
    connection.acknowledged = true;
    let refused = connection.tell(Request::SET_OWNER, &[], &[]).unwrap_err().to_string();
    assert_eq!(refused, "SET_OWNER: the backend refuses: 22");

    let (mut reader, writer) = io::pipe().unwrap();
    let fds = vec![writer.as_raw_fd(); 3];
    ours.send_with_fds(&[&reply(Request::GET_FEATURES as u32, FEATURES)[..]], &fds).unwrap();
    drop(writer);
    assert_eq!(connection.ask(Request::GET_FEATURES, &[]).unwrap(), FEATURES.to_le_bytes());
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "no copy of the writing end is left");
}

#[test]
fn a_backend_that_lacks_what_every_backend_needs_is_refused() {
    let (mut ours, theirs) = pair();
    ours.write_all(&reply(Request::GET_FEATURES as u32, 0)).unwrap();
    let bench = Bench::new(Some(theirs.into()));
    match bench.event() {
        Event::BackendLost { reason, .. } => {
            assert_eq!(reason, "the backend lacks features that every backend needs: 0x140000000");
        }
        other => panic!("{other:?}"),
    }
    assert!(!bench.link_is_up());
}
