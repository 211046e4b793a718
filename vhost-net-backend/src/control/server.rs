//! The daemon's side of the control socket: a thread that accepts, and one for each connection.
#![expect(clippy::disallowed_types, reason = "requests, not frames: one at a time changes the daemon")]

use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::message::{
    AddressInfo, Answer, Command, DirectionStats, Done, EndInfo, ErrorCode, LinkInfo, LinkStats, MAX_REQUEST,
    Outcome, Request, VERSION,
};
use crate::daemon::{Daemon, DaemonError, LinkReport, LostLink};
use crate::frame::MAX_FRAME;
use crate::listener::{Acceptor, Listener, SocketError};
use crate::mirror::{Seen, Viewer};
use crate::observer::Observed;
use crate::pcap;
use crate::spec::{LinkName, LinkSpec};
use crate::state::{State, StateError};

/// Requests at once. The next waits until one of them is answered, which takes twice [`PATIENCE`] at most.
const REQUESTS: usize = 32;
/// Captures at once, beside those: they last as long as their clients like.
const CAPTURES: usize = 16;
/// How long a client may take to say what it wants, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a capture looks whether anybody still reads it.
const LOOK: Duration = Duration::from_millis(200);

/// A daemon and what it remembers, for whoever changes it.
#[derive(Debug)]
pub struct Shared {
    daemon: Mutex<Daemon>,
    state: Option<State>,
    requests: Arc<Places>,
    captures: Arc<Places>,
}

/// So many at once.
#[derive(Debug)]
struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, until dropped.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Places {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(count), freed: Condvar::new() })
    }

    /// One that is free within that time.
    fn take(self: &Arc<Self>, patience: Duration) -> Option<Place> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.freed.wait_timeout_while(free, patience, |free| *free == 0);
        let (mut free, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(1)?;
        Some(Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// What went wrong with a request.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("the request cannot be read")]
    Json(#[from] serde_json::Error),
    #[error("the request has version {0}; {VERSION} is known")]
    Version(u32),
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error("cannot remember the link")]
    State(#[from] StateError),
    #[error("there are {CAPTURES} captures already")]
    Captures,
}

impl RequestError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Json(_) | Self::Spec(_) => ErrorCode::BadRequest,
            Self::Version(_) => ErrorCode::Version,
            Self::Daemon(DaemonError::Exists(_)) => ErrorCode::Exists,
            Self::Daemon(DaemonError::NoSuchLink(_)) => ErrorCode::NoSuchLink,
            Self::Daemon(_) | Self::State(_) | Self::Captures => ErrorCode::Failed,
        }
    }
}

/// Frames to send.
struct Capture {
    viewer: Viewer,
    snap: u32,
    _place: Place,
}

impl Shared {
    /// Shares a daemon.
    pub fn new(daemon: Daemon, state: Option<State>) -> Arc<Self> {
        let (requests, captures) = (Places::new(REQUESTS), Places::new(CAPTURES));
        Arc::new(Self { daemon: Mutex::new(daemon), state, requests, captures })
    }

    /// The daemon, while nobody else changes it.
    pub fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the names of what was added before the daemon ended, for [`restore`](Self::restore).
    pub fn expect(&self) -> Result<(), StateError> {
        let Some(state) = &self.state else { return Ok(()) };
        state.load()?.into_iter().for_each(|link| self.lose(link, "it is still to be added".to_owned()));
        Ok(())
    }

    /// Adds what was added before the daemon ended. What cannot be is logged, and stays remembered until it is removed.
    pub fn restore(&self) -> Result<(), StateError> {
        let Some(state) = &self.state else { return Ok(()) };
        for link in state.load()? {
            let added = self.daemon().add(&link);
            match added {
                Ok(name) => tracing::info!(%name, %link, "added again"),
                Err(error) => {
                    let reason = telemetry::chain(&error).to_string();
                    tracing::error!(%link, reason, "cannot be added again");
                    self.lose(link, reason);
                }
            }
        }
        Ok(())
    }

    fn lose(&self, spec: LinkSpec, reason: String) {
        if let Some(name) = spec.name.clone() {
            self.daemon().lose(LostLink { name, spec, reason });
        }
    }

