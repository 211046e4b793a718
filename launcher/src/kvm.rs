//! `/dev/kvm`, opened for a VMM that may not open anything itself.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;

const DEVICE: &str = "/dev/kvm";

/// There is no hardware virtualization to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open {DEVICE}; guests need hardware virtualization (a CPU with VMX or SVM, and the kvm module)"
)]
pub(crate) struct KvmError(#[source] io::Error);

/// Opens it for reading and writing.
pub(crate) fn open() -> Result<OwnedFd, KvmError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map(OwnedFd::from).map_err(KvmError)
}
