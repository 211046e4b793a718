//! Names for VMs on secondary networks.
//!
//! A query's way: `server` (batched sockets) → `wire` (parse, look up in the snapshot, render) → reply. A change's
//! way: `source` (a directory, the API server) → `zone::VmRecords` (what one VM contributes) → `zone::ZoneWriter`
//! (difference, next snapshot, swap). The two meet only in the [`zone::SharedZone`].
//!
//! Names and zones are those of KubeSecondaryDNS, so that it can be replaced without a change for users.

pub mod cli;
pub mod dump;
pub mod http;
pub mod limit;
pub mod message;
pub mod name;
pub mod notify;
pub mod secondaries;
pub mod server;
pub mod source;
pub mod stats;
pub mod transfer;
pub mod wire;
pub mod zone;

use std::io::{self, BufWriter, Write as _};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use cli::{Args, Command, ServeArgs, ZoneArgs};
use http::Pages;
use limit::RateLimit;
use message::tsig::Keyring;
use message::{Occasionally, Special};
use secondaries::Secondaries;
use server::Server;
use source::dir::DirSource;
use source::kube::KubeSource;
use source::{Source, State};
use wire::Identity;
use zone::{Settings, SharedZone, Zone, ZoneWriter, serial};

/// Does what the command line asks for; serving ends with SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match (args.command, args.zone) {
        (Some(Command::Dump(zone)), _) => runtime.block_on(dump(zone)),
        (None, Some(zone)) => {
            let stop = {
                let _entered = runtime.enter();
                Stop::new()?
            };
            runtime.block_on(serve(zone, args.serve, stop))
        }
        (None, None) => anyhow::bail!("--source and --domain are required"),
    }
}

/// The signals that end the server.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn serve(zones: ZoneArgs, args: ServeArgs, mut stop: Stop) -> anyhow::Result<()> {
    let zone = new_zone(&zones)?;
    let state = Arc::new(State::default());
    // Everything that can be wrong with the command line is found before anything starts.
    let keys = args.tsig_keys.as_deref().map(Keyring::read).transpose()?.unwrap_or_default();
    let secondaries = Secondaries::new(args.secondary, &keys)?;
    if zones.name_server_ip.is_empty() && secondaries.iter().next().is_some() {
        tracing::warn!(
            "the zones have no NS record, without which most secondaries refuse them: see --name-server-ip"
        );
    }
    let server = Arc::new(Server {
        zone: Arc::clone(&zone),
        identity: Identity { nsid: args.nsid.into_bytes() },
        special: Arc::new(Special { keys, secondaries, refusals: Occasionally::default() }),
        limit: NonZeroU32::new(args.rate_limit).map(RateLimit::new),
    });
    let pages = Arc::new(Pages {
        zone: Arc::clone(&zone),
        state: Arc::clone(&state),
        answering: AtomicBool::new(false),
        stats: OnceLock::new(),
    });
    if let Some(address) = args.http {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        tracing::info!(http = %listener.local_addr()?, "serving /metrics, /healthz, /readyz");
        tokio::spawn(http::serve(Arc::clone(&pages), listener));
    }
    let source = start_source(&zones, &zone, &state).await?;
    // Until the source has been read, every answer would be wrong.
    tokio::select! {
        () = state.wait_synced() => {}
        () = stop.wait() => return Ok(()),
    }
    let special = Arc::clone(&server.special);
    let running = server.start(&args.listen, args.threads)?;
    let _set_once = pages.stats.set(running.stats());
    pages.answering.store(true, Ordering::Release);
    let notifying = notify::start(&special, &zone);
    for address in running.addresses() {
        tracing::info!(%address, "answering");
    }
    stop.wait().await;
    tracing::info!("stopping");
    pages.answering.store(false, Ordering::Release);
    drop(notifying);
    running.stop();
    drop(source);
    Ok(())
}

/// A source that runs until it is dropped.
enum Running {
    /// Ends with its owner.
    Dir(#[expect(dead_code, reason = "held for its Drop")] DirSource),
    /// Ends with the runtime.
    Kube(#[expect(dead_code, reason = "held to show that it runs")] JoinHandle<()>),
}

fn new_zone(args: &ZoneArgs) -> anyhow::Result<Arc<SharedZone>> {
    let settings =
        Settings::new(&args.domain, &args.name_server_ip, &args.reverse, args.ttl, args.negative_ttl)?;
    let serial = serial::of_time(SystemTime::now());
    Ok(Arc::new(SharedZone::new(Zone::new(Arc::new(settings), serial))))
}

async fn start_source(
    args: &ZoneArgs,
    zone: &Arc<SharedZone>,
    state: &Arc<State>,
) -> anyhow::Result<Running> {
    let writer = ZoneWriter::new(Arc::clone(zone));
    Ok(match &args.source {
        Source::Dir(path) => {
            Running::Dir(DirSource::start(path.clone(), args.policy(), writer, Arc::clone(state))?)
        }
        Source::Kube => {
            let source = KubeSource::new(client().await?, args.policy(), writer, Arc::clone(state));
            Running::Kube(tokio::spawn(source.run()))
        }
    })
}

/// A client from the pod's service account, or from KUBECONFIG or ~/.kube/config.
async fn client() -> anyhow::Result<kube::Client> {
    kube::Client::try_default().await.context("find the API server (in a pod, or by KUBECONFIG)")
}

async fn dump(args: ZoneArgs) -> anyhow::Result<()> {
    let zone = new_zone(&args)?;
    let writer = ZoneWriter::new(Arc::clone(&zone));
    match &args.source {
        Source::Dir(path) => DirSource::read_once(path.clone(), args.policy(), writer)?,
        Source::Kube => {
            KubeSource::new(client().await?, args.policy(), writer, Arc::default()).read_once().await?;
        }
    }
    let mut out = BufWriter::new(io::stdout().lock());
    dump::write(&zone.load_full(), &mut out).and_then(|()| out.flush()).context("write the zones")
}
