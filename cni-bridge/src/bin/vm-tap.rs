//! The CNI plugin `vm-tap`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main("vm-tap", "Turns a pod interface into a tap for a virtual machine", &cni_bridge::tap::VmTap)
}
