//! The command line: what an administrator does with a node's virtual functions.
//!
//! Results go to standard output, the log and errors to standard error. The exit code is 0 if all was done.

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vm_api::yaml;

use crate::{policy, render, status};

/// Virtual functions for pods and virtual machines.
#[derive(Parser)]
#[command(name = "sriov", version = telemetry::VERSION, after_help = "Called by a container runtime (CNI_COMMAND is set), this is a CNI plugin.")]
struct CommandLine {
    /// How log lines on standard error are written.
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Give physical functions the virtual ones that policies want.
    Policy {
        #[command(subcommand)]
        command: Policy,
    },
    /// Print the NetworkAttachmentDefinition of a SriovNetwork.
    Render(Render),
    /// Show physical and virtual functions, who has them, and what is set on them.
    Status(Status),
}

#[derive(Subcommand)]
enum Policy {
    /// Apply SriovNetworkNodePolicies to this node. What is as wanted already is left alone.
    Apply(Apply),
}

#[derive(Args)]
struct Apply {
    /// File with SriovNetworkNodePolicies; "-" is standard input.
    #[arg(short, long)]
    file: PathBuf,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// A label of this node, for policies' nodeSelector. Without any, every policy is taken to be for this node.
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

#[derive(Args)]
struct Render {
    /// File with SriovNetworks; "-" is standard input.
    #[arg(short, long)]
    file: PathBuf,
    /// What the device plugin's resources begin with.
    #[arg(long, default_value = "openshift.io")]
    resource_prefix: String,
}

#[derive(Args)]
struct Status {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Runs it.
pub(crate) fn main() -> ExitCode {
    let CommandLine { log_format, command } = CommandLine::parse();
    telemetry::run("sriov", log_format, telemetry::Level::WARN, || {
        let text = run(command)?;
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok::<_, Box<dyn Error>>(())
    })
}

fn run(command: Command) -> Result<String, Box<dyn Error>> {
    Ok(match command {
        Command::Policy { command: Policy::Apply(Apply { file, dry_run, labels }) } => {
            policy::apply(&yaml::read(&file)?, &labels, dry_run)?
        }
        Command::Render(Render { file, resource_prefix }) => {
            render::render(&yaml::read(&file)?, &resource_prefix)?
        }
        Command::Status(Status { output }) => {
            let status = status::Status::take()?;
            match output {
                Output::Table => status.table(),
                Output::Json => serde_json::to_string_pretty(&status)? + "\n",
            }
        }
    })
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("allowed: KEY=VALUE".to_owned()),
    }
}
