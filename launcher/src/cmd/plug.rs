//! `plug` and `unplug`: a NIC that is a PCI function of the node, given to and taken from a guest that runs.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use vm_api::names::NameError;

use super::{Directories, Target};
use crate::supervisor::requests::{Answer, MAX_LINE, Request};
use crate::vm::layout::{REQUEST_SOCKET, VmDir, VmId};
use crate::vm::socket;

/// What guest, VMM and plugins may take together: each has its own limit, which is told as such.
const PATIENCE: Duration = Duration::from_secs(180);

/// Gives a running guest an interface that was unplugged.
#[derive(Debug, Args)]
pub(crate) struct Plug {
    #[command(flatten)]
    nic: Nic,
}

/// Takes an interface from a running guest, and gives its PCI function back to the node.
#[derive(Debug, Args)]
pub(crate) struct Unplug {
    #[command(flatten)]
    nic: Nic,
}

#[derive(Debug, Args)]
struct Nic {
    #[command(flatten)]
    target: Target,
    /// The interface's name in the manifest.
    interface: String,
    #[command(flatten)]
    directories: Directories,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlugError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    #[error("VM {0} is not running")]
    NotRunning(VmId),
    #[error("cannot ask the supervisor on {}", path.display())]
    Ask { path: PathBuf, source: io::Error },
    #[error("the supervisor of VM {id} has not answered within {} s", PATIENCE.as_secs())]
    Silent { id: VmId },
    #[error("VM {id}: {message}")]
    Failed { id: VmId, message: String },
}

impl Plug {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), PlugError> {
        self.nic.ask(|interface| Request::Plug { interface })
    }
}

impl Unplug {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), PlugError> {
        self.nic.ask(|interface| Request::Unplug { interface })
    }
}

impl Nic {
    fn ask(self, request: impl FnOnce(String) -> Request) -> Result<(), PlugError> {
        let id = self.target.id()?;
        let layout = self.directories.layout().map_err(PlugError::WorkingDirectory)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PlugError::Runtime)?;
        let directory = layout.vm_dir(&id);
        let request = request(self.interface);
        let answer = runtime.block_on(async { timeout(PATIENCE, exchange(&directory, &request)).await });
        let answer = answer.map_err(|_late| PlugError::Silent { id: id.clone() })?;
        let answer = answer.map_err(|source| PlugError::Ask { path: directory.requests(), source })?;
        match answer {
            Some(Answer::Done { message }) => {
                println!("{id}: {message}");
                Ok(())
            }
            Some(Answer::Failed { message }) => Err(PlugError::Failed { id, message }),
            None => Err(PlugError::NotRunning(id)),
        }
    }
}

/// The supervisor's answer; none if there is no supervisor.
async fn exchange(directory: &VmDir, request: &Request) -> io::Result<Option<Answer>> {
    let Some(mut supervisor) = socket::connect(directory.path(), REQUEST_SOCKET).await? else {
        return Ok(None);
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    supervisor.write_all(&line).await?;
    let mut answer = Vec::new();
    supervisor.take(MAX_LINE).read_to_end(&mut answer).await?;
    Ok(Some(serde_json::from_slice(&answer)?))
}
