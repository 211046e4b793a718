//! Names for VMs on secondary networks.
//!
//! A query's way: `server` (batched sockets) → `wire` (parse, look up in the snapshot, render) → reply. A change's
//! way: `source` (a directory) → `zone::VmRecords` (what one VM contributes) → `zone::ZoneWriter` (difference, next
//! snapshot, swap). The two meet only in the [`zone::SharedZone`].
//!
//! Names and zones are those of KubeSecondaryDNS, so that it can be replaced without a change for users.

pub mod cli;
pub mod limit;
pub mod message;
pub mod name;
pub mod notify;
pub mod secondaries;
pub mod server;
pub mod source;
pub mod transfer;
pub mod wire;
pub mod zone;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use cli::Args;
use limit::RateLimit;
use message::Special;
use message::tsig::Keyring;
use secondaries::Secondaries;
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
    let zone = Arc::new(SharedZone::new(zone));
    let policy = Policy { trusted: args.trust, only_ready: args.only_ready, ttl: args.ttl };
    let state = Arc::new(State::default());
    let writer = ZoneWriter::new(Arc::clone(&zone));
    let Source::Dir(path) = args.source;
    let source = DirSource::start(path, policy, writer, state)?;
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let keys = args.tsig_keys.as_deref().map(Keyring::read).transpose()?.unwrap_or_default();
    let secondaries = Secondaries::new(args.secondary, &keys)?;
    let server = Arc::new(Server {
        zone: Arc::clone(&zone),
        identity: Identity { nsid: args.nsid.into_bytes() },
        special: Arc::new(Special { keys, secondaries }),
        limit: NonZeroU32::new(args.rate_limit).map(RateLimit::new),
    });
    let special = Arc::clone(&server.special);
    let running = server.start(&args.listen, args.threads)?;
    let _notifying = notify::start(&special, &zone);
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
