//! The daemon: workers, links and their ends, from start to stop.

use std::sync::Arc;

use crate::cores::Cores;
use crate::counters::LinkCounters;
use crate::fault::Fault;
use crate::link::Link;
use crate::port::{Port, TapPort, VhostPort, XdpPort};
use crate::spec::{EndSpec, LinkSpec};
use crate::vhost::{PortHandle, VhostEnd, VhostError};
use crate::worker::{Stopped, Worker, WorkerHandle};
use crate::xdp::XdpError;

/// The daemon cannot run, or cannot have a link.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A worker did not start.
    #[error("cannot start a worker")]
    Worker(#[source] Fault),
    /// A tap cannot be opened.
    #[error("cannot open a tap")]
    Tap(#[from] tap::TapError),
    /// An AF_XDP end cannot be set up.
    #[error("cannot use a NIC by AF_XDP")]
    Xdp(#[from] XdpError),
    /// A vhost-user end cannot be set up.
    #[error("cannot set up a vhost-user end")]
    Vhost(#[from] VhostError),
    /// A worker has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A link that runs.
#[derive(Debug)]
struct Running {
    worker: WorkerHandle,
    place: usize,
    ends: Vec<VhostEnd>,
    counters: Arc<LinkCounters>,
}

/// Workers and the links they run.
#[derive(Debug)]
pub struct Daemon {
    workers: Vec<Worker>,
    links: Vec<Running>,
}

impl Daemon {
    /// Starts the workers, without links.
    pub fn start(cores: Option<&Cores>) -> Result<Self, DaemonError> {
        let places: Vec<Option<usize>> = match cores {
            Some(Cores(cores)) => cores.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let workers = places.into_iter().map(Worker::start).collect::<Result<_, _>>();
        Ok(Self { workers: workers.map_err(DaemonError::Worker)?, links: Vec::new() })
    }

    /// Adds a link, to the worker whose turn it is.
    ///
    /// # Errors
    /// An end that cannot be set up; then there is no link, and the others go on.
    pub fn add(&mut self, spec: &LinkSpec) -> Result<(), DaemonError> {
        let Some(worker) = self.workers.get(self.links.len() % self.workers.len().max(1)) else {
            return Err(Stopped.into());
        };
        let worker = worker.handle().clone();
        let [first, second] = &spec.ends;
        let ports = [open(first)?, open(second)?];
        let counters = Arc::new(LinkCounters::default());
        let link = Link::new(spec.to_string(), ports, Arc::clone(&counters));
        let place = worker.call(|links| links.add(link))?;
        let mut running = Running { worker, place, ends: Vec::new(), counters };
        for (side, end) in spec.ends.iter().enumerate() {
            let EndSpec::VhostUser(settings) = end else { continue };
            let port = PortHandle { worker: running.worker.clone(), link: place, side };
            match VhostEnd::start(settings.clone(), port, Arc::clone(&running.counters)) {
                Ok(end) => running.ends.push(end),
                Err(error) => {
                    running.stop();
                    return Err(error.into());
                }
            }
        }
        self.links.push(running);
        Ok(())
    }

    /// What each link counted, in the order they were added.
    pub fn counters(&self) -> Vec<Arc<LinkCounters>> {
        self.links.iter().map(|link| Arc::clone(&link.counters)).collect()
    }

    /// Ends all links and workers.
    pub fn stop(self) {
        self.links.into_iter().for_each(Running::stop);
        self.workers.into_iter().for_each(Worker::stop);
    }
}

impl Running {
    fn stop(self) {
        let Self { worker, place, ends, counters: _ } = self;
        ends.iter().for_each(VhostEnd::stop);
        if let Err(error) = worker.call(move |links| links.remove(place)) {
            tracing::error!(%error, "cannot remove a link");
        }
        ends.into_iter().for_each(VhostEnd::join);
    }
}

fn open(end: &EndSpec) -> Result<Port, DaemonError> {
    Ok(match end {
        EndSpec::VhostUser(settings) => Port::Vhost(VhostPort::new(settings.queue_pairs.get())),
        EndSpec::Tap(name) => Port::Tap(TapPort::open(name)?),
        EndSpec::AfXdp(settings) => Port::Xdp(XdpPort::open(settings)?),
    })
}

#[cfg(test)]
mod fake_vm;
#[cfg(test)]
mod tests;
