//! SR-IOV: virtual functions for pods and virtual machines.
//!
//! The binary `sriov` is a CNI plugin ([`plugin`]): it hands a VF to a pod, as an interface or as a device for a guest,
//! and takes it back as it was. It stands on three modules: [`sysfs`] (what PCI functions there are), [`attribute`]
//! (what is set on a VF by way of its PF) and [`journal`] (who has which VF, and what it was like before).

mod attribute;
mod journal;
mod plugin;
mod sysfs;

use std::process::ExitCode;

/// The whole `main` of the binary.
pub fn main() -> ExitCode {
    cni::main("sriov", "Hands an SR-IOV virtual function to a pod", &plugin::Sriov)
}
