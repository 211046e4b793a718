use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::vmm::virtio::ring::{BUFFERS, Buffer, Driver, nonsense, readable, writable};

const ANSWER: u64 = BUFFERS + 0x1000;
const MULTI: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;

/// Tells what it is to follow, and has done so when it is told to.
struct Recorder {
    tell: Sender<u16>,
    verdict: Verdict,
}

impl Follower for Recorder {
    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn follow(&mut self, pairs: QueuePairs) -> Verdict {
        self.tell.send(pairs.into()).unwrap();
        self.verdict
    }

    fn verdict(&self) -> Verdict {
        self.verdict
    }
}

struct Bench {
    driver: Driver,
    queues: Queues,
    control: Control<Recorder>,
    followed: Receiver<u16>,
}

impl Bench {
    /// A device of four pairs, and a driver of these features.
    fn new(features: u64) -> Self {
        let (driver, queue) = Driver::new();
        let (tell, followed) = channel();
        let mut control = Control::new(4.try_into().unwrap(), Recorder { tell, verdict: Verdict::Done });
        let first = control.queues(features).start;
        control.activate(features);
        Self { driver, queues: Queues { first, queues: vec![Some(queue)] }, control, followed }
    }

    fn offer(&mut self, command: &[u8], answer: Buffer) {
        self.driver.write(BUFFERS, command);
        self.driver.write(ANSWER, &[0xee]);
        self.driver.offer(&[readable(BUFFERS, u32::try_from(command.len()).unwrap()), answer]);
    }

    /// What is answered to a command.
    fn answer(&mut self, command: &[u8]) -> u8 {
        self.offer(command, writable(ANSWER, 1));
        assert_eq!(self.control.serve(Cause::Queue(8), &mut self.queues), Progress::Done);
        assert_eq!(self.driver.used().iter().map(|used| used.1).collect::<Vec<_>>(), [1]);
        self.driver.read(ANSWER, 1)[0]
    }
}

#[test]
fn as_many_pairs_as_there_are_may_be_asked_for() {
    let mut bench = Bench::new(MULTI);
    assert_eq!((bench.control.hears(), bench.control.queues(MULTI)), (vec![2, 8], 8..9));
    assert_eq!([1_u8, 4, 2].map(|pairs| bench.answer(&[4, 0, pairs, 0])), [0; 3]);
    assert_eq!(bench.followed.try_iter().collect::<Vec<_>>(), [1, 4, 2]);
}

#[test]
fn everything_else_is_answered_with_an_error() {
    let mut bench = Bench::new(MULTI);
    for command in [
        &[4, 0, 0, 0][..],
        &[4, 0, 5, 0],
        &[4, 0, 1, 1],
        &[4, 0, 0xff, 0xff],
        &[4, 1, 1, 0],
        &[0, 0, 1, 0],
        &[4, 0, 1],
        &[4, 0, 1, 0, 0],
        &[0xff; 64],
    ] {
        assert_eq!(bench.answer(command), 1, "{command:?}");
    }
    assert_eq!(bench.followed.try_iter().count(), 0);
    bench.control.follower.verdict = Verdict::Refused;
    assert_eq!(bench.answer(&[4, 0, 2, 0]), 1, "and what the follower cannot do");
}

#[test]
fn a_driver_of_one_pair_has_the_queue_behind_it() {
    let only_control = 1 << VIRTIO_NET_F_CTRL_VQ;
    let mut bench = Bench::new(only_control);
    assert_eq!(bench.control.queues(only_control), 2..3);
    assert_eq!(bench.answer(&[4, 0, 1, 0]), 1, "the command is not agreed on");
    assert!(bench.control.queues(0).is_empty());
    let one = Control::new(QueuePairs::ONE, Recorder { tell: channel().0, verdict: Verdict::Done });
    assert!(one.hears().is_empty(), "a device of one pair has none at all");
    assert_eq!((features(QueuePairs::ONE), queues(QueuePairs::ONE)), (0, 2));
}

#[test]
fn a_change_that_takes_its_time_is_answered_when_it_is_done() {
    let mut bench = Bench::new(MULTI);
    bench.control.follower.verdict = Verdict::Pending;
    bench.offer(&[4, 0, 3, 0], writable(ANSWER, 1));
    bench.offer(&[4, 0, 3, 0], writable(ANSWER, 1));
    for _ in 0..3 {
        assert_eq!(bench.control.serve(Cause::Event, &mut bench.queues), Progress::Done);
    }
    assert_eq!((bench.driver.used(), bench.followed.try_iter().collect::<Vec<_>>()), (vec![], vec![3]));
    bench.control.follower.verdict = Verdict::Done;
    bench.control.serve(Cause::Event, &mut bench.queues);
    assert_eq!(bench.driver.used().len(), 2, "one after the other");

    bench.control.follower.verdict = Verdict::Pending;
    bench.offer(&[4, 0, 3, 0], writable(ANSWER, 1));
    bench.control.serve(Cause::Queue(8), &mut bench.queues);
    bench.control.reset();
    bench.control.follower.verdict = Verdict::Done;
    bench.control.serve(Cause::Event, &mut bench.queues);
    assert_eq!(bench.driver.used(), [], "another driver knows nothing of it");
}

#[test]
fn commands_without_a_place_for_the_answer_and_nonsense_do_no_harm() {
    let mut bench = Bench::new(MULTI);
    bench.offer(&[4, 0, 3, 0], readable(ANSWER, 1));
    bench.offer(&[4, 0, 3, 0], writable(ANSWER, 0));
    bench.control.serve(Cause::Queue(8), &mut bench.queues);
    assert_eq!(bench.driver.used().iter().map(|used| used.1).collect::<Vec<_>>(), [0, 0]);
    for (_name, write) in nonsense() {
        let mut bench = Bench::new(MULTI);
        write(&mut bench.driver);
        for _ in 0..10 {
            bench.control.serve(Cause::Queue(8), &mut bench.queues);
        }
    }
}
