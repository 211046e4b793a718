//! The `sriov` CNI plugin and command: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sriov::main()
}
