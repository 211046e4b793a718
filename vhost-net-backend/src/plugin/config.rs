//! The configuration of `vhost-user`, checked.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use cni::{Code, Error, Request};
use serde::Deserialize;

use crate::cli::CONTROL_SOCKET;
use crate::spec::MAX_QUEUE_PAIRS;

/// Where sockets are made, unless said otherwise.
const SOCKETS: &str = "/run/guestwire/vhost";

/// The longest folder for sockets: with a name of ours behind it, `sun_path` (108 bytes) is not full.
const LONGEST_FOLDER: usize = 60;

/// What is asked of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// The daemon's control socket.
    pub(super) control: PathBuf,
    /// The folder for guests' sockets.
    pub(super) sockets: PathBuf,
    /// Queue pairs a guest may use.
    pub(super) queues: NonZeroUsize,
    /// Whether the guest is kept to the interface's MAC address.
    pub(super) spoof_check: bool,
    /// Bytes a second the guest may send.
    pub(super) bytes: Option<NonZeroU64>,
    /// Frames a second the guest may send.
    pub(super) packets: Option<NonZeroU64>,
    /// Where the runtime wants the device described.
    pub(super) device_info: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    control: Option<PathBuf>,
    sockets: Option<PathBuf>,
    queues: Option<i64>,
    spoof_check: Option<bool>,
    bytes: Option<i64>,
    packets: Option<i64>,
    #[serde(default)]
    runtime_config: Runtime,
}

#[derive(Default, Deserialize)]
struct Runtime {
    #[serde(rename = "CNIDeviceInfoFile")]
    device_info: Option<PathBuf>,
}

const KEYS: [&str; 6] = ["control", "sockets", "queues", "spoofCheck", "bytes", "packets"];

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        let Raw { control, sockets, queues, spoof_check, bytes, packets, runtime_config } =
            request.config_of(&KEYS)?;
        let queues = queues.unwrap_or(1);
        let fitting = usize::try_from(queues).ok().filter(|queues| *queues <= MAX_QUEUE_PAIRS);
        let sockets = absolute("sockets", sockets.unwrap_or_else(|| SOCKETS.into()))?;
        if sockets.as_os_str().len() > LONGEST_FOLDER {
            return Err(invalid("sockets", &format!("has more than {LONGEST_FOLDER} bytes")));
        }
        Ok(Self {
            control: absolute("control", control.unwrap_or_else(|| CONTROL_SOCKET.into()))?,
            sockets,
            queues: fitting
                .and_then(NonZeroUsize::new)
                .ok_or_else(|| invalid("queues", &format!("is {queues}; allowed: 1 to {MAX_QUEUE_PAIRS}")))?,
            spoof_check: spoof_check.unwrap_or(true),
            bytes: rate("bytes", bytes)?,
            packets: rate("packets", packets)?,
            device_info: runtime_config.device_info.filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

impl Config {
    /// What DEL and GC need of it. What has become invalid since ADD must not keep a link alive.
    pub(super) fn for_removal(request: &Request) -> Result<Self, Error> {
        let path = |key: &str| request.config.get(key).and_then(|value| value.as_str()).map(PathBuf::from);
        let runtime = request.config.get("runtimeConfig");
        let device_info = runtime.and_then(|runtime| runtime.get("CNIDeviceInfoFile")?.as_str());
        Ok(Self {
            control: absolute("control", path("control").unwrap_or_else(|| CONTROL_SOCKET.into()))?,
            sockets: path("sockets").unwrap_or_else(|| SOCKETS.into()),
            queues: NonZeroUsize::MIN,
            spoof_check: true,
            bytes: None,
            packets: None,
            device_info: device_info.filter(|path| !path.is_empty()).map(PathBuf::from),
        })
    }
}

/// A path that can stand in a link's text.
fn absolute(field: &str, path: PathBuf) -> Result<PathBuf, Error> {
    let text = path.to_string_lossy();
    if path.is_absolute() && !text.contains([',', '?', '&']) {
        return Ok(path);
    }
    Err(invalid(field, &format!("is {text:?}; allowed: an absolute path without ',', '?' and '&'")))
}

fn rate(field: &str, rate: Option<i64>) -> Result<Option<NonZeroU64>, Error> {
    let Some(rate) = rate else { return Ok(None) };
    let number = u64::try_from(rate).ok().and_then(NonZeroU64::new);
    number.map(Some).ok_or_else(|| invalid(field, &format!("is {rate}; allowed: 1 or more, per second")))
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: {what}"))
}
