//! The frame around a plugin: read the request, call, answer, exit.

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use netns::NetNs;
use serde_json::{Value, json};

use crate::{Code, Command, Error, Request, Success, Version, output};

/// Longest configuration that is read, in bytes. Multus' largest are a few kilobytes; this leaves room for long
/// chains' results and keeps a broken caller from filling memory.
const MAX_STDIN: u64 = 4 << 20;

/// One CNI plugin.
pub trait Plugin {
    /// Attaches. Failing, it leaves nothing behind.
    fn add(&self, request: &Request) -> Result<Success, Error>;
    /// Undoes [`Plugin::add`]; what is gone already is fine.
    fn del(&self, request: &Request) -> Result<(), Error>;
    /// Fails with the first difference between what ADD made and what is there.
    fn check(&self, request: &Request) -> Result<(), Error>;
    /// Fails if an ADD could not work now: the caller is told code 50, unless it is the request that is wrong, or the error
    /// says by [`Error::limits_connectivity`] that containers that are attached suffer too.
    fn status(&self, request: &Request) -> Result<(), Error>;
    /// Removes what belongs to no valid attachment.
    fn gc(&self, request: &Request) -> Result<(), Error>;
}

/// What a plugin takes on its command line. Everything else comes by environment and standard input.
#[derive(clap::Parser)]
struct CommandLine {
    /// How log lines on standard error are written.
    #[arg(long, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
}

/// The whole `main` of a plugin's binary.
pub fn main(name: &'static str, about: &'static str, plugin: &impl Plugin) -> ExitCode {
    // Runtimes give no arguments, and a call is short: it does without the parser, which is much code to load.
    let log_format = if std::env::args_os().len() > 1 {
        match parse_command_line(name, about) {
            Ok(CommandLine { log_format }) => log_format,
            Err(error) => error.exit(),
        }
    } else {
        telemetry::LogFormat::default()
    };
    if let Err(error) = telemetry::init(log_format, telemetry::Level::WARN) {
        eprintln!("{name}: {error}");
        return ExitCode::FAILURE;
    }
    run(plugin)
}

fn parse_command_line(name: &'static str, about: &'static str) -> Result<CommandLine, clap::Error> {
    let command = CommandLine::command()
        .name(name)
        .about(about)
        .version(telemetry::VERSION)
        .after_help("A CNI plugin: container runtimes call it with CNI_* variables and a configuration on standard input.");
    CommandLine::from_arg_matches(&command.try_get_matches()?)
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Runs one invocation of `plugin`: everything the specification wants said is on standard output afterwards.
fn run(plugin: &impl Plugin) -> ExitCode {
    // As they were given: what is wrong with them is said in a line that has them, too.
    let [command, container, interface] =
        ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME"].map(|name| variable(name).unwrap_or_default());
    let _span = tracing::error_span!("cni", command, container, interface).entered();
    let mut version = Version::NEWEST;
    let Err(error) = serve(plugin, &mut version) else { return ExitCode::SUCCESS };
    tracing::error!(code = error.code.get(), "{error}");
    if let Err(untold) = answer(&output::error(&error, version)) {
        tracing::error!("{untold}");
    }
    ExitCode::FAILURE
}

/// Writes an answer in one piece. Standard output by itself would write each of its lines.
fn answer(answer: &Value) -> Result<(), Error> {
    let text = format!("{answer:#}\n");
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written
        .map_err(|error| Error::new(Code::Io, "cannot answer on standard output").details(error.to_string()))
}

fn serve(plugin: &impl Plugin, version: &mut Version) -> Result<(), Error> {
    let command = variable("CNI_COMMAND").filter(|command| !command.is_empty()).ok_or_else(|| {
        Error::new(Code::InvalidEnvironment, "CNI_COMMAND is not set")
            .details("this is a CNI plugin: a container runtime calls it (see --help)")
    })?;
    let command = Command::parse(&command)?;
    if command == Command::Version {
        let versions = Version::ALL.map(Version::as_str);
        return answer(&json!({"cniVersion": Version::NEWEST.as_str(), "supportedVersions": versions}));
    }
    let stdin = read_stdin()?;
    *version = answer_version(&stdin);
    let mut request = Request::parse(command, variable, &stdin)?;
    let own_is_meant = variable("CNI_NETNS_OVERRIDE")
        .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    if !own_is_meant {
        refuse_own_namespace(&mut request)?;
    }
    dispatch(plugin, &request)
}

fn dispatch(plugin: &impl Plugin, request: &Request) -> Result<(), Error> {
    match request.command {
        Command::Add => {
            let success = plugin.add(request)?;
            let told = output::success(&success, request.version).and_then(|success| answer(&success));
            told.inspect_err(|_| {
                if let Err(undo) = plugin.del(request) {
                    tracing::error!("after an ADD whose result cannot be told: {undo}");
                }
            })
        }
        Command::Del => plugin.del(request),
        Command::Check => plugin.check(request),
        Command::Status => plugin.status(request).map_err(Error::unavailable),
        Command::Gc => plugin.gc(request),
        // Answered before there was a request.
        Command::Version => Ok(()),
    }
}

fn read_stdin() -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_STDIN + 1)
        .read_to_end(&mut text)
        .map_err(|error| Error::new(Code::Io, "cannot read standard input").details(error.to_string()))?;
    if text.len() as u64 > MAX_STDIN {
        return Err(Error::new(Code::Decode, "the configuration is too long")
            .details(format!("at most {MAX_STDIN} bytes are allowed")));
    }
    Ok(text)
}

/// The version to answer in even when the configuration is otherwise broken.
fn answer_version(stdin: &[u8]) -> Version {
    let config = serde_json::from_slice::<Value>(stdin).unwrap_or_default();
    config
        .get("cniVersion")
        .map_or(Some(Version::NEWEST), |text| Version::parse(text.as_str()).ok())
        .unwrap_or(Version::NEWEST)
}

/// A container that shares the plugin's namespace is the host itself: attaching it would take the host apart. DEL goes on
/// as if the container had none: `/proc/PID/ns/net` is the host's when another process has the PID by now.
fn refuse_own_namespace(request: &mut Request) -> Result<(), Error> {
    let Some(attachment) = &mut request.attachment else { return Ok(()) };
    let Some(path) = &attachment.netns else { return Ok(()) };
    let same = NetNs::open(path).and_then(|container| Ok(container.id()? == NetNs::current()?.id()?));
    match same {
        Ok(false) => Ok(()),
        // A namespace that cannot be opened is for the operation to judge: DEL lives without.
        Err(_) => Ok(()),
        Ok(true) if request.command == Command::Del => {
            tracing::warn!("CNI_NETNS {} is the plugin's own network namespace: left alone", path.display());
            attachment.netns = None;
            Ok(())
        }
        Ok(true) => Err(Error::new(
            Code::InvalidNetns,
            format!("CNI_NETNS {} is the plugin's own network namespace", path.display()),
        )
        .details("a pod has a namespace of its own; CNI_NETNS_OVERRIDE=1 lets this pass")),
    }
}
