//! The `vm-launcher` command: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    launcher::main()
}