    /// Links that run, then those that are to and do not; all, or one.
    fn list(&self, wanted: Option<&LinkName>) -> Vec<LinkInfo> {
        let daemon = self.daemon();
        let running = match wanted {
            None => daemon.report(),
            Some(name) => daemon.report_one(name).into_iter().collect(),
        };
        let lost = daemon.lost().iter().filter(|lost| wanted.is_none_or(|name| lost.name == *name));
        running.iter().map(info).chain(lost.map(lost_info)).collect()
    }

    fn add(&self, name: Option<LinkName>, ends: &str) -> Result<Done, RequestError> {
        let mut link: LinkSpec = ends.parse()?;
        link.name = name.or(link.name);
        let mut daemon = self.daemon();
        let name = daemon.add(&link)?;
        if let Some(state) = &self.state
            && let Err(error) = state.save(&name, &link)
        {
            daemon.remove(&name)?;
            return Err(error.into());
        }
        tracing::info!(%name, %link, "added");
        Ok(Done::Added(name))
    }

    fn remove(&self, name: LinkName) -> Result<Done, RequestError> {
        let removed = self.daemon().remove(&name);
        let forgotten = self.state.as_ref().map_or(Ok(false), |state| state.forget(&name))?;
        match removed {
            // It was only remembered: it could not be added again after a restart.
            Err(DaemonError::NoSuchLink(_)) if forgotten => {}
            other => other?,
        }
        tracing::info!(%name, "removed");
        Ok(Done::Removed(name))
    }

    fn stats(&self, name: Option<LinkName>) -> Result<Done, RequestError> {
        let reports = self.daemon().report();
        match name {
            None => Ok(Done::Stats(reports.iter().map(stats).collect())),
            Some(name) => match reports.iter().find(|report| report.name == name) {
                Some(report) => Ok(Done::Stats(vec![stats(report)])),
                None => Err(DaemonError::NoSuchLink(name).into()),
            },
        }
    }

    /// Does what was asked for; frames to send after the answer, if any.
    fn carry_out(&self, line: &[u8]) -> Result<(Done, Option<Capture>), RequestError> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(line)?;
        if version != VERSION {
            return Err(RequestError::Version(version));
        }
        let Request { command, .. } = serde_json::from_slice(line)?;
        let done = match command {
            Command::Add { name, ends } => self.add(name, &ends)?,
            Command::Remove { name } => self.remove(name)?,
            Command::List { name } => Done::Links(self.list(name.as_ref())),
            Command::Stats { name } => self.stats(name)?,
            Command::Capture { name, snap } => {
                let snap = snap.unwrap_or(MAX_FRAME).min(MAX_FRAME);
                let place = self.captures.take(Duration::ZERO).ok_or(RequestError::Captures)?;
                let viewer = self.daemon().capture(&name, snap as usize)?;
                return Ok((Done::Capturing(name), Some(Capture { viewer, snap, _place: place })));
            }
        };
        Ok((done, None))
    }
}

/// A control socket that is served until dropped.
#[derive(Debug)]
pub struct Server {
    _end: Acceptor,
}

impl Server {
    /// Listens at `socket`, for its owner only.
    pub fn start(socket: &Path, shared: Arc<Shared>) -> Result<Self, SocketError> {
        if let Some(folder) = socket.parent() {
            std::fs::create_dir_all(folder).map_err(SocketError::io("create the folder", socket))?;
        }
        let listener = Listener::bind(socket)?;
        let owner = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(socket, owner).map_err(SocketError::io("chmod", socket))?;
        let end = Acceptor::start("control", listener, move |stream| accept(&shared, stream))?;
        Ok(Self { _end: end })
    }
}

/// Serves a connection in a thread of its own, once there is a place; others wait in the socket's queue meanwhile.
fn accept(shared: &Arc<Shared>, stream: UnixStream) {
    let Some(place) = shared.requests.take(2 * PATIENCE) else {
        tracing::warn!("too many control connections at once: one is refused");
        return;
    };
    let for_thread = Arc::clone(shared);
    let serve = move || {
        if let Err(error) = connection(&for_thread, &stream, place) {
            tracing::debug!(%error, "control connection");
        }
    };
    if let Err(error) = std::thread::Builder::new().name("control-client".to_owned()).spawn(serve) {
        tracing::error!(%error, "cannot start a thread for a control connection");
    }
}

