//! `vm-launcher`: virtual machines on networks, without a cluster.
//!
//! One binary, three roles (ARCHITECTURE.md, "Three processes per VM"): the commands a person types, the supervisor
//! they leave behind, and the VMM that runs the guest. Supervisor and VMM speak over [`control`].

mod admit;
mod cmd;
pub mod control;
mod expected;
mod file;
mod inherited;
mod kvm;
mod observer;
mod ready;
mod seed;
mod start;
mod supervisor;
pub mod vfio;
mod vm;
mod vmm;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use telemetry::chain;

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
    Up(Box<cmd::up::Up>),
    List(cmd::list::List),
    Status(cmd::status::Status),
    Console(cmd::console::Console),
    Plug(cmd::plug::Plug),
    Unplug(cmd::plug::Unplug),
    Down(cmd::down::Down),
    Gc(cmd::gc::Gc),
    /// Keep a VM running (started by `up`).
    #[command(hide = true)]
    Supervise(cmd::Supervise),
    /// Run a guest, controlled over descriptor 3 (started by the supervisor).
    #[command(hide = true)]
    Vmm,
}

/// Runs the command of the process's arguments.
pub fn main() -> ExitCode {
    let Cli { log_format, command } = Cli::parse();
    telemetry::run("vm-launcher", log_format, telemetry::Level::INFO, || run(command))
}

fn run(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Up(command) => command.run()?,
        Command::List(command) => command.run()?,
        Command::Status(command) => command.run()?,
        Command::Console(command) => command.run()?,
        Command::Plug(command) => command.run()?,
        Command::Unplug(command) => command.run()?,
        Command::Down(command) => command.run()?,
        Command::Gc(command) => command.run()?,
        Command::Supervise(command) => command.run()?,
        Command::Vmm => return Ok(vmm::main()),
    }
    Ok(ExitCode::SUCCESS)
}
