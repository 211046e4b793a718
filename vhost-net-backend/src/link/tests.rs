//! Frames between guests with several queues: which queue they go to, and that they stay in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Link, NewLink};
use crate::counters::LinkCounters;
use crate::frame::Offloads;
use crate::gate::Policy;
use crate::poller::Poller;
use crate::port::{Port, Queue, VhostPort};
use crate::ring::RxQueue;
use crate::ring::fake::{Driver, Guest, HIGH, PLAIN, WRITE};

const FRAME: u32 = 12 + 60;
/// Frames of a sender are laid out this far apart, receive buffers twice as far.
const ROOM: u64 = 1024;
const ENTRIES: u16 = 64;

/// A guest that sends by some queues.
struct Sender {
    guest: Guest,
    queues: Vec<Driver>,
    sent: u64,
}

/// A guest that receives by some queues.
struct Receiver {
    guest: Guest,
    queues: Vec<Driver>,
}

fn drivers(guest: &Guest, count: u64) -> Vec<Driver> {
    (0..count).map(|queue| Driver::new(guest, queue << 16, ENTRIES)).collect()
}

impl Sender {
    fn new(queues: u64) -> (Self, Port) {
        let guest = Guest::new();
        let queues = drivers(&guest, queues);
        let mut port = VhostPort::new(queues.len());
        for (at, driver) in queues.iter().enumerate() {
            port.start(2 * at + 1, Queue::Tx(driver.tx()));
        }
        (Self { guest, queues, sent: 0 }, Port::Vhost(port))
    }

