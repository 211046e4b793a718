//! A link: two ends, and frames moved between them, run to completion.
//!
//! [`Link::turn`] is the worker's inner loop: each lane (a source queue of one end) is polled once, and what it lends
//! goes straight into the other end's sink. A lane without frames for a while asks its source to wake it, and is not
//! polled until then. A sink without room holds its lanes back for [`PATIENCE`], then their frames are dropped until it
//! takes some again: a short pause of a guest costs nothing, a dead guest stops nobody for long.
//!
//! A fault of an end closes that end only; the other stays as it is, and its frames are dropped until the first is
//! back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::LinkCounters;
use crate::fault::Fault;
use crate::frame::{Batch, Header, Offloads};
use crate::memory::Readable;
use crate::offload::Finisher;
use crate::poller::{Poller, Token};
use crate::port::{Polled, Port, Unfit};

/// Empty polls before a lane sleeps: some 20 µs, more than a guest's own polling loop takes to come back.
const IDLE_POLLS: u32 = 1000;

/// How long a full sink is waited for.
const PATIENCE: Duration = Duration::from_millis(5);

/// A source queue of one end, and how it is doing.
#[derive(Debug, Default)]
struct Lane {
    idle: u32,
    asleep: bool,
    /// Its source's descriptor is in the poller.
    watched: bool,
    full: Full,
}

/// How long the lane's sink has been full.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Full {
    #[default]
    No,
    Since(Instant),
    /// For longer than we wait.
    Long,
}

/// Two joined ends.
#[derive(Debug)]
pub struct Link {
    name: String,
    ports: [Port; 2],
    lanes: [Vec<Lane>; 2],
    counters: Arc<LinkCounters>,
    finisher: Finisher,
}

impl Link {
    /// Joins two ends. `name` is for the log.
    pub fn new(name: String, ports: [Port; 2], counters: Arc<LinkCounters>) -> Self {
        let lanes = [0, 1].map(|side: usize| (0..ports[side].queues()).map(|_| Lane::default()).collect());
        Self { name, ports, lanes, counters, finisher: Finisher::default() }
    }

    /// One end.
    pub fn port(&mut self, side: usize) -> &mut Port {
        &mut self.ports[side]
    }

    /// Polls every lane that is awake once. `me` is this link's place in the poller's tokens.
    ///
    /// # Returns
    /// Whether any lane is still awake.
    #[inline]
    pub fn turn(&mut self, me: usize, poller: &Poller) -> bool {
        let mut awake = false;
        for side in [0, 1] {
            for queue in 0..self.lanes[side].len() {
                if self.lanes[side][queue].asleep {
                    continue;
                }
                match self.turn_lane(side, queue) {
                    Ok(true) => awake = true,
                    Ok(false) => awake |= !self.fall_asleep(me, side, queue, poller),
                    Err((end, fault)) => {
                        self.end(end, &fault, poller);
                        awake = true;
                    }
                }
            }
        }
        awake
    }

