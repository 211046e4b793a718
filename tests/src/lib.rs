//! What the end-to-end tests share: a machine of one's own, namespaces, commands, CNI calls, before-and-after.
//!
//! Two test binaries use it: `netns` runs natively as root, `node` inside the node VM (`tests/node/boot`). Both
//! drive the workspace's built binaries as users and runtimes do, against the real kernel. nextest gives each test
//! a process of its own.
//!
//! A helper that cannot do its work panics with the whole story: the command line, its exit code, its output.
//! Nothing here skips: a test that lacks root, a device or a binary fails and says which.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper that fails is a test that fails: the panic is its report"
)]

mod api_server;
mod at_once;
mod binaries;
mod cni_call;
mod command;
mod container;
mod forward;
mod guest;
mod iperf3;
mod kubevirt;
mod launcher;
mod local_macpool;
mod namespace;
mod pod_interface;
mod sandbox;
mod snapshot;
mod ssh;
mod wait;

pub use api_server::ApiServer;
pub use at_once::at_once;
pub use binaries::{binary, binary_dir};
pub use cni_call::{Answer, CniCall};
pub use command::{Daemon, output, run, sh};
pub use container::Container;
pub use forward::Forward;
pub use guest::{GuestImage, seed_disk};
pub use iperf3::iperf3;
pub use launcher::{Launcher, example};
pub use local_macpool::LocalMacpool;
pub use namespace::Namespace;
pub use pod_interface::{furnish, set_silence, silence};
pub use sandbox::Sandbox;
pub use snapshot::{Snapshot, files};
pub use ssh::SshKey;
pub use wait::eventually;
