//! Executing one plugin once.

mod orphan;

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::request::{Attachment, Command};
use crate::success::ResultError;
use crate::{Code, Error};

/// Longest answer (and longest log) that is taken from a plugin, in bytes.
const MAX_OUTPUT: usize = 4 << 20;

/// Why a plugin gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No directory of the plugin path has it.
    #[error("there is no executable {kind} in {}", searched(path))]
    NotFound {
        /// The plugin's `type`.
        kind: String,
        /// Where it was looked for.
        path: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The file.
        program: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// Talking to it failed.
    #[error("cannot exchange data with it")]
    Pipe(#[source] io::Error),
    /// It took too long, and was killed.
    #[error("it took longer than {} s and was killed", .0.as_secs())]
    Timeout(Duration),
    /// It wrote without end, and was killed.
    #[error("it wrote more than {MAX_OUTPUT} bytes and was killed")]
    TooMuch,
    /// It answered what is no result.
    #[error("its answer is no CNI result")]
    Answer(#[source] ResultError),
    /// It refused, in the protocol's form.
    #[error(transparent)]
    Plugin(Error),
}

fn searched(path: &[PathBuf]) -> String {
    path.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
}

/// The environment of a call.
pub(crate) struct Call<'a> {
    pub(crate) command: Command,
    /// None for STATUS and GC.
    pub(crate) attachment: Option<&'a Attachment>,
    pub(crate) args: &'a [(String, String)],
    pub(crate) path: &'a [PathBuf],
    pub(crate) timeout: Duration,
}

/// The file that is plugin `kind`.
pub(crate) fn find(path: &[PathBuf], kind: &str) -> Result<PathBuf, ExecError> {
    path.iter()
        .map(|directory| directory.join(kind))
        .find(|program| program.is_file())
        .ok_or_else(|| ExecError::NotFound { kind: kind.to_owned(), path: path.to_vec() })
}

/// Runs plugin `kind` with `stdin`; its standard output if it succeeds.
pub(crate) fn call(call: &Call<'_>, kind: &str, stdin: &[u8]) -> Result<Vec<u8>, ExecError> {
    let program = find(call.path, kind)?;
    let mut child = orphan::forbid(&mut Process::new(&program))
        .env_clear()
        .envs(environment(call))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ExecError::Start { program, source })?;
    let exchanged = exchange(&mut child, stdin, call.timeout);
    let status = child.wait().map_err(ExecError::Pipe)?;
    let (stdout, stderr) = exchanged?;
    for line in String::from_utf8_lossy(&stderr).lines() {
        tracing::debug!(plugin = kind, "{line}");
    }
    if status.success() {
        return Ok(stdout);
    }
    // A plugin that dies without a word gets one.
    Err(ExecError::Plugin(Error::read(&stdout).unwrap_or_else(|| {
        let said = String::from_utf8_lossy(&stderr);
        let last = said.lines().next_back().unwrap_or_default();
        Error::new(Code::Plugin(999), format!("ended with {status} and no error in JSON")).details(last)
    })))
}

fn environment(call: &Call<'_>) -> Vec<(&'static str, String)> {
    let args: Vec<_> = call.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut environment = vec![
        ("CNI_COMMAND", call.command.as_str().to_owned()),
        ("CNI_ARGS", args.join(";")),
        ("CNI_PATH", searched(call.path)),
    ];
    if let Some(Attachment { container, if_name, netns }) = call.attachment {
        environment.push(("CNI_CONTAINERID", container.to_string()));
        environment.push(("CNI_IFNAME", if_name.to_string()));
        environment
            .push(("CNI_NETNS", netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default()));
    }
    // What a plugin needs to find its tools, and what makes it log.
    for name in ["PATH", "GUESTWIRE_LOG", "GUESTWIRE_CRASH_AFTER"] {
        if let Ok(value) = env::var(name) {
            environment.push((name, value));
        }
    }
    environment
}

/// Writes all of `stdin` while reading both outputs to their ends. On failure the child is killed.
fn exchange(child: &mut Child, stdin: &[u8], timeout: Duration) -> Result<(Vec<u8>, Vec<u8>), ExecError> {
    let deadline = Instant::now() + timeout;
    let (Some(input), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(ExecError::Pipe(io::Error::other("a pipe is missing")));
    };
    thread::scope(|scope| {
        scope.spawn(move || feed(input, stdin));
        let outputs = drain(stdout, stderr, || deadline.saturating_duration_since(Instant::now()));
        outputs.map_err(|stop| {
            // Also unblocks the writer, which the scope waits for. The process may have ended by itself meanwhile.
            let _ = child.kill();
            stop.unwrap_or(ExecError::Timeout(timeout))
        })
    })
}

/// Reads both to their ends. The error is `None` when no time is left.
fn drain(
    mut stdout: ChildStdout,
    mut stderr: ChildStderr,
    left: impl Fn() -> Duration,
) -> Result<(Vec<u8>, Vec<u8>), Option<ExecError>> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let (out_ready, err_ready) = {
            // A pipe whose other end is closed is always ready, so it must not be polled again.
            let open = [(out_open, stdout.as_fd()), (err_open, stderr.as_fd())];
            let mut fds: Vec<_> = open
                .iter()
                .filter(|(open, _)| *open)
                .map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN))
                .collect();
            wait(&mut fds, left())?;
            let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
            (out_open && ready.next().unwrap_or(false), err_open && ready.next().unwrap_or(false))
        };
        if out_ready {
            out_open = take(&mut stdout, &mut out)?;
        }
        if err_ready {
            err_open = take(&mut stderr, &mut err)?;
        }
    }
    Ok((out, err))
}

fn feed(mut input: ChildStdin, text: &[u8]) {
    // A plugin need not read its configuration (VERSION does not); what it says then is in its answer.
    if let Err(error) = input.write_all(text) {
        tracing::debug!("the plugin did not read its configuration: {error}");
    }
}

fn wait(fds: &mut [PollFd<'_>], left: Duration) -> Result<(), Option<ExecError>> {
    let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    match poll(fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
        Ok(0) => Err(None),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(Some(ExecError::Pipe(errno.into()))),
    }
}

/// Reads what is there; false at the end.
fn take(from: &mut impl io::Read, to: &mut Vec<u8>) -> Result<bool, Option<ExecError>> {
    let mut chunk = [0; 16384];
    let length = from.read(&mut chunk).map_err(|error| Some(ExecError::Pipe(error)))?;
    to.extend_from_slice(chunk.get(..length).unwrap_or_default());
    if to.len() > MAX_OUTPUT { Err(Some(ExecError::TooMuch)) } else { Ok(length > 0) }
}
