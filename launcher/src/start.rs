//! `up`'s side of starting a supervisor: it is given the VM's lock, and is waited for until its guest runs.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::process::{Command, ExitStatus, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

use crate::inherited;
use crate::supervisor::report::Report;
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::Lock;

/// Longest report that is read, in bytes.
const MAX_REPORT: u64 = 64 << 10;

/// Why a VM's guest does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot start the supervisor")]
    Spawn(#[source] io::Error),
    #[error("cannot wait for the supervisor")]
    Wait(#[source] io::Error),
    #[error("{0}")]
    Failed(String),
    #[error("the supervisor ended without a word: {0}")]
    Silent(ExitStatus),
    #[error("interrupted")]
    Interrupted,
}

/// What there was to see while waiting.
enum Seen {
    Line(String),
    Interrupt,
}

/// Starts the supervisor of `id` and waits until its guest runs. After an error the supervisor has ended.
pub(crate) fn supervisor(layout: &Layout, id: &VmId, lock: &Lock) -> Result<(), StartError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Wait)?;
    runtime.block_on(async {
        let mut child =
            command(layout, id, lock).map_err(StartError::Spawn)?.spawn().map_err(StartError::Spawn)?;
        let seen = report(&mut child).await.map_err(StartError::Wait)?;
        let message = match seen {
            Seen::Line(line) => match serde_json::from_str(&line) {
                Ok(Report::Running) => return Ok(()),
                Ok(Report::Failed { message }) => Some(StartError::Failed(message)),
                // It has died; its exit status says how.
                Err(_) => None,
            },
            Seen::Interrupt => {
                // Twice: the second time it does not wait for the guest.
                for _ in 0..2 {
                    terminate(&child);
                }
                Some(StartError::Interrupted)
            }
        };
        let status = child.wait().await.map_err(StartError::Wait)?;
        Err(message.unwrap_or(StartError::Silent(status)))
    })
}

async fn report(child: &mut tokio::process::Child) -> io::Result<Seen> {
    let pipe = child.stdout.take().ok_or_else(|| io::Error::other("there is no pipe"))?;
    let mut lines = BufReader::new(pipe.take(MAX_REPORT)).lines();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        line = lines.next_line() => Ok(Seen::Line(line?.unwrap_or_default())),
        _ = interrupt.recv() => Ok(Seen::Interrupt),
        _ = terminate.recv() => Ok(Seen::Interrupt),
    }
}

fn terminate(child: &tokio::process::Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It has not been waited for, so the id is its own; that it has ended meanwhile is fine.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

fn command(layout: &Layout, id: &VmId, lock: &Lock) -> io::Result<tokio::process::Command> {
    // It lives on: what our caller had open, a lock say, is none of its business.
    inherited::keep()?;
    let log = File::options().create(true).append(true).open(layout.vm_dir(id).supervisor_log())?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("supervise")
        .args(["--namespace", &id.namespace, &id.name])
        .arg("--run")
        .arg(&layout.run)
        .arg("--state")
        .arg(&layout.state)
        .current_dir("/")
        .stdin(Stdio::from(lock.as_fd().try_clone_to_owned()?))
        .stdout(Stdio::piped())
        .stderr(log);
    Ok(command.into())
}