fn connection(shared: &Shared, stream: &UnixStream, place: Place) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = request(stream)?;
    let (outcome, frames) = match shared.carry_out(&line) {
        Ok((done, frames)) => (Outcome::Done(done), frames),
        Err(error) => {
            (Outcome::Error { code: error.code(), message: telemetry::chain(&error).to_string() }, None)
        }
    };
    let mut to = BufWriter::new(stream);
    serde_json::to_writer(&mut to, &Answer { version: VERSION, outcome })?;
    to.write_all(b"\n")?;
    to.flush()?;
    drop(place);
    match frames {
        Some(Capture { viewer, snap, .. }) => capture(&viewer, snap, &mut to, stream),
        None => Ok(()),
    }
}

/// Reads a request: a line, or what there is when the client ends, in the time that it has for all of it.
fn request(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let (mut line, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let room = part.len().min(MAX_REQUEST - line.len());
        let count = stream.read(part.get_mut(..room).unwrap_or_default())?;
        let new = part.get(..count).unwrap_or_default();
        let end = new.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(new.get(..end.unwrap_or(count)).unwrap_or_default());
        if end.is_some() || count == 0 {
            return Ok(line);
        }
    }
}

/// Writes frames until the client hangs up or the link is gone.
fn capture(viewer: &Viewer, snap: u32, to: &mut impl Write, stream: &UnixStream) -> io::Result<()> {
    pcap::head(to, snap)?;
    to.flush()?;
    let result = frames(viewer, to, stream);
    if viewer.missed() > 0 {
        tracing::warn!(missed = viewer.missed(), "a capture was too slow for all frames");
    }
    result
}

fn frames(viewer: &Viewer, to: &mut impl Write, stream: &UnixStream) -> io::Result<()> {
    let mut wait = LOOK;
    loop {
        match viewer.next(wait) {
            Seen::Frame(record) => {
                pcap::frame(to, &record)?;
                viewer.give_back(record);
                wait = Duration::ZERO;
            }
            // Nothing more is there for now: what was written is to be seen.
            Seen::Nothing => {
                to.flush()?;
                if hung_up(stream)? {
                    return Ok(());
                }
                wait = LOOK;
            }
            Seen::End => return to.flush(),
        }
    }
}

fn hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

fn info(report: &LinkReport) -> LinkInfo {
    let LinkReport { name, spec, core, running, addresses, counters: _ } = report;
    let end = |side: usize| EndInfo {
        end: spec.ends[side].text.clone(),
        running: running[side],
        addresses: addresses[side].iter().map(address).collect(),
    };
    LinkInfo { name: name.clone(), core: *core, ends: [end(0), end(1)], error: None }
}

fn lost_info(lost: &LostLink) -> LinkInfo {
    let LostLink { name, spec, reason } = lost;
    let ends = spec.ends.each_ref().map(|end| EndInfo {
        end: end.text.clone(),
        running: false,
        addresses: Vec::new(),
    });
    LinkInfo { name: name.clone(), core: None, ends, error: Some(reason.clone()) }
}

fn address(observed: &Observed) -> AddressInfo {
    let Observed { address, mac, seen } = *observed;
    let age = SystemTime::now().duration_since(seen).unwrap_or_default().as_secs();
    AddressInfo { address, mac, age }
}

fn stats(report: &LinkReport) -> LinkStats {
    let direction = |side: usize| {
        let counted = &report.counters.directions[side];
        let drops = counted.drops.each().into_iter().map(|(reason, count)| (reason.to_owned(), count));
        DirectionStats {
            from: report.spec.ends[side].to_string(),
            packets: counted.packets.get(),
            bytes: counted.bytes.get(),
            batches: counted.batches.get(),
            kicks: counted.wakes.get(),
            drops: drops.collect(),
        }
    };
    let mut faults = [const { std::collections::BTreeMap::new() }; 2];
    for (end, label, count) in report.counters.faults() {
        if let Some(faults) = faults.get_mut(end) {
            faults.insert(label.to_owned(), count);
        }
    }
    LinkStats { name: report.name.clone(), directions: [direction(0), direction(1)], faults }
}
