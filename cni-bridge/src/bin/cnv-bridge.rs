//! The CNI plugin `cnv-bridge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main("cnv-bridge", "Attaches a pod to a Linux bridge of the node", &cni_bridge::bridge::CnvBridge)
}
