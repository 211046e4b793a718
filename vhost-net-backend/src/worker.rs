//! A worker: one thread on one core that runs some links, polling while there are frames, asleep when there are none.
//!
//! Everything of a link's data path belongs to its worker's thread, so there is no lock around it. Sessions and the
//! control plane change links by calling the worker ([`WorkerHandle::call`]): a closure runs between two batches,
//! and the caller waits for its result.

mod alarm;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::counters::Counter;
use crate::fault::Fault;
use crate::link::{Link, Turn};
use crate::poller::{Poller, Waited};
use alarm::Alarm;

/// Rounds of polling between two looks for lanes to wake.
const ROUNDS: u32 = 16;
/// The one of those that is timed: none of the first, whose batches have grown while the worker looked.
const TIMED: u32 = ROUNDS / 2;

type Job = Box<dyn FnOnce(&mut Links) + Send>;

/// The links of a worker.
#[derive(Debug)]
pub struct Links {
    links: Vec<Option<Link>>,
    poller: Poller,
    stop: bool,
}

impl Links {
    /// Adds a link; returns its place.
    pub fn add(&mut self, link: Link) -> usize {
        let free = self.links.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        self.links[place] = Some(link);
        place
    }

    /// Takes a link out; its ends are closed.
    pub fn remove(&mut self, place: usize) {
        let Some(mut link) = self.links.get_mut(place).and_then(Option::take) else { return };
        for side in [0, 1] {
            link.unwatch_all(side, &self.poller);
            link.port(side).close();
        }
    }

    /// One round of all links.
    #[inline]
    fn turn(&mut self) -> Turn {
        let mut all = Turn::default();
        for (place, link) in self.links.iter_mut().enumerate() {
            if let Some(link) = link {
                let Turn { awake, moved, asleep } = link.turn(place, &self.poller);
                all.awake |= awake;
                all.moved |= moved;
                all.asleep |= asleep;
            }
        }
        all
    }

    /// Waits for lanes to wake, or only looks for some.
    fn wait(&mut self, sleep: bool) -> Waited {
        let Self { links, poller, stop: _ } = self;
        poller.wait(sleep, |token| {
            if let Some(link) = links.get_mut(token.link).and_then(Option::as_mut) {
                link.wake(token.side, token.queue, poller);
            }
        })
    }

    /// The link at a place, and the poller its queues are watched by.
    pub fn get(&mut self, place: usize) -> Option<(&mut Link, &Poller)> {
        Some((self.links.get_mut(place)?.as_mut()?, &self.poller))
    }
}

/// A way to reach a worker from other threads.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    jobs: Sender<Job>,
    waiting: Arc<AtomicBool>,
    caller: Arc<OwnedFd>,
    /// Nanoseconds.
    busy: Arc<Counter>,
}

/// The worker is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker has stopped")]
pub struct Stopped;

