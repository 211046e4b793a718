//! Executing one plugin once.

mod orphan;

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::request::{Attachment, Command};
use crate::success::ResultError;
use crate::{Code, Error};

/// Longest answer (and longest log) that is taken from a plugin, in bytes.
const MAX_OUTPUT: usize = 4 << 20;
/// What a pipe takes at once if it takes anything (`PIPE_BUF`), in bytes.
const PIPE_PART: usize = 4096;

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

/// Runs plugin `kind` with `stdin`; its standard output if it succeeds. It gets this process' environment, as libcni's
/// plugins do: what finds its tools, configures them and makes it log.
pub(crate) fn call(call: &Call<'_>, kind: &str, stdin: &[u8]) -> Result<Vec<u8>, ExecError> {
    let program = find(call.path, kind)?;
    let mut child = orphan::forbid(&mut Process::new(&program))
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
    environment
}

/// Writes all of `stdin` while reading both outputs to their ends, and waits for the child to end. On failure it is killed.
fn exchange(child: &mut Child, stdin: &[u8], timeout: Duration) -> Result<(Vec<u8>, Vec<u8>), ExecError> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    let pid = Pid::from_child(child);
    let mut pipes = Pipes {
        stdin: child.stdin.take(),
        unwritten: stdin,
        stdout: (child.stdout.take(), Vec::new()),
        stderr: (child.stderr.take(), Vec::new()),
    };
    let mut run = || {
        while pipes.are_open() {
            pipes.turn(left())?;
        }
        // Whoever closes its outputs need not have ended.
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| ExecError::Pipe(errno.into()))?;
        wait(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], left())
    };
    match run() {
        Ok(()) => Ok((pipes.stdout.1, pipes.stderr.1)),
        Err(stop) => {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            Err(stop.unwrap_or(ExecError::Timeout(timeout)))
        }
    }
}

/// What is exchanged with a child. A pipe whose other end is closed is always ready, so it is dropped.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    unwritten: &'a [u8],
    stdout: (Option<ChildStdout>, Vec<u8>),
    stderr: (Option<ChildStderr>, Vec<u8>),
}

/// Why an exchange was stopped; `None` when no time is left.
type Stop = Option<ExecError>;

impl Pipes<'_> {
    /// There is something to be read yet.
    fn are_open(&self) -> bool {
        self.stdout.0.is_some() || self.stderr.0.is_some()
    }

    /// Waits until a pipe is ready, and writes or reads what it takes or has.
    fn turn(&mut self, left: Duration) -> Result<(), Stop> {
        let [stdin_ready, stdout_ready, stderr_ready] = {
            let wanted = [
                (self.stdin.as_ref().map(ChildStdin::as_fd), PollFlags::POLLOUT),
                (self.stdout.0.as_ref().map(ChildStdout::as_fd), PollFlags::POLLIN),
                (self.stderr.0.as_ref().map(ChildStderr::as_fd), PollFlags::POLLIN),
            ];
            let mut fds: Vec<_> =
                wanted.iter().filter_map(|(fd, flags)| Some(PollFd::new((*fd)?, *flags))).collect();
            wait(&mut fds, left)?;
            let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
            wanted.map(|(fd, _)| fd.is_some() && ready.next().unwrap_or(false))
        };
        if stdin_ready {
            self.feed();
        }
        if stdout_ready {
            take(&mut self.stdout)?;
        }
        if stderr_ready {
            take(&mut self.stderr)?;
        }
        Ok(())
    }

    /// Writes as much as a pipe that is ready takes at least, so that writing does not wait.
    fn feed(&mut self) {
        let Some(pipe) = &mut self.stdin else { return };
        let part = self.unwritten.get(..PIPE_PART).unwrap_or(self.unwritten);
        match pipe.write(part) {
            Ok(length) => self.unwritten = self.unwritten.get(length..).unwrap_or_default(),
            // A plugin need not read its configuration (VERSION does not); what it says then is in its answer.
            Err(error) => {
                tracing::debug!("the plugin did not read its configuration: {error}");
                self.unwritten = &[];
            }
        }
        if self.unwritten.is_empty() {
            self.stdin = None;
        }
    }
}

fn wait(fds: &mut [PollFd<'_>], left: Duration) -> Result<(), Stop> {
    let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
    match poll(fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
        Ok(0) => Err(None),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(errno) => Err(Some(ExecError::Pipe(errno.into()))),
    }
}

/// Reads what is there; at its end the pipe is dropped.
fn take<T: io::Read>((from, to): &mut (Option<T>, Vec<u8>)) -> Result<(), Stop> {
    let Some(pipe) = from else { return Ok(()) };
    let mut chunk = [0; 16384];
    let length = pipe.read(&mut chunk).map_err(|error| Some(ExecError::Pipe(error)))?;
    to.extend_from_slice(chunk.get(..length).unwrap_or_default());
    if length == 0 {
        *from = None;
    }
    if to.len() > MAX_OUTPUT { Err(Some(ExecError::TooMuch)) } else { Ok(()) }
}
