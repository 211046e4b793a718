//! The CNI plugin `masquerade`, and beside it `masquerade serve`.

use std::env;
use std::process::ExitCode;

use clap::Parser as _;
use masquerade::serve::{self, Options};

fn main() -> ExitCode {
    // A runtime calls without arguments; whoever names the role is a person or a pod's manifest.
    if env::args_os().nth(1).is_some_and(|role| role == "serve") {
        let options = Options::parse_from(env::args_os().skip(1));
        let level = telemetry::Level::INFO;
        return telemetry::run("masquerade", options.log_format(), level, || serve::serve(&options));
    }
    let about =
        "Connects a virtual machine to its pod's network by NAT ('masquerade serve' tells it its addresses)";
    cni::main("masquerade", about, &masquerade::Masquerade)
}
