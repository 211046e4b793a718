//! The virtual machine monitor: one process, one guest.
//!
//! Started by the supervisor with a control channel as its only means (see [`crate::control`]).

use std::process::ExitCode;

use crate::control::{Channel, ControlError, VMM_CHANNEL_FD, exit_code};

/// The `vmm` role: takes the channel, runs the guest it describes, and ends with an [`exit_code`].
pub(crate) fn main() -> ExitCode {
    let channel = crate::inherited::take(VMM_CHANNEL_FD)
        .map_err(ControlError::NotAChannel)
        .and_then(Channel::from_fd)
        .and_then(|channel| channel.receive_config());
    match channel {
        Ok(_config) => ExitCode::from(exit_code::CLEAN),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(exit_code::FAILED)
        }
    }
}
