//! The command line of `cnv-bridge`: what an administrator does with a node's bridges.
//!
//! What was done goes to standard output, the log and errors to standard error. The exit code is 0 if all was done.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use vm_api::yaml;

use crate::policy;

/// Attaches pods to the node's Linux bridges.
#[derive(Parser)]
#[command(name = "cnv-bridge", version = telemetry::VERSION, after_help = "Called by a container runtime (CNI_COMMAND is set), this is a CNI plugin.")]
struct CommandLine {
    /// How log lines on standard error are written.
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the bridges that policies ask for.
    Policy {
        #[command(subcommand)]
        command: Policy,
    },
}

#[derive(Subcommand)]
enum Policy {
    /// Apply NodeNetworkConfigurationPolicies to this node. What is as wanted already is left alone.
    Apply(Apply),
}

#[derive(Args)]
struct Apply {
    /// File with NodeNetworkConfigurationPolicies; "-" is standard input.
    #[arg(short, long)]
    file: PathBuf,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Put an interface on a bridge even if the node's default route goes through it.
    #[arg(long)]
    take_default_route: bool,
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let CommandLine { log_format, command: Command::Policy { command: Policy::Apply(apply) } } =
        CommandLine::parse();
    telemetry::run("cnv-bridge", log_format, telemetry::Level::WARN, || {
        let Apply { file, dry_run, take_default_route } = apply;
        let report = policy::apply(&yaml::read(&file)?, dry_run, take_default_route)?;
        io::stdout().lock().write_all(report.as_bytes())?;
        Ok::<_, Box<dyn Error>>(())
    })
}
