//! The CNI plugin and command `cnv-bridge`.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_some() {
        cni::main(
            "cnv-bridge",
            "Attaches a pod to a Linux bridge of the node",
            &cni_bridge::bridge::CnvBridge,
        )
    } else {
        cni_bridge::cli::main()
    }
}
