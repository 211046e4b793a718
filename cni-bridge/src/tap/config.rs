//! The configuration of `vm-tap`, checked.

use cni::{Code, Error, Request};
use serde::Deserialize;

use super::pod::Mode;

/// What is asked of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// How the tap is joined to the pod interface.
    pub(crate) mode: Mode,
    /// The user who may open the tap.
    pub(crate) owner: Option<u32>,
    /// The group whose members may open it.
    pub(crate) group: Option<u32>,
    /// Queue pairs the tap shall have.
    pub(crate) queues: u16,
}

#[derive(Deserialize)]
struct Raw {
    mode: Option<String>,
    owner: Option<i64>,
    group: Option<i64>,
    queues: Option<i64>,
}

const KEYS: [&str; 4] = ["mode", "owner", "group", "queues"];
/// `MAX_TAP_QUEUES` (drivers/net/tap.c).
const MAX_QUEUES: u16 = 256;

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        let Raw { mode, owner, group, queues } = request.config_of(&KEYS)?;
        let id = |field: &str, id: Option<i64>| {
            let checked = |id: i64| {
                // 4294967295 is (uid_t) -1, "nobody is meant" to the kernel.
                let fitting = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
                fitting.ok_or_else(|| invalid(field, id, "0 to 4294967294"))
            };
            id.map(checked).transpose()
        };
        let queues = queues.unwrap_or(1);
        let fitting = u16::try_from(queues).ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
        let mode = match mode.as_deref() {
            None | Some("bridge") => Mode::Bridge,
            Some("tc") => Mode::Tc,
            Some(other) => return Err(invalid("mode", format!("{other:?}"), "bridge, tc")),
        };
        Ok(Self {
            mode,
            owner: id("owner", owner)?,
            group: id("group", group)?,
            queues: fitting.ok_or_else(|| invalid("queues", queues, "1 to 256"))?,
        })
    }
}

fn invalid(field: &str, value: impl std::fmt::Display, allowed: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: is {value}; allowed: {allowed}"))
}
