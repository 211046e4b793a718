//! Starting and stopping: from the command line to running listeners, and back.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::authority::Lifetimes;
use crate::certs::{self, Pair};
use crate::cli::{Args, Command, StoreKind};
use crate::metrics::Metrics;
use crate::range::Ranges;
use crate::range_config;
use crate::segment::Domains;
use crate::server::{Phase, Server};
use crate::store::Store;
use crate::store::dir::{self, DirStore};
use crate::store::kube::{self, KubeStore};
use crate::tls::{self, Certificate};

/// Runs the command line until it is done, or until SIGTERM or SIGINT.
pub fn run(args: Args) -> anyhow::Result<()> {
    // Reviews have a thread of their own: they do not wait for what the store has to do, and hardly ever wake another.
    let reviews = runtime("reviews")?;
    let store = runtime("store")?;
    let reviewers = reviews.handle();
    store.block_on(async {
        match (&args.command, &args.store) {
            (Some(Command::Inspect(inspect)), StoreKind::Dir(path)) => inspect.dir(path, &domains(&args)?),
            (Some(Command::Inspect(inspect)), StoreKind::Kube) => {
                let config = api_server().await?;
                let named = (!args.l2_domain.is_empty()).then(|| domains(&args)).transpose()?;
                let namespace = namespace(&args, &config);
                inspect.kube(::kube::Client::try_from(config)?, &namespace, named).await
            }
            (None, StoreKind::Dir(path)) => serve_dir(&args, path, reviewers, Signals::new()?).await,
            (None, StoreKind::Kube) => serve_kube(&args, reviewers, Signals::new()?).await,
        }
    })
}

/// One thread for tasks, and those for what may block.
fn runtime(name: &'static str) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}

/// SIGTERM and SIGINT. Heard from the start: the first process of a container is not ended by them otherwise.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt()).context("wait for SIGINT")? })
    }

    /// Waits for one.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }

    /// What `work` comes to; `None` if there is a signal first.
    async fn or<T, E>(&mut self, work: impl Future<Output = Result<T, E>>) -> Result<Option<T>, E> {
        tokio::select! {
            result = work => result.map(Some),
            () = self.any() => Ok(None),
        }
    }
}

async fn serve_dir(args: &Args, path: &Path, reviewers: &Handle, signals: Signals) -> anyhow::Result<()> {
    let ranges = match args.range.is_empty() {
        true => remembered_range(path)?,
        false => Ranges::new(&args.range, &args.exclude)?,
    };
    let policy = dir::Policy { on_duplicate: args.on_duplicate, domains: domains(args)? };
    let store = DirStore::open(path, ranges, policy)?;
    let certificate = match certificate_files(args)? {
        Some(certificate) => certificate,
        None => own_certificate(args, path)?,
    };
    serve(args, store, certificate, reviewers, signals).await
}

async fn serve_kube(args: &Args, reviewers: &Handle, mut signals: Signals) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.l2_domain.is_empty() || !args.range.is_empty(),
        "--l2-domain needs --range: without it the ConfigMap's L2_DOMAINS count"
    );
    let config = api_server().await?;
    let namespace = namespace(args, &config);
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "macpool".to_owned());
    let client = ::kube::Client::try_from(config).context("set up the client of the API server")?;
    let ranges = match args.range.is_empty() {
        true => match signals.or(kube::config::initial(&client, &namespace)).await? {
            Some(ranges) => ranges,
            None => return Ok(()),
        },
        false => Ranges::new(&args.range, &args.exclude)?,
    };
    let certificate = match certificate_files(args)? {
        Some(certificate) => certificate,
        None => match signals.or(kube::trust::start(&client, trust(args, &namespace))).await? {
            Some(certificate) => certificate,
            None => return Ok(()),
        },
    };
    let settings = kube::Settings {
        namespace: namespace.clone(),
        pod,
        ranges,
        on_duplicate: args.on_duplicate,
        domains: domains(args)?,
        grace: args.grace,
        pods: !args.no_pods,
        terms: kube::Terms::default(),
    };
    let store = KubeStore::start(client.clone(), settings);
    if args.range.is_empty() {
        kube::config::follow(client, namespace, store.clone());
    }
    let result = serve(args, store.clone(), certificate, reviewers, signals).await;
    store.stop().await;
    result
}

/// Where the API server is, by the pod's service account, or by KUBECONFIG or ~/.kube/config.
async fn api_server() -> anyhow::Result<::kube::Config> {
    ::kube::Config::infer().await.context("find the API server (in a pod, or by KUBECONFIG)")
}

