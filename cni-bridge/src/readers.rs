//! The readers of what comes from outside, without a look at the machine: for fuzzing and its corpus.

use cni::{Error, Request};

use crate::{bridge, policy, tap, tuning};

/// Reads a request's configuration as each plugin of this crate does, and says what each makes of it.
pub fn request(request: &Request) -> [Result<(), Error>; 3] {
    [bridge::read(request), tuning::read(request), tap::read(request)]
}

/// Reads node policies.
///
/// # Errors
/// What is wrong with them.
pub fn policy(yaml: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(policy::read(yaml)?)
}
