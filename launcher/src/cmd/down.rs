//! `down`: ends a VM and removes everything it had.
//!
//! A living supervisor is asked (SIGTERM): it presses the guest's power button, waits, and tears down. What a dead one
//! left is torn down here. Both can happen in one call, and a VM that is not there is fine.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use vm_api::names::NameError;

use super::{Directories, Target};
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::{Holder, Lock, LockError, Locking};
use crate::vm::record::Record;
use crate::vm::teardown::{self, TeardownError};

/// What a supervisor may take besides the guest's grace period: stopping the VMM, and the plugins' DEL.
const OVERTIME: Duration = Duration::from_secs(90);
/// How long a process may take from its start until it signs the lock it was handed.
const UNSIGNED: Duration = Duration::from_secs(10);
/// The grace period of a VM whose record cannot be read.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// Shuts a VM down and removes what it had.
#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    target: Target,
    /// Stop the guest at once instead of pressing its power button.
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    directories: Directories,
}

/// Whether the guest may shut down by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// It has its grace period.
    Graceful,
    /// It is stopped.
    AtOnce,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A VM, running or dead.
    Something,
    /// Nothing.
    Nothing,
}

/// Why a VM is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("VM {id}: cannot signal its supervisor, process {pid}")]
    Signal { id: VmId, pid: i32, source: io::Error },
    #[error("VM {id}: its supervisor, process {pid}, could not be ended")]
    Undying { id: VmId, pid: i32 },
    #[error("the VM has ended, but something it had is left; `vm-launcher gc` tries again to remove it")]
    Teardown(#[from] TeardownError),
}

impl Down {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), DownError> {
        let id = self.target.id()?;
        let layout = self.directories.layout().map_err(DownError::WorkingDirectory)?;
        let haste = if self.now { Haste::AtOnce } else { Haste::Graceful };
        match bring_down(&layout, &id, haste)? {
            Found::Something => println!("{id}: down"),
            Found::Nothing => println!("{id}: is not there"),
        }
        Ok(())
    }
}

/// Ends and removes VM `id`.
pub(crate) fn bring_down(layout: &Layout, id: &VmId, haste: Haste) -> Result<Found, DownError> {
    /// A supervisor, a killed one, and a concurrent `up` or `down` each take one.
    const ATTEMPTS: u32 = 4;
    let mut found = Found::Nothing;
    let mut pid = 0;
    for _attempt in 0..ATTEMPTS {
        match lock_after(pid, layout, id)? {
            Locking::Locked(lock) => {
                if layout.vm_dir(id).path().exists() {
                    found = Found::Something;
                }
                teardown::tear_down(layout, id)?;
                lock.release()?;
                return Ok(found);
            }
            Locking::Busy(holder) => {
                found = Found::Something;
                pid = holder.pid;
                end(layout, id, &holder, haste).map_err(|source| DownError::Signal {
                    id: id.clone(),
                    pid: holder.pid,
                    source,
                })?;
            }
        }
    }
    Err(DownError::Undying { id: id.clone(), pid })
}

/// Tries to lock a VM whose holder `ended`, for as long as it seems to hold it still: a supervisor that a killed `up` has
/// just started holds the lock before it signs it.
fn lock_after(ended: i32, layout: &Layout, id: &VmId) -> Result<Locking, LockError> {
    let deadline = Instant::now() + UNSIGNED;
    loop {
        match Lock::try_lock(&layout.lock(id))? {
            Locking::Busy(holder) if holder.pid == ended && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            locking => return Ok(locking),
        }
    }
}

/// Asks the holder of a VM's lock to end, and waits; kills it if it does not.
fn end(layout: &Layout, id: &VmId, holder: &Holder, haste: Haste) -> io::Result<()> {
    let record = Record::read(&layout.vm_dir(id)).ok().flatten();
    let grace = record.map_or(DEFAULT_GRACE, |record| Duration::from_secs(record.plan.grace_seconds));
    holder.signal(Signal::TERM)?;
    let patience = match haste {
        Haste::Graceful => grace + OVERTIME,
        Haste::AtOnce => {
            // The supervisor sees one signal when two come together, so the second waits for the first's effect.
            if wait(holder, Duration::from_millis(200))? {
                return Ok(());
            }
            holder.signal(Signal::TERM)?;
            OVERTIME
        }
    };
    if wait(holder, patience)? {
        return Ok(());
    }
    tracing::warn!(vm = %id, pid = holder.pid, "the supervisor does not end; it is killed");
    holder.signal(Signal::KILL)?;
    wait(holder, OVERTIME).map(|_ended| ())
}

/// Waits for the end of a process; false if it has not come in time.
fn wait(holder: &Holder, patience: Duration) -> io::Result<bool> {
    let Some(handle) = holder.handle() else { return Ok(true) };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut handles = [PollFd::from_borrowed_fd(handle, PollFlags::IN)];
        match poll(&mut handles, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_lock_that_a_killed_up_has_just_handed_on_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { run: folder.path().join("run"), state: folder.path().join("state") };
        let id = VmId { namespace: "default".to_owned(), name: "vm1".to_owned() };
        let lock = layout.lock(&id);
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        // The file still names the `up`, which is dead.
        let mut up = Command::new("true").spawn().unwrap();
        up.wait().unwrap();
        fs::write(&lock, format!("{}\n", up.id())).unwrap();
        let mut heir = Command::new("flock");
        let heir = heir.arg(&lock).args(["sh", "-c", "echo; sleep 1"]);
        let mut heir = heir.stdout(Stdio::piped()).spawn().unwrap();
        // It has the lock once it speaks.
        io::Read::read_exact(heir.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let found = bring_down(&layout, &id, Haste::AtOnce).unwrap();
        assert_eq!(found, Found::Something);
        heir.wait().unwrap();
    }
}
