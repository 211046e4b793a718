//! `secondary-dns`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use secondary_dns::cli::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::run("secondary-dns", args.log_format, telemetry::Level::INFO, || secondary_dns::run(args))
}
