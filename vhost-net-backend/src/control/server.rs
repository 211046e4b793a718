//! The daemon's side of the control socket: a thread that accepts, and one for each connection.
#![expect(clippy::disallowed_types, reason = "requests, not frames: one at a time changes the daemon")]

use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::message::{
    AddressInfo, Answer, Command, DirectionStats, Done, EndInfo, ErrorCode, LinkInfo, LinkStats, MAX_REQUEST,
    Outcome, Request, VERSION,
};
use crate::daemon::{Daemon, DaemonError, LinkReport};
use crate::frame::MAX_FRAME;
use crate::listener::{Acceptor, Listener, SocketError};
use crate::mirror::{Seen, Viewer};
use crate::observer::Observed;
use crate::pcap;
use crate::spec::{LinkName, LinkSpec};
use crate::state::{State, StateError};

/// Connections at once.
const CONNECTIONS: usize = 32;
/// How long a client may take to say what it wants, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a capture looks whether anybody still reads it.
const LOOK: Duration = Duration::from_millis(200);

/// A daemon and what it remembers, for whoever changes it.
#[derive(Debug)]
pub struct Shared {
    daemon: Mutex<Daemon>,
    state: Option<State>,
    connections: AtomicUsize,
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
}

impl RequestError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Json(_) | Self::Spec(_) => ErrorCode::BadRequest,
            Self::Version(_) => ErrorCode::Version,
            Self::Daemon(DaemonError::Exists(_)) => ErrorCode::Exists,
            Self::Daemon(DaemonError::NoSuchLink(_)) => ErrorCode::NoSuchLink,
            Self::Daemon(_) | Self::State(_) => ErrorCode::Failed,
        }
    }
}

impl Shared {
    /// Shares a daemon.
    pub fn new(daemon: Daemon, state: Option<State>) -> Arc<Self> {
        Arc::new(Self { daemon: Mutex::new(daemon), state, connections: AtomicUsize::new(0) })
    }

    /// The daemon, while nobody else changes it.
    pub fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was added before the daemon ended. What cannot be is logged, and stays remembered until it is removed.
    pub fn restore(&self) -> Result<(), StateError> {
        let Some(state) = &self.state else { return Ok(()) };
        for link in state.load()? {
            match self.daemon().add(&link) {
                Ok(name) => tracing::info!(%name, %link, "added again"),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(%link, error, "cannot be added again");
                }
            }
        }
        Ok(())
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
    fn carry_out(&self, line: &[u8]) -> Result<(Done, Option<(Viewer, u32)>), RequestError> {
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
            Command::List { name: None } => Done::Links(self.daemon().report().iter().map(info).collect()),
            Command::List { name: Some(name) } => {
                Done::Links(self.daemon().report_one(&name).iter().map(info).collect())
            }
            Command::Stats { name } => self.stats(name)?,
            Command::Capture { name, snap } => {
                let snap = snap.unwrap_or(MAX_FRAME).min(MAX_FRAME);
                let viewer = self.daemon().capture(&name, snap as usize)?;
                return Ok((Done::Capturing(name), Some((viewer, snap))));
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

fn accept(shared: &Arc<Shared>, stream: UnixStream) {
    if shared.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
        shared.connections.fetch_sub(1, Ordering::AcqRel);
        tracing::warn!("too many control connections at once: one is refused");
        return;
    }
    let for_thread = Arc::clone(shared);
    let serve = move || {
        if let Err(error) = connection(&for_thread, &stream) {
            tracing::debug!(%error, "control connection");
        }
        for_thread.connections.fetch_sub(1, Ordering::AcqRel);
    };
    if let Err(error) = std::thread::Builder::new().name("control-client".to_owned()).spawn(serve) {
        shared.connections.fetch_sub(1, Ordering::AcqRel);
        tracing::error!(%error, "cannot start a thread for a control connection");
    }
}

fn connection(shared: &Shared, stream: &UnixStream) -> io::Result<()> {
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
    match frames {
        Some((viewer, snap)) => capture(&viewer, snap, &mut to, stream),
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
    loop {
        match viewer.next(LOOK) {
            Seen::Frame(record) => {
                pcap::frame(to, &record)?;
                viewer.give_back(record);
            }
            // Nothing more is coming for now.
            Seen::Nothing => {
                to.flush()?;
                if hung_up(stream)? {
                    return Ok(());
                }
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
    LinkInfo { name: name.clone(), core: *core, ends: [end(0), end(1)] }
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
