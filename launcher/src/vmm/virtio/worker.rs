//! A device's thread: waits for notifications of the guest and for the device's own events, and calls the device.
//!
//! The thread is started with the machine, before the filter on system calls, and idles until a driver is ready.
//! Device and live queues are behind one lock, taken once per wake-up here, and by a vCPU only to activate or reset.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Cause, Device, Progress, Queues};
use crate::vmm::VmmError;
use crate::vmm::outcome::{DeathWatch, End, Outcome};

/// The epoll value of the device's own event; queues have their number.
const EVENT: u64 = u64::MAX;

/// What the thread and the transport share.
pub(super) struct Shared {
    /// One per queue: the guest's notification.
    pub(super) kicks: Vec<EventFd>,
    state: Mutex<State>,
}

/// The device, and its queues while a driver is ready.
pub(super) struct State {
    pub(super) device: Box<dyn Device>,
    pub(super) queues: Option<Queues>,
}

impl Shared {
    pub(super) fn new(device: Box<dyn Device>, kicks: Vec<EventFd>) -> Self {
        Self { kicks, state: Mutex::new(State { device, queues: None }) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the device, if a driver is ready.
    fn serve(&self, cause: Cause) -> Progress {
        match &mut *self.state() {
            State { device, queues: Some(queues) } => device.serve(cause, queues),
            State { queues: None, .. } => Progress::Done,
        }
    }
}

/// Starts the thread, and waits until it is through its beginnings. It ends with the process; a panic in it ends the
/// run.
pub(super) fn spawn(shared: Arc<Shared>, end: End) -> io::Result<()> {
    let (name, event_fd, lent) = {
        let device = &shared.state().device;
        let lent: Vec<_> = (0..shared.kicks.len()).map(|queue| device.lends(queue)).collect();
        (device.kind().name, device.event_fd(), lent)
    };
    let epoll = Epoll::new()?;
    let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
    for ((queue, kick), lent) in (0..).zip(&shared.kicks).zip(lent) {
        if lent {
            continue;
        }
        epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), EpollEvent::new(edges, queue))?;
    }
    if let Some(fd) = event_fd {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(edges | EventSet::OUT, EVENT))?;
    }
    let ready = Arc::new(Barrier::new(2));
    let begun = Arc::clone(&ready);
    thread::Builder::new().name(name.into()).spawn(move || {
        begun.wait();
        let _watch = DeathWatch::new(end.clone(), VmmError::DeviceDied { name });
        if let Err(source) = run(&epoll, &shared) {
            end.come(Outcome::Failed(VmmError::Epoll(source)));
        }
    })?;
    ready.wait();
    Ok(())
}

fn run(epoll: &Epoll, shared: &Shared) -> io::Result<()> {
    let mut events = [EpollEvent::default(); 8];
    // What had more to do, and gets its turn after everything that has become ready meanwhile.
    let mut unfinished: Vec<Cause> = Vec::new();
    loop {
        let timeout = if unfinished.is_empty() { -1 } else { 0 };
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let ready = events[..count].iter().map(|event| match usize::try_from(event.data()) {
            // Cleared by the edge, not by reading: a counter that fills up is as good as one.
            Ok(queue) if queue < shared.kicks.len() => Cause::Queue(queue),
            _ => Cause::Event,
        });
        let mut causes: Vec<Cause> = ready.collect();
        causes.extend(unfinished.drain(..).filter(|cause| !causes.contains(cause)).collect::<Vec<_>>());
        unfinished = causes;
        unfinished.retain(|cause| shared.serve(*cause) == Progress::More);
    }
}
