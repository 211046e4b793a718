//! The CNI plugin `cnv-tuning`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main("cnv-tuning", "Tunes a pod's network interface and namespace", &cni_bridge::tuning::CnvTuning)
}
