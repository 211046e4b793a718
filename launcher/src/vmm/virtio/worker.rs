//! A server's thread: waits for notifications of the guest and for the server's own events, and calls it.
//!
//! The thread is started with the machine, before the filter on system calls, and idles until a driver is ready.
//! Server and live queues are behind one lock, taken once per wake-up here, and by a vCPU only to activate or reset.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Cause, Progress, Queues, Server};
use crate::vmm::VmmError;
use crate::vmm::outcome::{DeathWatch, End, Outcome};

/// The epoll value of the server's own event; queues have their number.
const EVENT: u64 = u64::MAX;

/// What the thread and the transport share.
pub(super) struct Lane(Mutex<State>);

/// The server, and its queues while a driver is ready.
pub(super) struct State {
    pub(super) server: Box<dyn Server>,
    pub(super) queues: Option<Queues>,
}

impl Lane {
    pub(super) fn new(server: Box<dyn Server>) -> Self {
        Self(Mutex::new(State { server, queues: None }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the server, if a driver is ready.
    fn serve(&self, cause: Cause) -> Progress {
        match &mut *self.state() {
            State { server, queues: Some(queues) } => server.serve(cause, queues),
            State { queues: None, .. } => Progress::Done,
        }
    }
}

/// Starts the thread, and waits until it is through its beginnings; none if the server has nothing to wait for. It ends
/// with the process; a panic in it ends the run. `kicks` are the guest's notifications, one per queue of the device.
pub(super) fn spawn(lane: Arc<Lane>, kicks: Arc<[EventFd]>, name: &'static str, end: End) -> io::Result<()> {
    let (hears, event_fd) = {
        let server = &lane.state().server;
        (server.hears(), server.event_fd())
    };
    if hears.is_empty() && event_fd.is_none() {
        return Ok(());
    }
    let epoll = Epoll::new()?;
    let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
    for (queue, kick) in kicks.iter().enumerate().filter(|(queue, _)| hears.contains(queue)) {
        epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), EpollEvent::new(edges, queue as u64))?;
    }
    if let Some(fd) = event_fd {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(edges | EventSet::OUT, EVENT))?;
    }
    let ready = Arc::new(Barrier::new(2));
    let begun = Arc::clone(&ready);
    thread::Builder::new().name(name.into()).spawn(move || {
        begun.wait();
        let _watch = DeathWatch::new(end.clone(), VmmError::DeviceDied { name });
        let source = run(&epoll, &lane);
        // The notifications lived as long as they were waited for.
        drop(kicks);
        end.come(Outcome::Failed(VmmError::Epoll(source)));
    })?;
    ready.wait();
    Ok(())
}

/// Serves until waiting fails.
fn run(epoll: &Epoll, lane: &Lane) -> io::Error {
    let mut events = [EpollEvent::default(); 8];
    // What had more to do, and gets its turn after everything that has become ready meanwhile.
    let mut unfinished: Vec<Cause> = Vec::new();
    loop {
        let timeout = if unfinished.is_empty() { -1 } else { 0 };
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return error,
        };
        let ready = events[..count].iter().map(|event| match usize::try_from(event.data()) {
            // Cleared by the edge, not by reading: a counter that fills up is as good as one.
            Ok(queue) if event.data() != EVENT => Cause::Queue(queue),
            _ => Cause::Event,
        });
        let mut causes: Vec<Cause> = ready.collect();
        causes.extend(unfinished.drain(..).filter(|cause| !causes.contains(cause)).collect::<Vec<_>>());
        unfinished = causes;
        unfinished.retain(|cause| lane.serve(*cause) == Progress::More);
    }
}
