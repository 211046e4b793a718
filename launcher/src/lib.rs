//! `vm-launcher`: virtual machines on networks, without a cluster.
//!
//! One binary, three roles (ARCHITECTURE.md, "Three processes per VM"): the commands a person types, the supervisor
//! they leave behind, and the VMM that runs the guest. Supervisor and VMM speak over [`control`].

pub mod control;
mod inherited;
mod vmm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs virtual machines and wires them into networks.
#[derive(Debug, Parser)]
#[command(name = "vm-launcher", version = telemetry::VERSION)]
struct Cli {
    /// How log lines on stderr are written.
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

// The user's commands come first, in the order of a VM's life; the roles that only the launcher itself starts last.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a guest, controlled over descriptor 3 (started by the supervisor).
    #[command(hide = true)]
    Vmm,
}

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = telemetry::init(cli.log_format, telemetry::Level::INFO) {
        eprintln!("vm-launcher: {error:#}");
        return ExitCode::FAILURE;
    }
    match cli.command {
        Command::Vmm => vmm::main(),
    }
}
