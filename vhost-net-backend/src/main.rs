//! `vhost-net-backend`: see the library.

use clap::Parser as _;
use vhost_net_backend::cli::Args;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::init(args.log_format, telemetry::Level::INFO)?;
    vhost_net_backend::run(args)
}
