//! What goes over the control socket.

use std::collections::BTreeMap;
use std::net::IpAddr;

use net_types::Mac;
use serde::{Deserialize, Serialize};

use crate::spec::LinkName;

/// The version of both messages. Another one is refused.
pub const VERSION: u32 = 1;

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 64 << 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Add a link.
    Add {
        /// What to call it; without, it gets a name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<LinkName>,
        /// `END,END`, as on the command line.
        ends: String,
    },
    /// End a link.
    Remove {
        /// Which.
        name: LinkName,
    },
    /// Say which links there are.
    List {
        /// Only this one, if it is there; without, all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<LinkName>,
    },
    /// Say what links counted.
    Stats {
        /// Which; without, all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<LinkName>,
    },
    /// Copy a link's frames.
    Capture {
        /// Which.
        name: LinkName,
        /// Bytes to keep of each frame; without, all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snap: Option<u32>,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Done(Done),
    /// It was not.
    Error {
        /// Which kind of reason: stable.
        code: ErrorCode,
        /// The reason, for people.
        message: String,
    },
}

/// What was done, or is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// The link that was added.
    Added(LinkName),
    /// The link that is gone.
    Removed(LinkName),
    /// The links.
    Links(Vec<LinkInfo>),
    /// What they counted.
    Stats(Vec<LinkStats>),
    /// Frames follow.
    Capturing(LinkName),
}

/// Why something was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request cannot be understood.
    BadRequest,
    /// It has another version.
    Version,
    /// The name is taken.
    Exists,
    /// There is no link of that name.
    NoSuchLink,
    /// The link, or the daemon, cannot do it.
    Failed,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Its name.
    pub name: LinkName,
    /// The CPU it runs on; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// Its ends.
    pub ends: [EndInfo; 2],
    /// Why it is not there: it is remembered, and could not be added again after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An end of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndInfo {
    /// As it was asked for.
    pub end: String,
    /// Whether frames can be sent to it now.
    pub running: bool,
    /// Addresses seen in its frames, the latest first. Only if it is observed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<AddressInfo>,
}

/// An address that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressInfo {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub mac: Mac,
    /// Seconds since it was last seen.
    pub age: u64,
}

/// What a link counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Its name.
    pub name: LinkName,
    /// From the first end to the second, and back.
    pub directions: [DirectionStats; 2],
    /// Why ends were closed, and how often, for each end.
    pub faults: [BTreeMap<String, u64>; 2],
}

/// What one direction of a link counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DirectionStats {
    /// The end that frames came from.
    pub from: String,
    /// Frames passed on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Batches they came in.
    pub batches: u64,
    /// Kicks that woke the worker.
    pub kicks: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}
