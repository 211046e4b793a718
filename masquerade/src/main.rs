//! The CNI plugin `masquerade`, and beside it `masquerade serve`.

use std::env;
use std::process::ExitCode;

use clap::Parser as _;
use masquerade::serve::{self, Options};

fn main() -> ExitCode {
    // A runtime calls without arguments; whoever names the role is a person or a pod's manifest.
    if env::args_os().nth(1).is_some_and(|role| role == "serve") {
        return serve(&Options::parse_from(env::args_os().skip(1)));
    }
    let about =
        "Connects a virtual machine to its pod's network by NAT ('masquerade serve' tells it its addresses)";
    cni::main("masquerade", about, &masquerade::Masquerade)
}

fn serve(options: &Options) -> ExitCode {
    if let Err(error) = telemetry::init(options.log_format(), telemetry::Level::INFO) {
        eprintln!("masquerade: {error}");
        return ExitCode::FAILURE;
    }
    match serve::serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::FAILURE
        }
    }
}
