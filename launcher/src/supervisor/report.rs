//! What the supervisor tells the `up` that started it: one line of JSON on a pipe, once.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// How the first start of the guest went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Report {
    /// The guest's CPUs run.
    Running,
    /// They never will.
    Failed {
        /// Why.
        message: String,
    },
}

/// The supervisor's end of the pipe.
#[derive(Debug)]
pub(super) struct Reporter(Option<File>);

impl Reporter {
    pub(super) fn new(pipe: OwnedFd) -> Self {
        Self(Some(pipe.into()))
    }

    /// Nothing has been reported yet.
    pub(super) fn is_first(&self) -> bool {
        self.0.is_some()
    }

    /// The guest runs. Only the first report counts.
    pub(super) fn running(&mut self) {
        self.report(&Report::Running);
    }

    /// The guest will not run.
    pub(super) fn failed(&mut self, message: String) {
        self.report(&Report::Failed { message });
    }

    fn report(&mut self, report: &Report) {
        let Some(mut pipe) = self.0.take() else { return };
        let sent = serde_json::to_vec(report).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            pipe.write_all(&line)
        });
        if let Err(error) = sent {
            // `up` was killed; the VM goes on without it.
            tracing::warn!("cannot report to the command that started this: {error}");
        }
    }
}