/// The namespace of leases, ConfigMap and Secret.
fn namespace(args: &Args, config: &::kube::Config) -> String {
    let named = args.namespace.clone().or_else(|| std::env::var("POD_NAMESPACE").ok());
    named.unwrap_or_else(|| config.default_namespace.clone())
}

/// The networks that the command line says never meet.
fn domains(args: &Args) -> anyhow::Result<Domains> {
    Domains::new(args.l2_domain.iter().map(String::as_str)).context("--l2-domain")
}

/// Serves until a signal; returns when everything that had begun is answered.
async fn serve<S: Store>(
    args: &Args,
    store: S,
    certificate: Certificate,
    reviewers: &Handle,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Serving);
    // On the threads that serve them.
    let reviews =
        reviewers.spawn(TcpListener::bind(args.listen)).await.context("the listener for reviews")?;
    let reviews = reviews.with_context(|| format!("listen on {}", args.listen))?;
    let operations = TcpListener::bind(args.listen_metrics)
        .await
        .with_context(|| format!("listen on {}", args.listen_metrics))?;
    tracing::info!(
        address = %reviews.local_addr()?, metrics = %operations.local_addr()?, version = telemetry::VERSION, "serving"
    );
    let server = Server::new(store, Arc::new(Metrics::default()), phases, !args.no_pods);
    let acceptor = TlsAcceptor::from(certificate.server_config()?);
    let reviews = reviewers.spawn(Arc::clone(&server).reviews(reviews, acceptor));
    let operations = tokio::spawn(server.operations(operations));
    signals.any().await;
    phase.send_replace(Phase::Leaving);
    tokio::time::sleep(args.leave).await;
    phase.send_replace(Phase::Closing);
    reviews.await.context("the listener for reviews")?;
    operations.await.context("the listener for metrics")
}

/// The certificate of the command line, if it names one. Read again when the files change.
fn certificate_files(args: &Args) -> anyhow::Result<Option<Certificate>> {
    let (Some(cert), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else { return Ok(None) };
    let read = move || anyhow::Ok((tls::read(&cert)?, tls::read(&key)?));
    let mut current = read()?;
    let certificate = Certificate::new(&current.0, &current.1)?;
    let reloaded = certificate.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
            // Half-replaced files fail, and are tried again.
            let replaced = read().and_then(|new| {
                if new != current {
                    reloaded.replace(&new.0, &new.1)?;
                    tracing::info!("the certificate was replaced");
                    current = new;
                }
                Ok(())
            });
            if let Err(error) = replaced {
                tracing::warn!(
                    error = &*error as &dyn std::error::Error,
                    "the certificate files cannot be used"
                );
            }
        }
    });
    Ok(Some(certificate))
}

/// For a cluster without certificate files: an authority that the replicas share.
fn trust(args: &Args, namespace: &str) -> kube::trust::Settings {
    let service = &args.service;
    let names = match args.tls_name.is_empty() {
        true => {
            vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
        }
        false => args.tls_name.clone(),
    };
    kube::trust::Settings {
        namespace: namespace.to_owned(),
        webhook: args.webhook.clone(),
        names,
        lifetimes: Lifetimes::of(args.ca_lifetime),
    }
}

/// For one machine: an authority kept beside the journal, whose certificate clients are given.
fn own_certificate(args: &Args, path: &Path) -> anyhow::Result<Certificate> {
    let now = OffsetDateTime::now_utc();
    let authority = certs::authority(now, args.ca_lifetime)?;
    let names = match args.tls_name.is_empty() {
        true => vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()],
        false => args.tls_name.clone(),
    };
    let Pair { cert, key } = certs::leaf(&authority, &names, now, args.ca_lifetime)?;
    let ca = path.join("ca.crt");
    fs::write(&ca, &authority.cert).with_context(|| format!("write {}", ca.display()))?;
    tracing::info!(ca = %ca.display(), "clients verify us by this certificate");
    Ok(Certificate::new(cert.as_bytes(), key.as_bytes())?)
}

/// For one machine without `--range`: one picked at random, the same ever after.
fn remembered_range(path: &Path) -> anyhow::Result<Ranges> {
    let file = path.join("range.json");
    let data = match fs::read(&file) {
        Ok(json) => serde_json::from_slice(&json).with_context(|| format!("read {}", file.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let data = range_config::random();
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
            fs::write(&file, serde_json::to_vec(&data)?)
                .with_context(|| format!("write {}", file.display()))?;
            data
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    let ranges = range_config::parse(&data).with_context(|| format!("read {}", file.display()))?;
    ranges.with_context(|| format!("{} names no range", file.display()))
}
