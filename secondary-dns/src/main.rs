//! `secondary-dns`: see the library.

use clap::Parser as _;
use secondary_dns::cli::Args;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    telemetry::init(args.log_format, telemetry::Level::INFO)?;
    secondary_dns::run(args)
}
