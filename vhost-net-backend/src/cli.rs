//! The command line.

use clap::Parser;
use telemetry::LogFormat;

use crate::cores::Cores;
use crate::spec::LinkSpec;

/// Joins guests' virtio-net rings to NICs, taps and one another.
#[derive(Debug, Parser)]
#[command(name = "vhost-net-backend", version = telemetry::VERSION)]
pub struct Args {
    /// Two ends to join: vhost-user:SOCKET[?client&queues=N&mtu=N], tap:NAME or
    /// af_xdp:IFACE[:QUEUE[-QUEUE]][?mac=MAC&groups&vlan=ID]. May be repeated.
    #[arg(long, value_name = "END,END", required = true)]
    pub link: Vec<LinkSpec>,

    /// CPUs to run on, one worker each, such as 0-3,8; links are dealt out in turn. Default: one worker anywhere.
    #[arg(long, value_name = "LIST")]
    pub cores: Option<Cores>,

    /// How log lines are written to stderr.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}
