//! `macpool`: see the library.

use clap::Parser as _;
use macpool::cli::Args;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::init(args.log_format, telemetry::Level::INFO)?;
    macpool::run(args)
}
