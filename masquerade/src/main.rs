//! The CNI plugin `masquerade`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main("masquerade", "Connects a virtual machine to its pod's network by NAT", &masquerade::Masquerade)
}
