//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ipnetwork::IpNetwork;
use telemetry::LogFormat;

use crate::name::{MAX_NAME, Name};
use crate::secondaries::Secondary;
use crate::source::Source;
use crate::zone::{InfoSource, Policy};

/// Names for virtual machines on secondary networks: <nic>.<vm>.<namespace>.vm.<domain>.
#[derive(Debug, Parser)]
#[command(name = "secondary-dns", version = telemetry::VERSION)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// Without a command: serve these zones.
    #[command(flatten)]
    pub zone: Option<ZoneArgs>,

    /// How to serve them.
    #[command(flatten)]
    pub serve: ServeArgs,

    /// What else to do.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// Other things to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the zones that the source yields now, as master files.
    Dump(ZoneArgs),
}

/// What the zones are and where their content comes from.
#[derive(Debug, Clone, clap::Args)]
pub struct ZoneArgs {
    /// Where VMs are read from: "kube" (in-cluster configuration, or KUBECONFIG), or dir:PATH, the VMI status
    /// directory.
    #[arg(long)]
    pub source: Source,

    /// The cluster's domain; names end in vm.<DOMAIN>. "." makes it the zone "vm".
    #[arg(long)]
    pub domain: Name,

    /// Address under which clients reach this server: makes the NS record and its glue. May be repeated.
    #[arg(long, value_name = "IP")]
    pub name_server_ip: Vec<IpAddr>,

    /// Serve the reverse zone (PTR records) of this network. May be repeated.
    #[arg(long, value_name = "CIDR")]
    pub reverse: Vec<IpNetwork>,

    /// Seconds that answers may be cached.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub ttl: u32,

    /// Seconds that a name's absence may be cached.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub negative_ttl: u32,

    /// Which sources of addresses are believed (a status' infoSource), the most believed first.
    #[arg(
        long,
        value_name = "SOURCE,…",
        value_delimiter = ',',
        default_value = "guest-agent,multus-status,domain,wire,unknown"
    )]
    pub trust: Vec<InfoSource>,

    /// Leave out VMs whose Ready condition is False.
    #[arg(long)]
    pub only_ready: bool,
}

impl ZoneArgs {
    /// Which VMs and addresses get into the zone.
    pub fn policy(&self) -> Policy {
        // "vm", as a label, and the domain.
        let zone = 3 + self.domain.as_bytes().len();
        Policy {
            trusted: self.trust.clone(),
            only_ready: self.only_ready,
            ttl: self.ttl,
            room: MAX_NAME.saturating_sub(zone),
        }
    }
}

/// How to serve.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Address and port to answer on, UDP and TCP. May be repeated.
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:5353", value_parser = net_types::listen_address)]
    pub listen: Vec<SocketAddr>,

    /// Address and port of /metrics, /healthz and /readyz.
    #[arg(long, value_name = "ADDR:PORT", value_parser = net_types::listen_address)]
    pub http: Option<SocketAddr>,

    /// UDP threads per address, 1 to 1024.
    #[arg(long, value_name = "N", default_value_t = cores(), value_parser = threads)]
    pub threads: usize,

    /// A server that may transfer the zones and is notified of changes. With a key's name it must sign; without,
    /// it is known by its address. May be repeated.
    #[arg(long, value_name = "ADDR[:PORT][,KEY]")]
    pub secondary: Vec<Secondary>,

    /// TSIG keys, one "algorithm:name:secret" a line, as for dig -y.
    #[arg(long, value_name = "PATH")]
    pub tsig_keys: Option<PathBuf>,

    /// UDP replies a second for each client network (IPv4 /24, IPv6 /56); beyond, clients are sent to TCP.
    /// 0: no limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate_limit: u32,

    /// What this server calls itself towards clients that ask (NSID), at most 64 octets. Empty: nothing.
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = nsid)]
    pub nsid: String,
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn threads(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1024).contains(number));
    number.ok_or_else(|| "not a number from 1 to 1024".to_owned())
}

fn nsid(text: &str) -> Result<String, String> {
    if text.len() <= 64 {
        Ok(text.to_owned())
    } else {
        Err(format!("{} octets, at most 64 are allowed", text.len()))
    }
}
