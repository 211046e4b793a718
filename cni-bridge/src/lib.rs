//! CNI plugins that put virtual machines on Linux bridges.
//!
//! * [`bridge`]: `cnv-bridge`, a port on a bridge of the node for a pod: a veth pair, its VLANs, its spoof check.
//! * [`tap`]: `vm-tap`, which turns that pod interface into a tap for a virtual machine.
//! * [`tuning`]: `cnv-tuning`, which sets what the plugin before it leaves alone.
//!
//! `cnv-bridge` is also a command ([`cli`]) that makes the bridges a node policy asks for.
//!
//! Each is a type that implements [`cni::Plugin`]; the binaries in `src/bin` only name them. The plugins never call
//! each other: they meet in a chain's `prevResult` and in what the kernel shows.

pub mod bridge;
pub mod cli;
mod compare;
mod journal;
mod policy;
pub mod readers;
mod spoof;
pub mod tap;
pub mod tuning;
