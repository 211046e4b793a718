//! vhost-user: guests come and go over a Unix socket.
//!
//! Each vhost-user end has a thread of its own ([`VhostEnd`]) that accepts (or, as client, connects), then serves one
//! connection after the other; it is blocked in a read nearly always. Queues themselves run in the link's worker.
//! A connection that ends, for whatever reason, leaves the end waiting for the next.
//!
//! A VMM can have that thread wait for as long as it likes, by a descriptor that takes an hour to close, for instance. So
//! nobody waits for the thread for long; one that is left to itself can do nothing to its link or socket any more.

#![expect(
    clippy::disallowed_types,
    reason = "messages of a VMM's, not frames: its session is also reached by what comes too early"
)]

mod early;
mod features;
mod session;
mod vring;

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::counters::LinkCounters;
use crate::fault::Fault;
use crate::link::Link;
use crate::listener::{self, Listener, SocketError, WANT, wait_for};
use crate::poller::Poller;
use crate::port::{Hangup, Port, Queue, VhostPort};
use crate::worker::{Stopped, WorkerHandle};
use early::Enable;
use session::Session;

/// How long a client waits before it tries to connect again, in seconds.
const RETRY_SECONDS: i64 = 1;
/// How long nobody is served after a VMM that has made its worker wait: that took others a second.
const REST: Duration = Duration::from_secs(60);
/// A VMM that comes again and again is served so often at once, and then once in this time: each costs lines of the log.
const IN_A_ROW: u32 = 256;
const THEN_EACH: Duration = Duration::from_millis(100);
/// How long threads are waited for that are to end: much longer than any needs, unless its VMM holds it up.
pub const PARTING: Duration = Duration::from_secs(2);

/// Which side of the socket we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// We listen, the VMM connects.
    Server,
    /// The VMM listens.
    Client,
}

/// How a vhost-user end is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostSettings {
    /// The socket.
    pub socket: PathBuf,
    /// Our side of it.
    pub role: Role,
    /// The most queue pairs a guest may use.
    pub queue_pairs: NonZeroUsize,
    /// The MTU to tell the guest.
    pub mtu: Option<u16>,
}

/// A guest's port in its worker, for its session.
#[derive(Debug, Clone)]
pub struct PortHandle {
    /// The link's worker.
    pub worker: WorkerHandle,
    /// The link's place there.
    pub link: usize,
    /// Which end of the link it is.
    pub side: usize,
    /// The link is gone, or about to be: its place may be another's.
    over: Arc<AtomicBool>,
}

impl PortHandle {
    /// For one end of the link at a place of a worker.
    pub fn new(worker: WorkerHandle, link: usize, side: usize) -> Self {
        Self { worker, link, side, over: Arc::default() }
    }

    /// Runs `work` on the port between two batches, if the link still exists. What `before` does to its link happens
    /// in the same step, so that the worker never sees one without the other.
    fn with_port<T: Send + 'static>(
        &self,
        before: impl FnOnce(&mut Link, usize, &Poller) + Send + 'static,
        work: impl FnOnce(&mut VhostPort) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (link, side, over) = (self.link, self.side, Arc::clone(&self.over));
        let result = self.worker.call(move |links| {
            let (link, poller) = links.get(link).filter(|_| !over.load(Ordering::Acquire))?;
            before(link, side, poller);
            let Port::Vhost(port) = link.port(side) else { return None };
            let result = work(port);
            link.share_offloads();
            Some(result)
        })?;
        result.ok_or(Stopped)
    }

    fn connect(&self, hangup: Hangup) -> Result<(), Stopped> {
        self.with_port(|_, _, _| {}, |port| port.connect(hangup))
    }

    fn disconnect(&self) -> Result<(), Stopped> {
        self.with_port(|link, side, poller| link.unwatch_all(side, poller), VhostPort::disconnect)
    }

    fn start(&self, index: u32, queue: Queue) -> Result<(), Stopped> {
        let place = index as usize;
        self.with_port(
            move |link, side, poller| link.wake(side, place / 2, poller),
            move |port| port.start(place, queue),
        )
    }

    fn stop(&self, index: u32) -> Result<Option<u16>, Stopped> {
        let place = index as usize;
        let unwatch = move |link: &mut Link, side, poller: &Poller| {
            // Only transmit queues wake anybody.
            if !place.is_multiple_of(2) {
                link.unwatch(side, place / 2, poller);
            }
        };
        self.with_port(unwatch, move |port| port.stop(place))
    }

    fn set_call(&self, index: u32, call: Option<File>) -> Result<(), Stopped> {
        let place = index as usize;
        let set = move |port: &mut VhostPort| {
            if let Some(ring) = port.ring_mut(place) {
                ring.set_call(call);
            }
        };
        self.with_port(|_, _, _| {}, set)
    }
}

/// A vhost-user end: its socket and its thread.
#[derive(Debug)]
pub struct VhostEnd {
    over: Arc<AtomicBool>,
    stop: Arc<OwnedFd>,
    listener: Option<Arc<Listener>>,
    thread: JoinHandle<()>,
    /// Says nothing, and is disconnected when the thread has come to its end.
    running: Receiver<Infallible>,
}

