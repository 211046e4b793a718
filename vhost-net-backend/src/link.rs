//! A link: two ends, and frames moved between them, run to completion.
//!
//! [`Link::turn`] is the worker's inner loop: each lane (a source queue of one end) is polled once, and what it lends
//! goes straight into the other end's sink. A lane without frames for a while asks its source to wake it, and is not
//! polled until then. A sink without room holds its lanes back for [`delivery::PATIENCE`], then their frames are dropped until it
//! takes some again: a short pause of a guest costs nothing, a dead guest stops nobody for long.
//!
//! A fault of an end closes that end only; the other stays as it is, and its frames are dropped until the first is
//! back.

mod delivery;
mod spread;

use std::sync::Arc;

use crate::counters::LinkCounters;
use crate::fault::Fault;
use crate::frame::Batch;
use crate::gate::{Gate, Policy};
use crate::mirror::Mirror;
use crate::observer::Sentinel;
use crate::offload::Finisher;
use crate::poller::{Poller, Token};
use crate::port::{Polled, Port, Unfit};
use delivery::{Delivery, Full};

/// Empty polls before a lane sleeps: some 20 µs, more than a guest's own polling loop takes to come back.
const IDLE_POLLS: u32 = 1000;

/// What one round of a link's lanes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Some lane is to be polled again.
    pub awake: bool,
    /// Some lane had frames.
    pub moved: bool,
    /// Some lane is to be woken by its source.
    pub asleep: bool,
}

/// What one poll of a lane came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turned {
    Moved,
    Empty,
    /// Empty, as so often that the lane may sleep.
    Quiet,
}

/// A source queue of one end, and how it is doing.
#[derive(Debug, Default)]
struct Lane {
    idle: u32,
    asleep: bool,
    /// Its source's descriptor is in the poller.
    watched: bool,
    /// Of each queue of the other end.
    full: Vec<Full>,
}

impl Lane {
    fn new(sinks: usize) -> Self {
        Self { full: vec![Full::No; sinks], ..Self::default() }
    }

    /// As if it were new.
    fn reset(&mut self) {
        (self.idle, self.asleep, self.watched) = (0, false, false);
        self.full.fill(Full::No);
    }
}

/// Two joined ends.
#[derive(Debug)]
pub struct Link {
    name: String,
    ports: [Port; 2],
    lanes: [Vec<Lane>; 2],
    counters: Arc<LinkCounters>,
    /// What each end's frames pass first.
    gates: [Option<Box<Gate>>; 2],
    /// Who looks at each end's frames for addresses.
    sentinels: [Option<Sentinel>; 2],
    /// Captures, while there are any.
    mirrors: Vec<Mirror>,
    finisher: Finisher,
}

/// What a link is made of.
#[derive(Debug)]
pub struct NewLink {
    /// For the log.
    pub name: String,
    /// The ends.
    pub ports: [Port; 2],
    /// What holds for frames from each.
    pub policies: [Policy; 2],
    /// Who notes the addresses in frames from each.
    pub sentinels: [Option<Sentinel>; 2],
    /// Where it counts.
    pub counters: Arc<LinkCounters>,
}

impl Link {
    /// Joins two ends.
    pub fn new(new: NewLink) -> Self {
        let NewLink { name, ports, policies, sentinels, counters } = new;
        let lane = |side: usize| Lane::new(ports[1 - side].queues());
        let lanes = [0, 1].map(|side: usize| (0..ports[side].queues()).map(|_| lane(side)).collect());
        let (gates, mirrors) = (policies.map(Gate::new), Vec::new());
        let finisher = Finisher::default();
        let mut link = Self { name, ports, lanes, counters, gates, sentinels, mirrors, finisher };
        link.share_offloads();
        link
    }

    /// Copies frames to a capture from now on, until that ends.
    pub fn capture(&mut self, mirror: Mirror) {
        // On a quiet link nothing else finds out that a capture has ended.
        self.mirrors.retain(Mirror::is_viewed);
        self.mirrors.push(mirror);
    }

    /// Whether each end can be sent to.
    pub fn running(&self) -> [bool; 2] {
        self.ports.each_ref().map(|port| port.accepts(0).is_some())
    }

    /// One end.
    pub fn port(&mut self, side: usize) -> &mut Port {
        &mut self.ports[side]
    }

    /// Polls every lane that is awake once. `me` is this link's place in the poller's tokens.
    #[inline]
    pub fn turn(&mut self, me: usize, poller: &Poller) -> Turn {
        let mut turn = Turn::default();
        for side in [0, 1] {
            for queue in 0..self.lanes[side].len() {
                if self.lanes[side][queue].asleep {
                    turn.asleep = true;
                    continue;
                }
                match self.turn_lane(side, queue) {
                    Ok(Turned::Moved) => {
                        turn.awake = true;
                        turn.moved = true;
                    }
                    Ok(Turned::Empty) => turn.awake = true,
                    Ok(Turned::Quiet) => turn.awake |= !self.fall_asleep(me, side, queue, poller),
                    Err((end, fault)) => {
                        self.end(end, &fault, poller);
                        turn.awake = true;
                    }
                }
            }
        }
        if turn.moved && turn.asleep {
            self.keep_nics_awake(poller);
        }
        turn
    }

