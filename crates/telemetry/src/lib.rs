//! What every guestwire binary says about itself: its version, its log, and what went wrong.
//!
//! Logs go to stderr, never to stdout, which belongs to each binary's protocol. [`run`] is what `main` does once it has
//! read its arguments; a CNI plugin, which tells its failures on stdout, calls [`init`] alone. Libraries only use the
//! `tracing` macros.

mod chain;

use std::error::Error;
use std::io;
use std::process::{ExitCode, Termination};

use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The environment variable that filters the log: a level for all, and for targets that begin so; `debug`,
/// `info,cni=trace` …
pub const FILTER_ENV: &str = "GUESTWIRE_LOG";

/// The crate's version and the commit it was built from, as `--version` prints it.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("GUESTWIRE_COMMIT"), ")");

/// How a log line is written (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is none.
    #[error("{FILTER_ENV}={value:?} is not a log filter (such as \"debug\" or \"info,cni=trace\")")]
    Filter {
        /// The variable's value.
        value: String,
        /// What is wrong with it.
        source: ParseError,
    },
}

/// Starts logging to stderr: what [`FILTER_ENV`] asks for, else `default_level` and above.
pub fn init(format: LogFormat, default_level: LevelFilter) -> Result<(), InitError> {
    let value = std::env::var(FILTER_ENV).unwrap_or_default();
    let filter = filter(&value, default_level).map_err(|source| InitError::Filter { value, source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).init(),
        LogFormat::Json => registry.with(lines.json()).init(),
    }
    Ok(())
}

fn filter(value: &str, default_level: LevelFilter) -> Result<Targets, ParseError> {
    if value.is_empty() { Ok(Targets::new().with_default(default_level)) } else { value.parse() }
}

/// Runs a program: starts the log, and tells a failure on one line, with its causes, in the log's format.
///
/// The line does not pass the log's filter: whoever silences the log is still told why the program ended.
pub fn run<T: Termination, E: Into<Box<dyn Error>>>(
    name: &str,
    format: LogFormat,
    default_level: LevelFilter,
    program: impl FnOnce() -> Result<T, E>,
) -> ExitCode {
    let result = match init(format, default_level) {
        Ok(()) => program().map_err(Into::into),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(value) => value.report(),
        Err(error) => {
            tell(name, format, &*error);
            ExitCode::FAILURE
        }
    }
}

fn tell(name: &str, format: LogFormat, error: &(dyn Error + 'static)) {
    match format {
        LogFormat::Text => eprintln!("{name}: {}", chain(error)),
        LogFormat::Json => {
            let subscriber =
                tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).json().finish();
            tracing::subscriber::with_default(subscriber, || tracing::error!("{}", chain(error)));
        }
    }
}

pub use chain::{Chain, chain};
pub use tracing_subscriber::filter::LevelFilter as Level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_gives_targets_their_levels() {
        let enables = |value: &str, target: &str, level: tracing::Level| {
            filter(value, LevelFilter::WARN).unwrap().would_enable(target, &level)
        };
        use tracing::Level as Of;
        for (value, target, level, expected) in [
            ("", "cni::plugin", Of::WARN, true),
            ("", "cni::plugin", Of::INFO, false),
            ("debug", "cni::plugin", Of::DEBUG, true),
            ("info,cni=trace", "cni::plugin", Of::TRACE, true),
            ("info,cni=trace", "netlink", Of::INFO, true),
            ("info,cni=trace", "netlink", Of::DEBUG, false),
            ("off", "cni::plugin", Of::ERROR, false),
        ] {
            assert_eq!(enables(value, target, level), expected, "{value:?} {target} {level}");
        }
        assert!(filter("cni=loud", LevelFilter::WARN).is_err());
    }
}
