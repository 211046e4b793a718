//! SR-IOV: virtual functions for pods and virtual machines.
//!
//! One binary, `sriov`: a CNI plugin when a runtime calls it (`CNI_COMMAND` is set), a command line otherwise.
//!
//! * [`plugin`]: hands a VF to a pod, as an interface or as a device for a guest, and takes it back as it was.
//! * [`cli`]: applies node policies, renders networks, shows what there is.
//!
//! Both stand on three modules: [`sysfs`] (what PCI functions there are), [`attribute`] (what is set on a VF by way of
//! its PF) and [`journal`] (who has which VF, and what it was like before).

mod attribute;
mod cli;
mod journal;
mod plugin;
mod policy;
mod render;
mod status;
mod sysfs;

use std::process::ExitCode;

/// The whole `main` of the binary.
pub fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_some() {
        cni::main("sriov", "Hands an SR-IOV virtual function to a pod", &plugin::Sriov)
    } else {
        cli::main()
    }
}
