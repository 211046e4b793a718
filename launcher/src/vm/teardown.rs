//! Removes everything a VM had, whatever state it is in.
//!
//! The caller holds the VM's lock, and its VMM has ended. Every step is tried even if one before failed; what is
//! gone already is fine, so it can be run twice. The record stays as long as anything else does, so that the next
//! `down`, `up` or `gc` can finish.

use std::fs;
use std::io;

use netns::NetNs;

use super::layout::{Layout, VmId};
use super::record::{Record, RecordError};
use super::setup;
use super::slot;
use crate::file;

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{id}: {}", messages.join("; "))]
pub(crate) struct TeardownError {
    id: VmId,
    messages: Vec<String>,
}

/// Removes all of `id` but its lock.
pub(crate) fn tear_down(layout: &Layout, id: &VmId) -> Result<(), TeardownError> {
    let mut failures = Failures::default();
    let directory = layout.vm_dir(id);
    let record = match Record::read(&directory) {
        Ok(record) => record,
        Err(error @ RecordError::Content { .. }) => {
            // Nothing can be learned from it, ever. The plugins' own garbage collection has to find the rest.
            tracing::warn!(%id, "{}", crate::chain(&error));
            None
        }
        Err(error) => {
            failures.note(&error);
            return failures.into_result(id);
        }
    };
    if let Some(record) = &record {
        detach(layout, record, &mut failures);
    }
    failures.check(NetNs::remove(&layout.netns(id)));
    failures.check(layout.status().remove(&id.namespace, &id.name));
    if let Some(record) = &record {
        failures.check(slot::give_back(&layout.slots(), record.slot, &id.key()));
    }
    if failures.messages.is_empty() {
        match fs::remove_dir_all(directory.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failures.note(&RecordError::Io {
                    operation: "remove",
                    path: directory.path().to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    for shared in [
        directory.path().to_owned(),
        layout.netns(id),
        layout.slots().join("x"),
        layout.cni_cache().join("x"),
        layout.status().root().join("x"),
    ] {
        if let Some(parent) = shared.parent() {
            file::prune(parent, &layout.run);
        }
    }
    failures.into_result(id)
}

/// Takes the NICs off, the last first.
fn detach(layout: &Layout, record: &Record, failures: &mut Failures) {
    for nic in record.plan.nics.iter().rev() {
        failures.check(setup::detach(layout, record, nic));
    }
}

#[derive(Debug, Default)]
struct Failures {
    messages: Vec<String>,
}

impl Failures {
    fn note(&mut self, error: &(dyn std::error::Error + 'static)) {
        self.messages.push(crate::chain(error).to_string());
    }

    fn check<T, E: std::error::Error + 'static>(&mut self, result: Result<T, E>) {
        if let Err(error) = result {
            self.note(&error);
        }
    }

    fn into_result(self, id: &VmId) -> Result<(), TeardownError> {
        if self.messages.is_empty() {
            Ok(())
        } else {
            Err(TeardownError { id: id.clone(), messages: self.messages })
        }
    }
}
