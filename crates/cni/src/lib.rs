//! The Container Network Interface protocol, both sides of it (specification 1.1 and all earlier versions).
//!
//! *Plugin side*: a binary implements [`Plugin`] and calls [`main`], which turns environment and standard input into
//! a checked [`Request`], calls the plugin and prints a [`Success`] or an [`Error`] in the version the caller
//! speaks. *Runtime side*: [`runtime::Runtime`] executes chains of plugins as Multus and podman do.
//!
//! This crate touches no network: it reads, runs and prints.

mod args;
mod delegate;
mod error;
mod exec;
mod json;
mod mutation;
mod once;
mod output;
mod plugin;
mod request;
mod success;
mod version;

pub mod device_info;
pub mod runtime;

pub use args::Args;
pub use delegate::Ipam;
pub use error::{Code, Error};
pub use mutation::mutated;
pub use plugin::{Plugin, main};
pub use request::{Attachment, Command, ContainerId, Request};
pub use success::{Dns, Interface, Ip, ResultError, Route, Success};
pub use version::Version;