impl WorkerHandle {
    /// Runs `work` in the worker's thread, between two batches, and returns its result.
    pub fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Links) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.send(work)?.recv().map_err(|_gone| Stopped)
    }

    /// How long it has been at work, of all the time it was awake: rounds that moved frames. One in [`ROUNDS`] is timed and
    /// counts for all, so this is an estimate, good over seconds.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy.get())
    }

    /// Whether the worker comes round to us in that time.
    pub fn answers_within(&self, limit: Duration) -> bool {
        self.send(|_| ()).is_ok_and(|answer| answer.recv_timeout(limit).is_ok())
    }

    fn send<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Links) -> T + Send + 'static,
    ) -> Result<Receiver<T>, Stopped> {
        let (sender, result) = sync_channel(1);
        let job: Job = Box::new(move |links| drop(sender.send(work(links))));
        self.jobs.send(job).map_err(|_returned| Stopped)?;
        self.waiting.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&*self.caller, &1_u64.to_ne_bytes()) {
            // The counter is full: the worker is called already.
            tracing::debug!(%error, "calling a worker");
        }
        Ok(result)
    }
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a worker, on `core` if given.
    ///
    /// # Errors
    /// [`Fault::Io`] naming the call: epoll, the thread, its affinity, or its alarm.
    pub fn start(core: Option<usize>) -> Result<Self, Fault> {
        let (poller, caller) = Poller::new()?;
        let (jobs, inbox) = channel();
        let waiting = Arc::new(AtomicBool::new(false));
        let busy = Arc::new(Counter::default());
        let (caller, counted) = (Arc::new(caller), Arc::clone(&busy));
        let handle = WorkerHandle { jobs, waiting: Arc::clone(&waiting), caller, busy };
        let (ready, result) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(core.map_or_else(|| "worker".to_owned(), |core| format!("worker-{core}")))
            .spawn(move || match prepare(core) {
                Ok(alarm) => {
                    if ready.send(Ok(())).is_ok() {
                        let links = Links { links: Vec::new(), poller, stop: false };
                        run(links, &alarm, &inbox, &waiting, &counted);
                    }
                }
                Err(fault) => drop(ready.send(Err(fault))),
            })
            .map_err(|source| Fault::Io { operation: "start a thread", source })?;
        result.recv().unwrap_or(Ok(()))?;
        Ok(Self { handle, thread })
    }

    /// To reach it.
    pub fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// Stops it; its links are closed.
    pub fn stop(self) {
        if let Err(Stopped) = self.handle.call(|links| links.stop = true) {
            tracing::error!("a worker had stopped already");
        }
        if self.thread.join().is_err() {
            tracing::error!("a worker has panicked");
        }
    }
}

/// What a worker's thread does to itself first.
fn prepare(core: Option<usize>) -> Result<Alarm, Fault> {
    pin(core)?;
    Alarm::set().map_err(|source| Fault::Io { operation: "set an alarm", source })
}

fn pin(core: Option<usize>) -> Result<(), Fault> {
    let Some(core) = core else { return Ok(()) };
    let mut set = rustix::thread::CpuSet::new();
    if core < rustix::thread::CpuSet::MAX_CPU {
        set.set(core);
    }
    rustix::thread::sched_setaffinity(None, &set).map_err(Fault::io("sched_setaffinity"))
}

fn run(mut links: Links, alarm: &Alarm, inbox: &Receiver<Job>, waiting: &AtomicBool, busy: &Counter) {
    let mut round = 0;
    loop {
        // One a round, so that no session holds up the links by calling again and again.
        if waiting.load(Ordering::Relaxed)
            && waiting.swap(false, Ordering::Acquire)
            && let Ok(job) = inbox.try_recv()
        {
            job(&mut links);
            // There may be another.
            waiting.store(true, Ordering::Release);
        }
        let begin = (round == TIMED).then(Instant::now);
        let turn = links.turn();
        if let Some(begin) = begin
            && turn.moved
        {
            let time = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            busy.add(time.saturating_mul(ROUNDS.into()));
        }
        round = (round + 1) % ROUNDS;
        if links.stop {
            break;
        }
        // The look costs a system call, which is much beside a round of small frames.
        if !turn.awake || (round == 0 && turn.asleep) {
            let sleep = || !turn.awake && !waiting.load(Ordering::Acquire);
            if links.wait(sleep()) == Waited::Interrupted {
                alarm.turn(false);
                links.wait(sleep());
                alarm.turn(true);
            }
        }
    }
    for place in 0..links.links.len() {
        links.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls the worker from within each call.
    fn call_on(handle: WorkerHandle, enough: Arc<AtomicBool>) {
        if !enough.load(Ordering::Relaxed) {
            let next = (handle.clone(), Arc::clone(&enough));
            // The worker may have stopped; then this was the last.
            drop(handle.send(move |_| call_on(next.0, next.1)));
        }
    }

    #[test]
    fn calls_without_end_do_not_keep_a_worker_from_its_rounds() {
        let worker = Worker::start(None).unwrap();
        let enough = Arc::new(AtomicBool::new(false));
        call_on(worker.handle().clone(), Arc::clone(&enough));
        let (done, stopped) = channel();
        std::thread::spawn(move || {
            worker.stop();
            done.send(()).unwrap();
        });
        let result = stopped.recv_timeout(Duration::from_secs(10));
        enough.store(true, Ordering::Relaxed);
        result.unwrap();
    }
}
