//! The KubeVirt and Multus objects guestwire reads and writes, as Rust types.
//!
//! [`manifest`] turns a user's `VirtualMachine` into a checked specification, [`nad`] reads
//! NetworkAttachmentDefinitions, [`vmi`] is what is known of a running VM (`VirtualMachineInstance`) and
//! [`status_dir`] the directory in which the supervisor publishes it and from which `secondary-dns` reads it.
//! Nothing here touches a VM.

pub mod manifest;
pub mod nad;
pub mod names;
pub mod quantity;
pub mod status_dir;
pub mod vmi;
pub mod yaml;
