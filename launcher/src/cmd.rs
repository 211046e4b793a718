//! The commands a person types. Each reads and checks all of its input first, then acts, then prints one line per VM.

pub(crate) mod console;
pub(crate) mod down;
pub(crate) mod gc;
pub(crate) mod list;
pub(crate) mod plug;
pub(crate) mod status;
pub(crate) mod up;

use std::path::PathBuf;

use clap::Args;
use vm_api::names::NameError;

use crate::vm::layout::{Layout, VmId};

/// Where VMs are kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct Directories {
    /// Directory of what lasts until the next reboot: sockets, status, network namespaces.
    #[arg(long, value_name = "DIR", default_value = "/run/guestwire")]
    run: PathBuf,
    /// Directory of what is kept: the MACs given to VMs.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/guestwire")]
    state: PathBuf,
}

impl Directories {
    /// Made absolute: processes started later have another working directory.
    pub(crate) fn layout(&self) -> std::io::Result<Layout> {
        Ok(Layout { run: std::path::absolute(&self.run)?, state: std::path::absolute(&self.state)? })
    }
}

/// Which VM.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// The VM's name.
    name: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

impl Target {
    pub(crate) fn id(&self) -> Result<VmId, NameError> {
        VmId::new(&self.namespace, &self.name)
    }
}

/// The supervisor of a VM; started by `up` only.
#[derive(Debug, Args)]
pub(crate) struct Supervise {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    directories: Directories,
}

/// Why a supervisor ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SuperviseError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] std::io::Error),
    #[error(transparent)]
    Supervisor(#[from] crate::supervisor::SupervisorError),
}

impl Supervise {
    /// Runs the role.
    pub(crate) fn run(self) -> Result<(), SuperviseError> {
        let layout = self.directories.layout().map_err(SuperviseError::WorkingDirectory)?;
        Ok(crate::supervisor::run(&layout, &self.target.id()?)?)
    }
}