    /// Polls a lane once; says whether to go on polling it.
    #[inline]
    fn turn_lane(&mut self, side: usize, queue: usize) -> Result<bool, (usize, Fault)> {
        let [first, second] = &mut self.ports;
        let (source, sink) = if side == 0 { (first, second) } else { (second, first) };
        let lane = &mut self.lanes[side][queue];
        let counters = &self.counters.directions[side];
        let mut sink_fault = None;
        let mut deliver = |batch: &Batch<'_>| -> usize {
            let Some(accepts) = sink.accepts(queue) else {
                counters.drops.peer_down.add(batch.len() as u64);
                return batch.len();
            };
            let pushed = if accepts.contains(batch.needs()) {
                sink.push(queue, batch).map(|pushed| {
                    counters.drops.refused.add(pushed.refused as u64);
                    pushed.taken
                })
            } else {
                let mut slow = Slow { sink, queue, accepts, finisher: &mut self.finisher };
                slow.push(batch, &counters.drops)
            };
            match pushed {
                Ok(0) => lane.full.drop_if_long(batch, &counters.drops.no_room),
                Ok(taken) => {
                    lane.full = Full::No;
                    counters.packets.add(taken as u64);
                    counters.bytes.add(batch.bytes_of(taken));
                    counters.batches.add(1);
                    taken
                }
                Err(fault) => {
                    sink_fault = Some(fault);
                    0
                }
            }
        };
        let polled = source.poll(queue, &mut deliver).map_err(|fault| (side, fault))?;
        if let Some(fault) = sink_fault {
            return Err((1 - side, fault));
        }
        if polled.is_idle() {
            lane.idle += 1;
            return Ok(lane.idle < IDLE_POLLS);
        }
        lane.idle = 0;
        self.count_unfit(side, polled);
        Ok(true)
    }

    fn count_unfit(&self, side: usize, polled: Polled) {
        let drops = &self.counters.directions[side].drops;
        match polled.unfit {
            None => {}
            Some(Unfit::Short) => drops.short.add(1),
            Some(Unfit::Long) => drops.long.add(1),
            Some(Unfit::Pieces) => drops.pieces.add(1),
        }
    }

    /// Lets a lane's source wake it; says whether the lane may sleep now.
    fn fall_asleep(&mut self, me: usize, side: usize, queue: usize, poller: &Poller) -> bool {
        let (port, lane) = (&mut self.ports[side], &mut self.lanes[side][queue]);
        lane.idle = 0;
        if let Some(fd) = port.wake_fd(queue)
            && !lane.watched
        {
            if let Err(fault) = poller.add(fd, Token { link: me, side, queue }) {
                self.end(side, &fault, poller);
                return false;
            }
            lane.watched = true;
        }
        match port.enable_wake(queue) {
            Ok(pending) => {
                if pending {
                    port.disable_wake(queue);
                }
                lane.asleep = !pending;
                lane.asleep
            }
            Err(fault) => {
                self.end(side, &fault, poller);
                false
            }
        }
    }

    /// A lane's source has frames, or is new.
    pub fn wake(&mut self, side: usize, queue: usize) {
        let Some(lane) = self.lanes.get_mut(side).and_then(|lanes| lanes.get_mut(queue)) else { return };
        if lane.asleep {
            lane.asleep = false;
            self.ports[side].disable_wake(queue);
            self.counters.directions[side].wakes.add(1);
        }
    }

    /// Before a source queue goes away: takes its descriptor out of the poller.
    pub fn unwatch(&mut self, side: usize, queue: usize, poller: &Poller) {
        let Some(lane) = self.lanes[side].get_mut(queue) else { return };
        if lane.watched
            && let Some(fd) = self.ports[side].wake_fd(queue)
        {
            poller.remove(fd);
        }
        *lane = Lane::default();
    }

    /// As [`unwatch`](Self::unwatch), for all of an end's queues.
    pub fn unwatch_all(&mut self, side: usize, poller: &Poller) {
        for queue in 0..self.lanes[side].len() {
            self.unwatch(side, queue, poller);
        }
    }

    /// Ends one end after a fault of it.
    fn end(&mut self, side: usize, fault: &Fault, poller: &Poller) {
        self.counters.fault(side, fault.label());
        let error: &dyn std::error::Error = fault;
        tracing::warn!(
            link = self.name,
            end = side,
            reason = fault.label(),
            error,
            "ending this end of the link"
        );
        self.unwatch_all(side, poller);
        self.ports[side].close();
        self.share_offloads();
    }

    /// Tells each end what the other takes unfinished: after either changed.
    pub fn share_offloads(&mut self) {
        let [first, second] = &mut self.ports;
        let accepted = [first.accepts(0), second.accepts(0)];
        for (side, (port, accepted)) in
            [first, second].into_iter().zip(accepted.into_iter().rev()).enumerate()
        {
            if let Err(error) = port.offer(accepted.unwrap_or_default()) {
                let error: &dyn std::error::Error = &error;
                tracing::error!(link = self.name, end = side, error, "cannot set offloads");
            }
        }
    }
}

impl Full {
    /// The sink took nothing: says how many frames to drop.
    fn drop_if_long(&mut self, batch: &Batch<'_>, dropped: &crate::counters::Counter) -> usize {
        match *self {
            Self::No => *self = Self::Since(Instant::now()),
            Self::Since(start) if start.elapsed() >= PATIENCE => *self = Self::Long,
            Self::Since(_) => {}
            Self::Long => {
                dropped.add(batch.len() as u64);
                return batch.len();
            }
        }
        0
    }
}

/// Frame by frame: for a sink that cannot take what some frame of a batch needs.
struct Slow<'l> {
    sink: &'l mut Port,
    queue: usize,
    accepts: Offloads,
    finisher: &'l mut Finisher,
}

impl Slow<'_> {
    /// How many frames of the batch are done with.
    fn push(&mut self, batch: &Batch<'_>, drops: &crate::counters::Drops) -> Result<usize, Fault> {
        let mut done = 0;
        for (frame, pieces) in batch.iter() {
            if self.accepts.contains(frame.needs) {
                let mut one = Batch::new();
                // An empty batch has room for any frame.
                let _never_full = one.push(frame.header, frame.needs, frame.length, pieces);
                let pushed = self.sink.push(self.queue, &one)?;
                drops.refused.add(pushed.refused as u64);
                if pushed.taken == 0 {
                    break;
                }
            } else {
                let Ok(finished) = self.finisher.finish(frame, pieces) else {
                    drops.unfinished.add(1);
                    done += 1;
                    continue;
                };
                if !push_finished(self.sink, self.queue, finished, drops)? {
                    break;
                }
            }
            done += 1;
        }
        Ok(done)
    }
}

/// Pushes finished frames; those that find no room behind others that did are lost, as on any wire.
///
/// # Returns
/// Whether any found room.
fn push_finished<'s>(
    sink: &mut Port,
    queue: usize,
    mut finished: impl Iterator<Item = &'s [u8]>,
    drops: &crate::counters::Drops,
) -> Result<bool, Fault> {
    let mut next = finished.next();
    let mut any = false;
    while next.is_some() {
        let mut batch = Batch::new();
        while let Some(bytes) = next {
            let piece = Readable::own(bytes);
            if batch.push(Header::NONE, Offloads::NONE, piece.len(), &[piece]).is_err() {
                break;
            }
            next = finished.next();
        }
        let pushed = sink.push(queue, &batch)?;
        drops.refused.add(pushed.refused as u64);
        if pushed.taken == 0 && !any {
            return Ok(false);
        }
        any = true;
        drops.no_room.add((batch.len() - pushed.taken) as u64);
    }
    Ok(any)
}