    /// Polls sleeping lanes of NICs again while the link moves frames: see [`Port::is_watched_awake`].
    fn keep_nics_awake(&mut self, poller: &Poller) {
        for side in [0, 1] {
            if self.ports[side].is_watched_awake() {
                continue;
            }
            for queue in 0..self.lanes[side].len() {
                if self.lanes[side][queue].asleep {
                    self.unwatch(side, queue, poller);
                }
            }
        }
    }

    /// Polls a lane once.
    #[inline]
    fn turn_lane(&mut self, side: usize, queue: usize) -> Result<Turned, (usize, Fault)> {
        let [first, second] = &mut self.ports;
        let (source, sink) = if side == 0 { (first, second) } else { (second, first) };
        let lane = &mut self.lanes[side][queue];
        let counters = &self.counters.directions[side];
        let (gate, sentinel) = (&mut self.gates[side], &mut self.sentinels[side]);
        let mut delivery = Delivery {
            sink,
            queue,
            sources: source.senders(),
            counters,
            full: &mut lane.full,
            finisher: &mut self.finisher,
            finished: 0,
            fault: None,
        };
        let mirrors = &mut self.mirrors;
        let mut deliver = |batch: &Batch<'_>| -> usize {
            let mut push = |batch: &Batch<'_>| {
                let taken = delivery.push(batch);
                if let Some(sentinel) = sentinel {
                    sentinel.look(batch, taken);
                }
                if !mirrors.is_empty() {
                    mirrors.retain_mut(|mirror| mirror.copy(side, batch, taken));
                }
                taken
            };
            match gate {
                None => push(batch),
                Some(gate) => gate.pass(batch, &counters.drops, push),
            }
        };
        let polled = source.poll(queue, &mut deliver).map_err(|fault| (side, fault))?;
        if let Some(fault) = delivery.fault {
            return Err((1 - side, fault));
        }
        if polled.is_idle() {
            lane.idle += 1;
            return Ok(if lane.idle < IDLE_POLLS { Turned::Empty } else { Turned::Quiet });
        }
        lane.idle = 0;
        self.count_unfit(side, polled);
        Ok(Turned::Moved)
    }

    fn count_unfit(&self, side: usize, polled: Polled) {
        let drops = &self.counters.directions[side].drops;
        match polled.unfit {
            None => {}
            Some(Unfit::Short) => drops.short.add(1),
            Some(Unfit::Long) => drops.long.add(1),
            Some(Unfit::Pieces) => drops.pieces.add(1),
            Some(Unfit::Header) => drops.header.add(1),
        }
    }

    /// Lets a lane's source wake it; says whether the lane may sleep now.
    fn fall_asleep(&mut self, me: usize, side: usize, queue: usize, poller: &Poller) -> bool {
        let (port, lane) = (&mut self.ports[side], &mut self.lanes[side][queue]);
        lane.idle = 0;
        if !lane.watched {
            let token = Token { link: me, side, queue };
            let added = port.wake_fds(queue).try_fold(false, |_, fd| poller.add(fd, token).map(|()| true));
            match added {
                Ok(watched) => lane.watched = watched,
                Err(fault) => {
                    self.end(side, &fault, poller);
                    return false;
                }
            }
        }
        match port.enable_wake(queue) {
            Ok(pending) => {
                lane.asleep = !pending;
                if pending {
                    port.disable_wake(queue);
                    if !port.is_watched_awake() {
                        self.unwatch(side, queue, poller);
                    }
                }
                !pending
            }
            Err(fault) => {
                self.end(side, &fault, poller);
                false
            }
        }
    }

    /// A lane's source has frames, or is new.
    pub fn wake(&mut self, side: usize, queue: usize, poller: &Poller) {
        let Some(lane) = self.lanes.get_mut(side).and_then(|lanes| lanes.get_mut(queue)) else { return };
        if lane.asleep {
            lane.asleep = false;
            self.ports[side].disable_wake(queue);
            self.counters.directions[side].wakes.add(1);
            if !self.ports[side].is_watched_awake() {
                self.unwatch(side, queue, poller);
            }
        }
    }

    /// Before a source queue goes away: takes its descriptor out of the poller.
    pub fn unwatch(&mut self, side: usize, queue: usize, poller: &Poller) {
        let Some(lane) = self.lanes[side].get_mut(queue) else { return };
        if lane.watched {
            self.ports[side].wake_fds(queue).for_each(|fd| poller.remove(fd));
        }
        lane.reset();
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

#[cfg(test)]
mod tests;
