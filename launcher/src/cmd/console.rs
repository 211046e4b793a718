//! `console`: the guest's serial console on this terminal.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, stdin, stdout};
use tokio::net::UnixStream;
use vm_api::names::NameError;

use super::{Directories, Target};
use crate::vm::layout::{CONSOLE_SOCKET, VmId};
use crate::vm::socket;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Connects this terminal with a guest's serial console; Ctrl-] leaves it.
#[derive(Debug, Args)]
pub(crate) struct Console {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    directories: Directories,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error("VM {0} is not running")]
    NotRunning(VmId),
    #[error("cannot connect to {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("cannot use this terminal")]
    Terminal(#[source] io::Error),
    #[error("the connection to the console failed")]
    Relay(#[source] io::Error),
}

impl Console {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), ConsoleError> {
        let id = self.target.id()?;
        let layout = self.directories.layout().map_err(ConsoleError::WorkingDirectory)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ConsoleError::Terminal)?;
        let relayed = runtime.block_on(async {
            let directory = layout.vm_dir(&id);
            let connection = socket::connect(directory.path(), CONSOLE_SOCKET)
                .await
                .map_err(|source| ConsoleError::Connect { path: directory.console(), source })?
                .ok_or_else(|| ConsoleError::NotRunning(id.clone()))?;
            let raw = RawTerminal::new().map_err(ConsoleError::Terminal)?;
            if raw.is_some() {
                eprint!("Connected to {id}. Leave with Ctrl-].\r\n");
            }
            relay(connection).await.map_err(ConsoleError::Relay)
        });
        // A read of standard input cannot be taken back; it must not keep the process.
        runtime.shutdown_background();
        relayed
    }
}

/// Carries bytes both ways until the VM goes or the user leaves. When there is no more input, output goes on.
async fn relay(connection: UnixStream) -> io::Result<()> {
    let (mut from_guest, mut to_guest) = connection.into_split();
    let (mut input, mut output) = (stdin(), stdout());
    let (mut typed, mut shown) = ([0; 1024], [0; 4096]);
    let mut open = true;
    loop {
        tokio::select! {
            read = input.read(&mut typed), if open => {
                let bytes = typed.get(..read?).unwrap_or_default();
                open = !bytes.is_empty();
                let leave = bytes.iter().position(|byte| *byte == ESCAPE);
                to_guest.write_all(bytes.get(..leave.unwrap_or(bytes.len())).unwrap_or_default()).await?;
                if leave.is_some() {
                    return Ok(());
                }
            }
            read = from_guest.read(&mut shown) => {
                let bytes = shown.get(..read?).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(());
                }
                output.write_all(bytes).await?;
                output.flush().await?;
            }
        }
    }
}

/// Standard input in raw mode; as it was before when this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// None if standard input is no terminal.
    fn new() -> io::Result<Option<Self>> {
        let terminal = io::stdin();
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
