//! The KubeVirt fields guestwire reads and writes, as Rust types.
//!
//! [`vmi`] is what is known of a running VM (`VirtualMachineInstance`), [`status_dir`] the directory in which the
//! supervisor publishes it and from which `secondary-dns` reads it. Nothing here touches a VM.

pub mod status_dir;
pub mod vmi;