impl VhostEnd {
    /// Starts serving. The link exists already.
    pub fn start(
        settings: VhostSettings,
        port: PortHandle,
        counters: Arc<LinkCounters>,
    ) -> Result<Self, SocketError> {
        let socket = settings.socket.clone();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(SocketError::io("eventfd", &socket))?;
        let stop = Arc::new(stop);
        let listener = match settings.role {
            Role::Server => Some(Arc::new(Listener::bind(&settings.socket)?)),
            Role::Client => None,
        };
        let (over, accepting) = (Arc::clone(&port.over), listener.clone());
        let end = Server { settings, port, counters, stop: Arc::clone(&stop) };
        let (runs, running) = channel();
        let run = move || {
            end.run(accepting.as_deref());
            drop(runs);
        };
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(run)
            .map_err(SocketError::io("start a thread", &socket))?;
        Ok(Self { over, stop, listener, thread, running })
    }

    /// Asks it to stop; it does once its link is removed from the worker, which hangs up. It does nothing to that link any
    /// more.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot stop a vhost-user end");
        }
    }

    /// Waits until it has, but not for longer than until `deadline`.
    pub fn join(self, deadline: Instant) {
        if let Some(listener) = &self.listener {
            listener.remove();
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        if self.running.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a VMM holds up the thread of its socket, which is left to itself");
        } else if self.thread.join().is_err() {
            tracing::error!("a vhost-user thread has panicked");
        }
    }
}

/// What the thread works with.
struct Server {
    settings: VhostSettings,
    port: PortHandle,
    counters: Arc<LinkCounters>,
    stop: Arc<OwnedFd>,
}

impl Server {
    fn run(&self, listener: Option<&Listener>) {
        let socket = self.settings.socket.display();
        let mut pace = Pace(Instant::now());
        loop {
            let stream = match listener {
                Some(listener) => listener.listener.accept().map(|(stream, _)| stream),
                None => listener::connect(&self.settings.socket),
            };
            match stream {
                Ok(stream) => {
                    tracing::info!(%socket, "connected");
                    let blocked = self.blocked();
                    if let Err(Stopped) = self.serve(stream) {
                        break;
                    }
                    tracing::info!(%socket, "disconnected");
                    let mut rest = pace.after_one_more(Instant::now());
                    if self.blocked() > blocked {
                        tracing::warn!(%socket, seconds = REST.as_secs(), "nobody is served for a while");
                        rest = REST;
                    }
                    if wait_for(&self.stop, rest) {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::debug!(%socket, %error, "no connection");
                    if wait_for(&self.stop, WANT) {
                        break;
                    }
                }
            }
            if self.stopped(listener) {
                break;
            }
        }
    }

    /// How often its VMM has made the worker wait.
    fn blocked(&self) -> u64 {
        let faults = self.counters.faults().into_iter();
        let ours = faults.filter(|(end, label, _)| *end == self.port.side && *label == Fault::CALL_BLOCKED);
        ours.map(|(.., count)| count).sum()
    }

    /// Waits for something to do: a connection to accept, or for a client the time to try again.
    fn stopped(&self, listener: Option<&Listener>) -> bool {
        let mut fds = vec![PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN)];
        if let Some(listener) = listener {
            fds.push(PollFd::from_borrowed_fd(listener.listener.as_fd(), PollFlags::IN));
        }
        let retry = Timespec { tv_sec: RETRY_SECONDS, tv_nsec: 0 };
        if let Err(error) = poll(&mut fds, listener.is_none().then_some(&retry)) {
            tracing::debug!(%error, "poll was interrupted");
        }
        fds.first().is_some_and(|stop| !stop.revents().is_empty())
    }

    /// Serves one connection until it ends.
    fn serve(&self, stream: UnixStream) -> Result<(), Stopped> {
        serve(&self.port, &self.settings, stream, |why| match why {
            ProtocolError::Disconnected | ProtocolError::SocketBroken(_) => {}
            ProtocolError::ReqHandlerError(cause) => self.refuse(cause.get_ref().map(|error| error as _)),
            other => self.refuse(Some(other)),
        })
    }

    fn refuse(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        self.counters.fault(self.port.side, "message");
        tracing::warn!(socket = %self.settings.socket.display(), error, "ending the connection");
    }
}

/// How often connections may come: when all that came are due, had they come one by one.
struct Pace(Instant);

impl Pace {
    /// How long the next is to wait, after one more.
    fn after_one_more(&mut self, now: Instant) -> Duration {
        self.0 = self.0.max(now) + THEN_EACH;
        (self.0 - now).saturating_sub(THEN_EACH * IN_A_ROW)
    }
}

/// Serves one connection; its queues have stopped when this returns. `ended` hears why, before the VMM sees that it has.
pub(crate) fn serve(
    port: &PortHandle,
    settings: &VhostSettings,
    stream: UnixStream,
    ended: impl FnOnce(&ProtocolError),
) -> Result<(), Stopped> {
    let copies = stream.set_nonblocking(false).and_then(|()| Ok((stream.try_clone()?, stream.try_clone()?)));
    let (hangup, aside) = match copies {
        Ok((copy, aside)) => (Hangup(copy), aside),
        Err(error) => {
            ended(&ProtocolError::ReqHandlerError(error));
            return Ok(());
        }
    };
    port.connect(hangup)?;
    let session = Arc::new(Mutex::new(Session::new(port.clone(), settings.clone())));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let why = loop {
        let enable = Enable::peek(&aside);
        let handled = match (handler.handle_request(), enable) {
            (Err(ProtocolError::InactiveFeature(_)), Some(enable)) => {
                let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
                enable.carry_out(&mut session, &aside)
            }
            (handled, _) => handled,
        };
        match handled {
            Ok(()) | Err(ProtocolError::SocketRetry(_)) => {}
            Err(error) => break error,
        }
    };
    ended(&why);
    port.disconnect()
}
