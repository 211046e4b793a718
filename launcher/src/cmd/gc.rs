//! `gc`: removes what VMs left whose supervisor is dead.

use std::fs;
use std::io;
use std::path::Path;

use clap::Args;

use super::Directories;
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::{Lock, Locking};
use crate::vm::slot;
use crate::vm::teardown;

/// Removes what VMs left whose supervisor is dead.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    directories: Directories,
}

/// Something was left that could not be removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GcError {
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error("{}", .0.join("; "))]
    Left(Vec<String>),
}

/// What a collection did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    removed: Vec<VmId>,
    failures: Vec<String>,
}

impl Gc {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), GcError> {
        let layout = self.directories.layout().map_err(GcError::WorkingDirectory)?;
        let Collected { removed, failures } = collect(&layout);
        for id in &removed {
            println!("{id}: removed");
        }
        if failures.is_empty() { Ok(()) } else { Err(GcError::Left(failures)) }
    }
}

impl Collected {
    /// For a command that only collects by the way.
    pub(crate) fn log(&self) {
        for id in &self.removed {
            tracing::info!(vm = %id, "removed what a dead supervisor left");
        }
        for failure in &self.failures {
            tracing::warn!("cannot remove what a dead supervisor left: {failure}");
        }
    }
}

/// Removes every VM that has a directory, or a user slot, and no owner.
pub(crate) fn collect(layout: &Layout) -> Collected {
    let mut collected = Collected::default();
    let mut found = recorded(&layout.run.join("vms"));
    found.extend(with_slots(layout));
    found.sort();
    found.dedup();
    for id in found {
        match collect_one(layout, &id) {
            Ok(true) => collected.removed.push(id),
            Ok(false) => {}
            Err(message) => collected.failures.push(message),
        }
    }
    collected
}

fn collect_one(layout: &Layout, id: &VmId) -> Result<bool, String> {
    let text = |error: &(dyn std::error::Error + 'static)| crate::chain(error).to_string();
    let lock = match Lock::try_lock(&layout.lock(id)).map_err(|error| text(&error))? {
        Locking::Locked(lock) => lock,
        Locking::Busy(_) => return Ok(false),
    };
    teardown::tear_down(layout, id).map_err(|error| text(&error))?;
    // A slot taken just before its owner died, and not yet recorded.
    for number in slots_of(layout, id) {
        slot::give_back(&layout.slots(), number, &id.key()).map_err(|error| text(&error))?;
    }
    crate::file::prune(&layout.slots(), &layout.run);
    lock.release().map_err(|error| text(&error))?;
    Ok(true)
}

/// VMs with a directory. What is no VM's name is none of ours.
fn recorded(vms: &Path) -> Vec<VmId> {
    let of_namespace = |namespace: String| {
        names(&vms.join(&namespace)).into_iter().filter_map(move |name| VmId::new(&namespace, &name).ok())
    };
    names(vms).into_iter().flat_map(of_namespace).collect()
}

fn with_slots(layout: &Layout) -> Vec<VmId> {
    let slots = layout.slots();
    let owner = |slot: String| fs::read_to_string(slots.join(slot)).ok();
    names(&slots).into_iter().filter_map(owner).filter_map(|key| VmId::from_key(&key)).collect()
}

fn slots_of(layout: &Layout, id: &VmId) -> Vec<u32> {
    let slots = layout.slots();
    let is_its =
        |slot: &u32| fs::read_to_string(slots.join(slot.to_string())).is_ok_and(|key| key == id.key());
    names(&slots).iter().filter_map(|slot| slot.parse().ok()).filter(is_its).collect()
}

/// Names in a directory; none if it is not there.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
