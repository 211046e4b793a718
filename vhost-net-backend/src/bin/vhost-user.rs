//! The CNI plugin `vhost-user`: see the library's `plugin`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cni::main(
        "vhost-user",
        "Joins a pod interface to a guest's vhost-user socket",
        &vhost_net_backend::plugin::VhostUser,
    )
}
