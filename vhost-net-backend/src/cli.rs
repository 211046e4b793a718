//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use telemetry::LogFormat;

use crate::config::Config;
use crate::cores::Cores;
use crate::spec::{LinkName, LinkSpec};

/// Where a daemon's control socket is, unless said otherwise.
pub const CONTROL_SOCKET: &str = "/run/guestwire/vhost.sock";

const ENVIRONMENT: &str = "\
Environment:
  GUESTWIRE_LOG  Log level, or levels of parts: debug, info,vhost_net_backend=trace. Default: info";

/// Joins guests' virtio-net rings to NICs, taps and one another.
#[derive(Debug, Parser)]
#[command(name = "vhost-net-backend", version = telemetry::VERSION, args_conflicts_with_subcommands = true, after_long_help = ENVIRONMENT)]
pub struct Args {
    /// Asks a running daemon instead of being one.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to run.
    #[command(flatten)]
    pub daemon: DaemonArgs,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// What the daemon runs.
#[derive(Debug, clap::Args)]
pub struct DaemonArgs {
    /// Two ends to join; may be repeated. Ends are:
    ///   vhost-user:SOCKET             a guest whose VMM connects; ?client: it listens; ?queues=N, ?mtu=N
    ///   tap:NAME                      a tap; ?netns=PATH
    ///   af_xdp:IFACE[:QUEUE[-QUEUE]]  a NIC; ?mac=MAC, &groups, ?vlan=ID, ?netns=PATH
    /// Of every end ?source=MAC, ?bytes=N, ?packets=N, ?observe. Options are joined by &.
    #[arg(long, value_name = "[NAME=]END,END", verbatim_doc_comment)]
    pub link: Vec<LinkSpec>,

    /// A YAML file with the keys cores, control, state, metrics and links; an option here goes before, links are added.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// CPUs to run on, 0 to 4095, one worker each, such as 0-3,8; a link goes where fewest are. Default: one worker anywhere.
    #[arg(long, value_name = "LIST")]
    pub cores: Option<Cores>,

    /// A socket to be changed and watched by, with the ctl command. Without, there is none; ctl and the CNI plugin
    /// vhost-user look for /run/guestwire/vhost.sock.
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Where to remember links that were added by the control socket, to have them after a restart.
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,

    /// Where to serve /metrics, /healthz and /readyz. Without, nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = net_types::listen_address)]
    pub metrics: Option<SocketAddr>,
}

impl DaemonArgs {
    /// With what the configuration file says behind it.
    #[must_use]
    pub fn over(self, file: Config) -> Config {
        let Self { link, config: _, cores, control, state, metrics } = self;
        Config {
            cores: cores.or(file.cores),
            control: control.or(file.control),
            state: state.or(file.state),
            metrics: metrics.or(file.metrics),
            links: file.links.into_iter().chain(link).collect(),
        }
    }
}

/// What is not the daemon.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Changes and watches a running daemon. Prints JSON.
    Ctl {
        /// Its control socket.
        #[arg(long, value_name = "SOCKET", default_value = CONTROL_SOCKET)]
        control: PathBuf,
        /// What to do.
        #[command(subcommand)]
        ask: Ask,
    },
}

/// What to ask a running daemon.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Adds a link.
    Add {
        /// The link, as for --link of the daemon: vm2=vhost-user:/run/vm2.sock,tap:tap2, for instance.
        #[arg(value_name = "[NAME=]END,END", value_parser = |text: &str| text.parse().map(Box::<LinkSpec>::new))]
        link: Box<LinkSpec>,
    },
    /// Ends a link.
    Remove {
        /// Its name.
        name: LinkName,
    },
    /// Shows the links and their ends.
    List {
        /// One link's name; without, all.
        name: Option<LinkName>,
    },
    /// Shows what links counted.
    Stats {
        /// One link's name; without, all.
        name: Option<LinkName>,
    },
    /// Copies a link's frames, as a pcap file, until interrupted.
    Capture {
        /// Its name.
        name: LinkName,
        /// The file; without, standard output.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Bytes to keep of each frame; without, all.
        #[arg(long, value_name = "BYTES")]
        snap: Option<u32>,
        /// Ends after so many frames.
        #[arg(long, value_name = "FRAMES")]
        count: Option<u64>,
    },
}
