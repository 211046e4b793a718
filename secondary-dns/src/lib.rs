//! Names for VMs on secondary networks.
//!
//! A query's way: `server` (batched sockets) → `wire` (parse, look up in the snapshot, render) → reply. A change's
//! way: `source` (a directory) → `zone::VmRecords` (what one VM contributes) → `zone::ZoneWriter` (difference, next
//! snapshot, swap). The two meet only in the [`zone::SharedZone`].
//!
//! Names and zones are those of KubeSecondaryDNS, so that it can be replaced without a change for users.

pub mod cli;
pub mod name;
pub mod server;
pub mod source;
pub mod wire;
pub mod zone;

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use cli::Args;
use server::Server;
use source::dir::DirSource;
use source::{Source, State};
use wire::Identity;
use zone::{Policy, Settings, SharedZone, Zone, ZoneWriter, serial};

/// Runs the server until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let settings =
        Settings::new(&args.domain, &args.name_server_ip, &args.reverse, args.ttl, args.negative_ttl)?;
    let zone = Zone::new(Arc::new(settings), serial::of_time(SystemTime::now()));
    let zone = Arc::new(SharedZone::from_pointee(zone));
    let policy = Policy { trusted: args.trust, only_ready: args.only_ready, ttl: args.ttl };
    let state = Arc::new(State::default());
    let writer = ZoneWriter::new(Arc::clone(&zone));
    let Source::Dir(path) = args.source;
    let source = DirSource::start(path, policy, writer, state)?;
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let server = Arc::new(Server { zone, identity: Identity { nsid: args.nsid.into_bytes() } });
    let running = server.start(&args.listen, args.threads)?;
    for address in running.addresses() {
        tracing::info!(%address, "answering");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    running.stop();
    drop(source);
    Ok(())
}