    /// Sends a numbered TCP segment of a flow.
    fn send(&mut self, queue: usize, flow: u16, number: u16) {
        let mut bytes = [[0; 12].as_slice(), &[2; 12], &[8, 0, 0x45, 0, 0, 46]].concat();
        bytes.extend([0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        bytes.extend(flow.to_be_bytes());
        bytes.extend(number.to_be_bytes());
        bytes.resize(FRAME as usize, 0);
        // The port of the other side is no part of it.
        let (flow_at, number_at) = (12 + 34, 12 + 38);
        bytes.copy_within(flow_at + 2..flow_at + 4, number_at);
        bytes[flow_at + 2..number_at].fill(0);
        let place = HIGH + self.sent % 512 * ROOM;
        self.guest.write(place, &bytes);
        self.queues[queue].add(&[(place, FRAME)], 0);
        self.sent += 1;
    }
}

impl Receiver {
    /// With 32 buffers in each queue but those of `starved`.
    fn new(queues: u64, starved: &[u64]) -> (Self, Port) {
        let guest = Guest::new();
        let mut queues = drivers(&guest, queues);
        let mut port = VhostPort::new(queues.len());
        for (at, driver) in queues.iter_mut().enumerate() {
            port.start(2 * at, Queue::Rx(driver.rx(true)));
            let queue = at as u64;
            if !starved.contains(&queue) {
                for buffer in 0..32 {
                    driver.add(&[(HIGH + (queue * 32 + buffer) * 2 * ROOM, 2048)], WRITE);
                }
            }
        }
        (Self { guest, queues }, Port::Vhost(port))
    }

    /// What arrived since the last look: queue, flow and number, in each queue's order.
    fn receive(&mut self) -> Vec<(usize, u16, u16)> {
        let mut frames = Vec::new();
        for (queue, driver) in self.queues.iter_mut().enumerate() {
            for (head, _) in driver.used() {
                let place = HIGH + (queue as u64 * 32 + u64::from(head)) * 2 * ROOM;
                let bytes = self.guest.read(place, FRAME as usize);
                let word = |at: usize| u16::from_be_bytes(bytes[12 + at..14 + at].try_into().unwrap());
                frames.push((queue, word(34), word(38)));
                driver.offer(head);
            }
        }
        frames
    }
}

fn join(ports: [Port; 2]) -> (Link, Poller, Arc<LinkCounters>) {
    let counters = Arc::new(LinkCounters::default());
    let link = Link::new(NewLink {
        name: "link".to_owned(),
        ports,
        policies: [Policy::default(); 2],
        sentinels: [None, None],
        counters: Arc::clone(&counters),
    });
    (link, Poller::new().unwrap().0, counters)
}

#[test]
fn flows_of_one_queue_are_spread_over_a_guests_and_stay_in_order() {
    const FLOWS: u16 = 16;
    let ((mut alice, from), (mut bob, to)) = (Sender::new(1), Receiver::new(3, &[]));
    let (mut link, poller, counters) = join([from, to]);
    let mut seen: BTreeMap<u16, (usize, u16)> = BTreeMap::new();
    for number in 0..500 {
        (0..FLOWS).for_each(|flow| alice.send(0, flow, number));
        link.turn(0, &poller);
        for (queue, flow, number) in bob.receive() {
            let (its, next) = seen.entry(flow).or_insert((queue, 0));
            assert_eq!((*its, *next), (queue, number), "flow {flow}");
            *next += 1;
        }
    }
    assert_eq!(seen.len(), usize::from(FLOWS));
    assert!(seen.values().all(|(_, next)| *next == 500), "{seen:?}");
    let used: BTreeSet<_> = seen.values().map(|(queue, _)| *queue).collect();
    assert_eq!(used, BTreeSet::from([0, 1, 2]));
    assert_eq!(counters.directions[0].packets.get(), alice.sent);
}

#[test]
fn a_queue_without_buffers_holds_up_other_flows_for_a_moment_only() {
    let ((mut alice, from), (mut bob, to)) = (Sender::new(1), Receiver::new(3, &[1]));
    let (mut link, poller, counters) = join([from, to]);
    let direction = &counters.directions[0];
    let until = Instant::now() + Duration::from_secs(30);
    let mut arrived = 0;
    for number in 0..100 {
        (0..16).for_each(|flow| alice.send(0, flow, number));
        while direction.packets.get() + direction.drops.no_room.get() < alice.sent {
            assert!(Instant::now() < until, "{arrived} of {} frames", alice.sent);
            link.turn(0, &poller);
        }
        arrived += bob.receive().len() as u64;
    }
    let dropped = direction.drops.no_room.get();
    assert_eq!(arrived + dropped, alice.sent);
    // Of each round the same flows.
    assert!(dropped > 0 && arrived > 0 && dropped % 100 == 0, "{arrived} arrived, {dropped} were dropped");
}

#[test]
fn several_queues_to_fewer_keep_each_ones_order() {
    let ((mut alice, from), (mut bob, to)) = (Sender::new(3), Receiver::new(2, &[]));
    let (mut link, poller, _) = join([from, to]);
    let mut next = [0; 3];
    for number in 0..500 {
        (0..3).for_each(|queue| alice.send(queue, u16::try_from(queue).unwrap(), number));
        link.turn(0, &poller);
        for (queue, flow, number) in bob.receive() {
            let from = usize::from(flow);
            assert_eq!((queue, number), (from % 2, next[from]));
            next[from] += 1;
        }
    }
    assert_eq!(next, [500; 3]);
}

#[test]
fn a_guest_whose_frames_become_thousands_leaves_the_worker_to_others_in_between() {
    const FRAMES: u64 = 40;
    const SEGMENTS: u64 = 1000;
    // TCP over IPv4, to be cut up into segments of 60 bytes.
    let (alice, bob) = (Guest::new(), Guest::new());
    let front = [[1, 1, 0, 0, 60, 0, 34, 0, 16, 0, 0, 0].as_slice(), &[2; 12], &[8, 0, 0x45, 0]].concat();
    let rest = [0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    let tcp = [0, 80, 0, 81, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    alice.write(HIGH, &[front.as_slice(), &rest, &tcp].concat());
    let mut sender = Driver::new(&alice, 0, ENTRIES);
    let mut receiver = Driver::new(&bob, 0, 32_768);
    let length = 12 + 54 + u32::try_from(SEGMENTS).unwrap() * 60;
    (0..FRAMES).for_each(|_| _ = sender.add(&[(HIGH, length)], 0));
    (0..32_768).for_each(|_| _ = receiver.add(&[(HIGH, 2048)], WRITE));
    let mut ports = [VhostPort::new(1), VhostPort::new(1)];
    ports[0].start(1, Queue::Tx(sender.tx()));
    ports[1].start(0, Queue::Rx(RxQueue::new(receiver.ring(PLAIN), Offloads::NONE, true)));
    let (mut link, poller, counters) = join(ports.map(Port::Vhost));
    let mut arrived = 0;
    let mut done = 0;
    while done < FRAMES {
        link.turn(0, &poller);
        done += sender.used().len() as u64;
        let used = receiver.used();
        used.iter().for_each(|(head, _)| receiver.offer(*head));
        assert!(used.len() <= 5 * 1024, "{} frames in one turn", used.len());
        arrived += used.len() as u64;
    }
    assert_eq!((arrived, counters.directions[0].packets.get()), (FRAMES * SEGMENTS, FRAMES));
}

#[test]
fn each_pause_of_a_receiver_is_waited_for_anew() {
    let ((mut alice, from), (mut bob, to)) = (Sender::new(1), Receiver::new(1, &[]));
    let (mut link, poller, counters) = join([from, to]);
    let dropped = || counters.directions[0].drops.no_room.get();
    for pause in 1..=3 {
        // 32 find room. For the others the receiver is waited for, from the next round on.
        (0..40).for_each(|number| alice.send(0, 1, number));
        (0..2).for_each(|_| _ = link.turn(0, &poller));
        assert_eq!(dropped(), (pause - 1) * 8);
        std::thread::sleep(Duration::from_millis(6));
        (0..2).for_each(|_| _ = link.turn(0, &poller));
        assert_eq!(dropped(), pause * 8);
        assert_eq!(bob.receive().len(), 32);
    }
}
