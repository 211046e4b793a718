//! The daemon: workers, links and their ends, from start to stop.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netns::{NetNs, NetNsError};

use crate::cores::{AllowedError, Cores};
use crate::counters::LinkCounters;
use crate::fault::Fault;
use crate::link::{Link, NewLink};
use crate::listener::SocketError;
use crate::mirror::{Viewer, mirror};
use crate::observer::{Observed, Observer};
use crate::port::{Port, TapPort, VhostPort, XdpPort};
use crate::spec::{EndKind, EndSpec, LinkName, LinkSpec};
use crate::vhost::{PARTING, PortHandle, VhostEnd};
use crate::worker::{Stopped, Worker, WorkerHandle};
use crate::xdp::XdpError;

/// How long a worker may take to answer before it counts as stuck: thousands of batches.
const ALIVE: Duration = Duration::from_secs(2);

/// The daemon cannot run, or cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A worker cannot run where it should.
    #[error(transparent)]
    Cores(#[from] AllowedError),
    /// A worker did not start.
    #[error("cannot start a worker")]
    Worker(#[source] Fault),
    /// The observer did not start.
    #[error("cannot start the observer")]
    Observer(#[source] std::io::Error),
    /// A tap cannot be opened.
    #[error("cannot open a tap")]
    Tap(#[from] tap::TapError),
    /// An AF_XDP end cannot be set up.
    #[error("cannot use a NIC by AF_XDP")]
    Xdp(#[from] XdpError),
    /// The network namespace of an end cannot be entered.
    #[error("cannot enter the network namespace of an end")]
    NetNs(#[from] NetNsError),
    /// A vhost-user end cannot be set up.
    #[error("cannot set up a vhost-user end")]
    Vhost(#[from] SocketError),
    /// A worker has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The name is taken.
    #[error("there is a link {0} already")]
    Exists(LinkName),
    /// Another link has an end that only one can have.
    #[error("{end} is an end of link {link}")]
    Taken {
        /// The end.
        end: EndSpec,
        /// Whose it is.
        link: LinkName,
    },
    /// There is no such link.
    #[error("there is no link {0}")]
    NoSuchLink(LinkName),
}

/// A link that runs.
#[derive(Debug)]
struct Running {
    name: LinkName,
    spec: LinkSpec,
    /// Never used again.
    id: u64,
    /// Which of the workers.
    at: usize,
    worker: WorkerHandle,
    place: usize,
    ends: Vec<VhostEnd>,
    counters: Arc<LinkCounters>,
}

/// What is to be said of a link.
#[derive(Debug)]
pub struct LinkReport {
    /// Its name.
    pub name: LinkName,
    /// As it was asked for.
    pub spec: LinkSpec,
    /// The CPU it runs on; `None`: any.
    pub core: Option<usize>,
    /// Whether each end can be sent to: a guest that is connected and receives, a device that has not failed.
    pub running: [bool; 2],
    /// What each end has shown of its addresses; only of ends that are observed.
    pub addresses: [Vec<Observed>; 2],
    /// What it counted.
    pub counters: Arc<LinkCounters>,
}

/// A link that is to be there and is not.
#[derive(Debug, Clone)]
pub struct LostLink {
    /// Its name. A link without one that is added gets another.
    pub name: LinkName,
    /// As it was asked for.
    pub spec: LinkSpec,
    /// Why it is not.
    pub reason: String,
}

/// Workers and the links they run.
#[derive(Debug)]
pub struct Daemon {
    workers: Vec<(Worker, Option<usize>)>,
    links: Vec<Running>,
    lost: Vec<LostLink>,
    observer: Observer,
    next_id: u64,
}

impl Daemon {
    /// Starts the workers, without links.
    pub fn start(cores: Option<&Cores>) -> Result<Self, DaemonError> {
        cores.map_or(Ok(()), Cores::check)?;
        let places: Vec<Option<usize>> = match cores {
            Some(Cores(cores)) => cores.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let start = |core| Worker::start(core).map(|worker| (worker, core)).map_err(DaemonError::Worker);
        let workers = places.into_iter().map(start).collect::<Result<_, _>>()?;
        let observer = Observer::start().map_err(DaemonError::Observer)?;
        Ok(Self { workers, links: Vec::new(), lost: Vec::new(), observer, next_id: 0 })
    }

    /// Adds a link, to the worker that has fewest; says what it is called.
    ///
    /// # Errors
    /// An end that cannot be set up, or a name that is taken; then nothing has changed.
    pub fn add(&mut self, spec: &LinkSpec) -> Result<LinkName, DaemonError> {
        let name = self.name_for(spec)?;
        self.check_free(spec)?;
        let load = |at: &usize| self.links.iter().filter(|link| link.at == *at).count();
        let at = (0..self.workers.len()).min_by_key(load).ok_or(Stopped)?;
        let worker = self.workers.get(at).ok_or(Stopped)?.0.handle().clone();
        let [first, second] = &spec.ends;
        let ports = [open(first)?, open(second)?];
        let (id, counters) = (self.next_id, Arc::new(LinkCounters::default()));
        self.next_id += 1;
        let sentinel = |side: usize| spec.ends[side].observe.then(|| self.observer.sentinel((id, side)));
        let link = Link::new(NewLink {
            name: name.to_string(),
            ports,
            policies: spec.ends.each_ref().map(|end| end.policy),
            sentinels: [sentinel(0), sentinel(1)],
            counters: Arc::clone(&counters),
        });
        let place = worker.call(|links| links.add(link))?;
        let mut running = Running {
            name: name.clone(),
            spec: spec.clone(),
            id,
            at,
            worker,
            place,
            ends: Vec::new(),
            counters,
        };
        if let Err(error) = running.serve() {
            self.retire(vec![running]);
            return Err(error.into());
        }
        self.links.push(running);
        self.lost.retain(|lost| lost.name != name);
        Ok(name)
    }

    /// Keeps a link's name for it, and tells of it, until it is added or removed. One that runs is not lost.
    pub fn lose(&mut self, link: LostLink) {
        self.lost.retain(|lost| lost.name != link.name);
        if self.place(&link.name).is_err() {
            self.lost.push(link);
        }
    }

    /// Links that are to be there and are not.
    pub fn lost(&self) -> &[LostLink] {
        &self.lost
    }

    /// Ends a link.
    ///
    /// # Errors
    /// [`DaemonError::NoSuchLink`].
    pub fn remove(&mut self, name: &LinkName) -> Result<(), DaemonError> {
        self.lost.retain(|lost| lost.name != *name);
        let place = self.place(name)?;
        let running = self.links.remove(place);
        self.retire(vec![running]);
        Ok(())
    }

    /// All links, in the order they were added.
    pub fn report(&self) -> Vec<LinkReport> {
        self.links.iter().map(|link| self.report_of(link)).collect()
    }

    /// One link; none if there is none of that name.
    pub fn report_one(&self, name: &LinkName) -> Option<LinkReport> {
        self.place(name).ok().and_then(|place| self.links.get(place)).map(|link| self.report_of(link))
    }

    /// Copies a link's frames, at most `snap` bytes of each, until the viewer is dropped.
    pub fn capture(&self, name: &LinkName, snap: usize) -> Result<Viewer, DaemonError> {
        let running = self.links.get(self.place(name)?).ok_or(Stopped)?;
        let (mirror, viewer) = mirror(snap);
        let place = running.place;
        running.worker.call(move |links| {
            if let Some((link, _)) = links.get(place) {
                link.capture(mirror);
            }
        })?;
        Ok(viewer)
    }

    /// Whether every worker answers.
    pub fn is_alive(&self) -> bool {
        self.workers.iter().all(|(worker, _)| worker.handle().answers_within(ALIVE))
    }

    /// Each worker's CPU, if it has one of its own, and how long it has been at work.
    pub fn load(&self) -> Vec<(Option<usize>, Duration)> {
        self.workers.iter().map(|(worker, core)| (*core, worker.handle().busy())).collect()
    }

    /// What each link counted, in the order they were added.
    pub fn counters(&self) -> Vec<Arc<LinkCounters>> {
        self.links.iter().map(|link| Arc::clone(&link.counters)).collect()
    }

    /// Ends all links and workers.
    pub fn stop(&mut self) {
        let links = std::mem::take(&mut self.links);
        self.retire(links);
        for (worker, _) in std::mem::take(&mut self.workers) {
            worker.stop();
        }
    }

    fn name_for(&self, spec: &LinkSpec) -> Result<LinkName, DaemonError> {
        let taken = |name: &LinkName| self.links.iter().any(|link| link.name == *name);
        let lost = |name: &LinkName| self.lost.iter().any(|link| link.name == *name);
        match &spec.name {
            Some(name) if taken(name) => Err(DaemonError::Exists(name.clone())),
            Some(name) => Ok(name.clone()),
            None => {
                // One more than there are links is always free.
                let numbered = (0..=self.links.len() + self.lost.len())
                    .filter_map(|number| format!("link{number}").parse().ok());
                numbered.into_iter().find(|name| !taken(name) && !lost(name)).ok_or_else(|| Stopped.into())
            }
        }
    }

    /// No two links share a device or a socket. The kernel would refuse it as well, but not know whose they are.
    fn check_free(&self, spec: &LinkSpec) -> Result<(), DaemonError> {
        let links = self.links.iter().flat_map(|link| link.spec.ends.iter().map(move |end| (link, end)));
        for (link, theirs) in links {
            if let Some(end) = spec.ends.iter().find(|end| end.is_same_as(theirs)) {
                return Err(DaemonError::Taken { end: end.clone(), link: link.name.clone() });
            }
        }
        Ok(())
    }

    fn place(&self, name: &LinkName) -> Result<usize, DaemonError> {
        let place = self.links.iter().position(|link| link.name == *name);
        place.ok_or_else(|| DaemonError::NoSuchLink(name.clone()))
    }

    fn report_of(&self, link: &Running) -> LinkReport {
        let place = link.place;
        let running = link.worker.call(move |links| links.get(place).map(|(link, _)| link.running()));
        LinkReport {
            name: link.name.clone(),
            spec: link.spec.clone(),
            core: self.workers.get(link.at).and_then(|(_, core)| *core),
            running: running.ok().flatten().unwrap_or_default(),
            addresses: [0, 1].map(|side| self.observer.addresses((link.id, side))),
            counters: Arc::clone(&link.counters),
        }
    }

    /// Ends links. Their sockets' threads are waited for together.
    fn retire(&self, links: Vec<Running>) {
        for Running { worker, place, ends, .. } in &links {
            ends.iter().for_each(VhostEnd::stop);
            let place = *place;
            if let Err(error) = worker.call(move |links| links.remove(place)) {
                tracing::error!(%error, "cannot remove a link");
            }
        }
        let deadline = Instant::now() + PARTING;
        for Running { ends, id, .. } in links {
            ends.into_iter().for_each(|end| end.join(deadline));
            [0, 1].into_iter().for_each(|side| self.observer.forget((id, side)));
        }
    }
}

impl Running {
    /// Starts its vhost-user ends.
    fn serve(&mut self) -> Result<(), SocketError> {
        for (side, end) in self.spec.ends.iter().enumerate() {
            let EndKind::VhostUser(settings) = &end.kind else { continue };
            let port = PortHandle::new(self.worker.clone(), self.place, side);
            self.ends.push(VhostEnd::start(settings.clone(), port, Arc::clone(&self.counters))?);
        }
        Ok(())
    }
}

fn open(end: &EndSpec) -> Result<Port, DaemonError> {
    Ok(match &end.kind {
        EndKind::VhostUser(settings) => Port::Vhost(VhostPort::new(settings.queue_pairs.get())),
        EndKind::Tap(settings) => {
            Port::Tap(inside(settings.netns.as_deref(), || TapPort::open(&settings.name))??)
        }
        EndKind::AfXdp(settings) => {
            Port::Xdp(inside(settings.netns.as_deref(), || XdpPort::open(settings))??)
        }
    })
}

/// Does something in a network namespace. What was opened there is used from anywhere.
fn inside<T>(netns: Option<&Path>, work: impl FnOnce() -> T) -> Result<T, NetNsError> {
    match netns {
        None => Ok(work()),
        Some(path) => NetNs::open(path)?.run(work),
    }
}

#[cfg(test)]
pub(crate) mod fake_vm;
#[cfg(test)]
mod tests;
