//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use telemetry::LogFormat;

use crate::inspect::Inspect;
use crate::range::MacRange;
use crate::store::OnDuplicate;

const ENVIRONMENT: &str = "\
Environment:
  POD_NAME       What the replica's lease is called after. Default: macpool
  POD_NAMESPACE  Namespace of leases, ConfigMap and Secret, unless --namespace says otherwise
  KUBECONFIG     How to reach the API server from outside a pod. Default: ~/.kube/config
  GUESTWIRE_LOG  Log level, or levels of parts: debug, info,macpool=trace. Default: info";

/// Unique MAC addresses for virtual machines and pods, as an admission webhook.
#[derive(Debug, Parser)]
#[command(name = "macpool", version = telemetry::VERSION, after_long_help = ENVIRONMENT)]
pub struct Args {
    /// What to do; without a command, serve.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where reservations are kept: kube (the API server, any number of replicas) or dir:PATH (a journal, one process).
    #[arg(long, global = true, default_value = "kube")]
    pub store: StoreKind,

    /// Address and port for reviews (HTTPS).
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8000", value_parser = net_types::listen_address)]
    pub listen: SocketAddr,

    /// Address and port for /metrics, /healthz and /readyz (HTTP).
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8080", value_parser = net_types::listen_address)]
    pub listen_metrics: SocketAddr,

    /// Addresses to give: FIRST-LAST. May be repeated. Without it the ConfigMap kubemacpool-mac-range-config counts
    /// (kube), or a range picked once at random (dir).
    #[arg(long, value_name = "RANGE")]
    pub range: Vec<MacRange>,

    /// Addresses of the range not to give: FIRST-LAST or one address. May be repeated.
    #[arg(long, value_name = "RANGE", requires = "range")]
    pub exclude: Vec<MacRange>,

    /// Networks that never meet those of other domains: NAME=NAMESPACE/NETWORK,… One address on two of them is no
    /// duplicate. May be repeated. In a cluster only with --range: without it the ConfigMap's L2_DOMAINS count.
    #[arg(long, value_name = "DOMAIN", global = true)]
    pub l2_domain: Vec<String>,

    /// What happens to a VM that asks for an address another VM has.
    #[arg(long, value_enum, default_value_t)]
    pub on_duplicate: OnDuplicate,

    /// Seconds an address stays reserved although nothing has been seen with it, 1 to 86400. At least twice the API
    /// server's --request-timeout.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub grace: Duration,

    /// Seconds to go on serving after SIGTERM, not ready any more, until the Service sends nobody here, 1 to 86400.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub leave: Duration,

    /// Leave pods alone: neither serve /mutate-pods nor watch pods. Addresses that pods have from macpool count as free then.
    #[arg(long)]
    pub no_pods: bool,

    /// Certificate chain (PEM, leaf first), read again when it changes. Without it macpool makes its own CA.
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Key of the certificate (PEM).
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Names the own certificate is for. May be repeated. Default: the service's names (kube), localhost (dir).
    #[arg(long, value_name = "NAME")]
    pub tls_name: Vec<String>,

    /// Days the own CA is good for, 0.0001 to 3650; a new one is made after half of them.
    #[arg(long, value_name = "DAYS", default_value = "365", value_parser = days)]
    pub ca_lifetime: time::Duration,

    /// The Service that leads to the replicas.
    #[arg(long, value_name = "NAME", default_value = "macpool")]
    pub service: String,

    /// The MutatingWebhookConfiguration that gets the own CA.
    #[arg(long, value_name = "NAME", default_value = "kubemacpool-mutator")]
    pub webhook: String,

    /// Namespace of leases, ConfigMap and Secret. Default: $POD_NAMESPACE, else the kubeconfig's.
    #[arg(long, value_name = "NAME", global = true)]
    pub namespace: Option<String>,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// What else can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print who holds which address, since when and why, sorted by address.
    Inspect(Inspect),
}

/// `--store`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// The API server.
    Kube,
    /// A directory.
    Dir(PathBuf),
}

/// A store nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a store (kube, or dir:PATH)")]
pub struct StoreKindError(String);

impl FromStr for StoreKind {
    type Err = StoreKindError;

    fn from_str(text: &str) -> Result<Self, StoreKindError> {
        match text.split_once(':') {
            None if text == "kube" => Ok(Self::Kube),
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(StoreKindError(text.to_owned())),
        }
    }
}

/// Fractions of a day are for trying out a rotation.
fn days(text: &str) -> Result<time::Duration, String> {
    match text.parse() {
        Ok(days @ 0.0001..=3650.0) => Ok(time::Duration::seconds_f64(days * 86_400.0)),
        _ => Err("a number of days from 0.0001 to 3650".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("a number of seconds from 1 to 86400".to_owned()),
    }
}
