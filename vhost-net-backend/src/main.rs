//! `vhost-net-backend`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use vhost_net_backend::cli::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::run("vhost-net-backend", args.log_format, telemetry::Level::INFO, || {
        vhost_net_backend::run(args)
    })
}
