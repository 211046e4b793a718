//! The configuration of `cnv-tuning`, checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cni::{Code, Error, Request};
use net_types::Mac;
use serde::Deserialize;

use super::sysctl::{self, Sysctl};

/// What is asked of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Settings of the pod's namespace.
    pub(super) sysctls: Vec<Sysctl>,
    /// What the interface shall be.
    pub(super) wanted: Wanted,
    /// Where the interface's own values are kept meanwhile.
    pub(super) data_dir: PathBuf,
}

/// Properties of the interface; none is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) mac: Option<Mac>,
    /// In bytes.
    pub(super) mtu: Option<u32>,
    pub(super) promiscuous: Option<bool>,
    pub(super) all_multicast: Option<bool>,
    /// In packets.
    pub(super) tx_queue_len: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    mac: Option<String>,
    mtu: Option<i64>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
    data_dir: Option<PathBuf>,
    #[serde(default)]
    runtime_config: Capability,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Capability {
    mac: Option<String>,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: RawArgs,
}

#[derive(Default, Deserialize)]
struct RawArgs {
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    mac: Option<String>,
    mtu: Option<i64>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_len: Option<i64>,
}

const KEYS: [&str; 7] = ["sysctl", "mac", "mtu", "promisc", "allmulti", "txQLen", "dataDir"];
/// Where the reference plugin keeps its files.
const DATA_DIR: &str = "/run/cni/tuning";

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        request.args.expect_only(&["MAC"])?;
        let Raw { sysctl, mac, mtu, promisc, allmulti, tx_queue_len, data_dir, runtime_config, args } =
            request.config_of(&KEYS)?;
        let by_args = args.cni;
        let if_name =
            request.attachment.as_ref().map(|attachment| attachment.if_name.as_str()).unwrap_or_default();
        let mut sysctls = sysctl::distinct(&sysctl, if_name)?;
        // They go before the network's own, however either is written.
        sysctls.extend(sysctl::distinct(&by_args.sysctl, if_name)?);
        let mac = [
            ("args.cni.mac", by_args.mac.as_deref()),
            ("runtimeConfig.mac", runtime_config.mac.as_deref()),
            ("CNI_ARGS MAC", request.args.get("MAC")),
            ("mac", mac.as_deref()),
        ];
        let mac =
            mac.into_iter().find_map(|(field, text)| Some((field, text.filter(|text| !text.is_empty())?)));
        Ok(Self {
            sysctls: sysctls.into_values().collect(),
            wanted: Wanted {
                mac: mac.map(|(field, text)| mac_of(field, text)).transpose()?,
                mtu: number("mtu", by_args.mtu.or(mtu), 68, 65535)?,
                // As to the reference plugin, false is nothing to do.
                promiscuous: by_args.promisc.or(promisc).filter(|on| *on),
                all_multicast: by_args.allmulti.or(allmulti),
                tx_queue_len: number("txQLen", by_args.tx_queue_len.or(tx_queue_len), 0, u32::MAX)?,
            },
            data_dir: data_dir
                .filter(|path| !path.as_os_str().is_empty())
                .map_or_else(|| Ok(DATA_DIR.into()), absolute)?,
        })
    }
}

/// Where the interface's values are kept: all that DEL needs, and there even if the rest of the configuration is what
/// ADD refused.
pub(super) fn data_dir(request: &Request) -> PathBuf {
    let written = request.member("dataDir").and_then(serde_json::Value::as_str);
    written.map(PathBuf::from).filter(|path| path.is_absolute()).unwrap_or_else(|| DATA_DIR.into())
}

/// A path that is the same wherever the runtime calls the plugin from.
fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    if path.is_absolute() {
        return Ok(path);
    }
    Err(invalid("dataDir", &format!("is {path:?}; allowed: an absolute path")))
}

/// An MTU of 0 means "as it is" to the reference plugin.
fn number(field: &str, value: Option<i64>, min: u32, max: u32) -> Result<Option<u32>, Error> {
    let checked = |value: i64| {
        let fitting = u32::try_from(value).ok().filter(|value| (min..=max).contains(value));
        fitting.ok_or_else(|| invalid(field, &format!("is {value}; allowed: {min} to {max}")))
    };
    value.filter(|value| *value != 0 || min == 0).map(checked).transpose()
}

fn mac_of(field: &str, text: &str) -> Result<Mac, Error> {
    let mac: Mac = text.parse().map_err(|error: net_types::MacError| invalid(field, &error.to_string()))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(invalid(field, &format!("is {mac}, which no interface can have; allowed: unicast addresses")))
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: {what}"))
}
