//! `macpool`: see the library.

use std::process::ExitCode;

use clap::Parser as _;
use macpool::cli::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::run("macpool", args.log_format, telemetry::Level::INFO, || macpool::run(args))
}
