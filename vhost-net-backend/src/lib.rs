//! Joins guests' virtio-net rings to NICs, taps and one another, as fast as one core can.
//!
//! A packet's way: a guest's transmit ring (`ring::tx`) lends a batch of frames → `link` → the other end's sink
//! (`ring::rx`, `port::tap`, `port::xdp`) copies them out → used ring and one signal. A guest's way in: its VMM connects
//! (`vhost`), lends its memory (`memory`) and rings, which then run in a worker's thread (`worker`).
//!
//! Beside the packets: `control` changes and watches the daemon, `metrics` tells Prometheus, and [`plugin`] is the CNI plugin
//! that asks it for a pod's link.
//!
//! Guests are hostile: everything read from their memory is checked where it is read, and what contradicts itself ends
//! that guest's end of the link (`fault`), never the process and never another link.

#[cfg(test)]
mod allocations;
pub mod cli;
pub mod config;
pub mod control;
pub mod cores;
pub mod counters;
mod ctl;
pub mod daemon;
pub mod fault;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gate;
pub mod link;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod observer;
pub mod offload;
pub mod pcap;
pub mod plugin;
pub mod poller;
pub mod port;
pub mod ring;
pub mod spec;
pub mod state;
pub mod vhost;
pub mod worker;
pub mod xdp;

use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use cli::{Args, Command};
use config::Config;
use control::server::Shared;
use daemon::Daemon;
use state::State;

/// Does what the command line asks for; a daemon runs until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(Command::Ctl { control, ask }) = args.command {
        return ctl::run(&control, ask);
    }
    let file = args.daemon.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    serve(&args.daemon.over(file))
}

/// Takes as many descriptors as this process may have: a guest with 64 queue pairs has nearly 400.
fn raise_descriptors() {
    let limits = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }) {
        tracing::warn!(%error, ?limits.current, "cannot raise the number of descriptors");
    }
}

fn serve(config: &Config) -> anyhow::Result<()> {
    let Config { cores, control, state, metrics, links } = config;
    anyhow::ensure!(
        !links.is_empty() || control.is_some(),
        "nothing to do: give a link (--link, or links in --config) or a control socket (--control)"
    );
    anyhow::ensure!(state.is_none() || control.is_some(), "--state is only for links added by --control");
    // Before any thread starts, so that none of them takes the signals.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("block SIGTERM and SIGINT")?;
    memory::sigbus::install().context("handle SIGBUS")?;
    raise_descriptors();
    let state = state.clone().map(State::open).transpose()?;
    let shared = Shared::new(Daemon::start(cores.as_ref())?, state);
    let pages = metrics.map(|address| {
        metrics::Server::start(address, Arc::clone(&shared))
            .with_context(|| format!("serve metrics at {address}"))
    });
    let pages = pages.transpose()?;
    // Names of links that are remembered are not for others.
    shared.expect()?;
    for link in links {
        let name = shared.daemon().add(link).with_context(|| format!("link {link}"))?;
        tracing::info!(%name, %link, "added");
    }
    shared.restore()?;
    let control =
        control.as_deref().map(|socket| control::server::Server::start(socket, Arc::clone(&shared)));
    let control = control.transpose().context("control socket")?;
    if let Some(pages) = &pages {
        pages.set_ready();
    }
    let at = config.control.as_deref().map(|socket| tracing::field::display(socket.display()));
    tracing::info!(
        links = shared.daemon().counters().len(),
        control = at,
        version = telemetry::VERSION,
        "serving"
    );
    let signal = signals.wait().context("wait for SIGTERM")?;
    tracing::info!(%signal, "stopping");
    drop((control, pages));
    shared.daemon().stop();
    Ok(())
}
