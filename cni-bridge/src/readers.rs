//! The readers of what comes from outside, without a look at the machine: for fuzzing and its corpus.

use cni::{Command, Error, Request, Success};

use crate::{bridge, policy, tap, tuning};

/// Variables of a call that are not in its text.
const USUAL: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_NETNS", "/run/netns/p"),
    ("CNI_IFNAME", "net1"),
    ("CNI_PATH", "/usr/lib/cni"),
];

/// Reads a request's configuration as each plugin of this crate does, and says what each makes of it.
pub fn request(request: &Request) -> [Result<(), Error>; 3] {
    [bridge::read(request), tuning::read(request), tap::read(request)]
}

/// Reads the text of a call: what stands before the first brace are variables, `NAME=VALUE`, one a line; the rest is the
/// configuration.
///
/// # Errors
/// What is wrong with it.
pub fn parse(command: Command, text: &[u8]) -> Result<Request, Error> {
    let (variables, stdin) = text.split_at(text.iter().position(|byte| *byte == b'{').unwrap_or(0));
    let variables = String::from_utf8_lossy(variables);
    let given: Vec<_> = variables.lines().filter_map(|line| line.split_once('=')).chain(USUAL).collect();
    let variable = |name: &str| {
        let value = given.iter().find(|(given, _)| *given == name);
        value.map(|(_, value)| (*value).to_owned())
    };
    Request::parse(command, variable, stdin)
}

/// Reads the text of a call as one of each operation and each plugin, and gives the refusals.
pub fn call(text: &[u8]) -> Vec<Error> {
    let mut refusals = Vec::new();
    for command in [Command::Add, Command::Del, Command::Check, Command::Status, Command::Gc] {
        match parse(command, text) {
            Ok(asked) => {
                refusals.extend(request(&asked).into_iter().filter_map(Result::err));
                refusals.extend(asked.valid_attachments().err());
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    refusals
}

/// Reads the answer of an IPAM plugin as `cnv-bridge` does for a network with a gateway.
///
/// # Errors
/// What is wrong with it; or what it refuses, if it is a refusal.
pub fn answer(answer: &[u8]) -> Result<Success, Error> {
    if let Some(refusal) = Error::read(answer) {
        return Err(refusal);
    }
    bridge::complete(Success::read(answer)?)
}

/// Reads node policies.
///
/// # Errors
/// What is wrong with them.
pub fn policy(yaml: &str) -> Result<(), Box<dyn std::error::Error>> {
    Ok(policy::read(yaml)?)
}
