//! Joins guests' virtio-net rings to NICs, taps and one another, as fast as one core can.
//!
//! A packet's way: a guest's transmit ring (`ring::tx`) lends a batch of frames → `link` → the other end's sink
//! (`ring::rx`, `port::tap`, `port::xdp`) copies them out → used ring and one signal. A guest's way in: its VMM connects
//! (`vhost`), lends its memory (`memory`) and rings, which then run in a worker's thread (`worker`).
//!
//! Guests are hostile: everything read from their memory is checked where it is read, and what contradicts itself ends
//! that guest's end of the link (`fault`), never the process and never another link.

pub mod cli;
pub mod cores;
pub mod counters;
pub mod daemon;
pub mod fault;
pub mod frame;
pub mod link;
pub mod memory;
pub mod offload;
pub mod poller;
pub mod port;
pub mod ring;
pub mod spec;
pub mod vhost;
pub mod worker;
pub mod xdp;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

use cli::Args;
use daemon::Daemon;

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // Before any thread starts, so that none of them takes the signals.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("block SIGTERM and SIGINT")?;
    memory::sigbus::install().context("handle SIGBUS")?;
    let mut daemon = Daemon::start(args.cores.as_ref())?;
    for link in &args.link {
        daemon.add(link).with_context(|| format!("link {link}"))?;
        tracing::info!(%link, "added");
    }
    let signal = signals.wait().context("wait for SIGTERM")?;
    tracing::info!(%signal, "stopping");
    daemon.stop();
    Ok(())
}
