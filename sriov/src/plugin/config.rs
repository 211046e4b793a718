//! The configuration of `sriov`, checked.

use std::path::PathBuf;

use cni::{Code, Error, Request};
use net_types::{Mac, PciAddress, VlanId};
use netlink::{Vf, VfLinkState, VfRate, VfVlan, VlanProtocol};
use serde::Deserialize;
use serde_json::Value;

use crate::attribute::Attribute;

/// What a network asks of the plugin. What is not asked for stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The VF; ADD needs it.
    pub(crate) device: Option<PciAddress>,
    /// VLAN, priority and kind of tag; identifier 0 takes the VF out of its VLAN.
    pub(crate) vlan: Option<VfVlan>,
    /// The VF's address.
    pub(crate) mac: Option<Mac>,
    /// Guaranteed bandwidth in Mbit/s.
    pub(crate) min_rate: Option<u32>,
    /// Most bandwidth in Mbit/s.
    pub(crate) max_rate: Option<u32>,
    /// Only its own address may send.
    pub(crate) spoof_check: Option<bool>,
    /// It may change its address.
    pub(crate) trust: Option<bool>,
    /// How its link follows the PF's.
    pub(crate) link_state: Option<VfLinkState>,
    /// Where to describe the device for others, as given.
    pub(crate) device_info: Option<PathBuf>,
}

/// The configuration as it is written. Names are those of sriov-cni's documentation.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "deviceID")]
    device: Option<String>,
    vlan: Option<i64>,
    #[serde(rename = "vlanQoS")]
    vlan_qos: Option<i64>,
    #[serde(rename = "vlanProto")]
    vlan_protocol: Option<String>,
    mac: Option<String>,
    min_tx_rate: Option<i64>,
    max_tx_rate: Option<i64>,
    #[serde(rename = "spoofchk")]
    spoof_check: Option<Value>,
    trust: Option<Value>,
    link_state: Option<String>,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Runtime,
}

#[derive(Default, Deserialize)]
struct Runtime {
    mac: Option<String>,
    #[serde(rename = "deviceID")]
    device: Option<String>,
    #[serde(rename = "CNIDeviceInfoFile")]
    device_info: Option<PathBuf>,
}

/// Keys that are honoured.
const KEYS: [&str; 10] = [
    "deviceID",
    "vlan",
    "vlanQoS",
    "vlanProto",
    "mac",
    "min_tx_rate",
    "max_tx_rate",
    "spoofchk",
    "trust",
    "link_state",
];

/// Keys of the reference plugin about its log. Ours goes to standard error and has a variable of its own.
const LOG_KEYS: [&str; 2] = ["logLevel", "logFile"];

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        request.args.expect_only(&["MAC"])?;
        let known: Vec<_> = KEYS.into_iter().chain(LOG_KEYS).collect();
        for key in LOG_KEYS.iter().filter(|key| request.config.contains_key(**key)) {
            tracing::info!("{key} has no effect: the log is on standard error, filtered by GUESTWIRE_LOG");
        }
        let Raw {
            device,
            vlan,
            vlan_qos,
            vlan_protocol,
            mac,
            min_tx_rate,
            max_tx_rate,
            spoof_check,
            trust,
            link_state,
            runtime,
        } = request.config_of(&known)?;
        // The capability is the most particular, the configuration the least.
        let macs = [
            ("runtimeConfig.mac", runtime.mac.as_deref()),
            ("CNI_ARGS MAC", request.args.get("MAC")),
            ("mac", mac.as_deref()),
        ];
        let devices =
            [("deviceID", device.as_deref()), ("runtimeConfig.deviceID", runtime.device.as_deref())];
        let (min_rate, max_rate) = rates(min_tx_rate, max_tx_rate)?;
        Ok(Self {
            device: first(devices).map(|(field, text)| device_of(field, text)).transpose()?,
            vlan: vlan_of(vlan, vlan_qos, vlan_protocol.as_deref())?,
            mac: first(macs).map(|(field, text)| mac_of(field, text)).transpose()?,
            min_rate,
            max_rate,
            spoof_check: switch("spoofchk", spoof_check)?,
            trust: switch("trust", trust)?,
            link_state: link_state.as_deref().map(link_state_of).transpose()?.flatten(),
            device_info: runtime.device_info.filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

impl Config {
    /// What is to be set on a VF that has `now`, in the order to set it in.
    pub(crate) fn attributes(&self, now: &Vf) -> Vec<Attribute> {
        let rate = (self.min_rate.is_some() || self.max_rate.is_some()).then(|| VfRate {
            min: self.min_rate.unwrap_or(now.rate.min),
            max: self.max_rate.unwrap_or(now.rate.max),
        });
        let wanted = [
            self.vlan.map(Attribute::Vlan),
            self.mac.map(Attribute::Mac),
            rate.map(Attribute::Rate),
            self.spoof_check.map(Attribute::SpoofCheck),
            self.trust.map(Attribute::Trust),
            self.link_state.map(Attribute::LinkState),
        ];
        wanted.into_iter().flatten().collect()
    }
}

/// The first value that is given and not empty, with the name of its field.
fn first<'a, const N: usize>(
    values: [(&'static str, Option<&'a str>); N],
) -> Option<(&'static str, &'a str)> {
    values.into_iter().find_map(|(field, text)| Some((field, text.filter(|text| !text.is_empty())?)))
}

fn device_of(field: &str, text: &str) -> Result<PciAddress, Error> {
    text.parse().map_err(|error: net_types::PciAddressError| invalid(field, &error.to_string()))
}

fn vlan_of(id: Option<i64>, qos: Option<i64>, protocol: Option<&str>) -> Result<Option<VfVlan>, Error> {
    const MAX_QOS: i64 = 7;
    let number = id.unwrap_or(0);
    let id_number = match u64::try_from(number).ok().map(|id| (id, VlanId::try_from(id))) {
        Some((0, _)) => 0,
        Some((_, Ok(id))) => id.get(),
        Some((4095, _)) => {
            return Err(invalid("vlan", "is 4095, which IEEE 802.1Q reserves; allowed: 0 (none), 1 to 4094"));
        }
        _ => return Err(invalid("vlan", &format!("is {number}; allowed: 0 (none), 1 to 4094"))),
    };
    let qos = qos.unwrap_or(0);
    let qos_number = u8::try_from(qos).ok().filter(|_| qos <= MAX_QOS);
    let qos_number =
        qos_number.ok_or_else(|| invalid("vlanQoS", &format!("is {qos}; allowed: 0 to {MAX_QOS}")))?;
    let protocol_kind = match protocol.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "802.1q") => VlanProtocol::Dot1Q,
        Some("802.1ad") => VlanProtocol::Dot1Ad,
        Some(other) => {
            return Err(invalid("vlanProto", &format!("is {other:?}; allowed: \"802.1q\", \"802.1ad\"")));
        }
    };
    if id_number == 0 && qos_number != 0 {
        return Err(invalid("vlanQoS", &format!("is {qos} without a vlan; it needs one from 1 to 4094")));
    }
    if id_number == 0 && protocol_kind == VlanProtocol::Dot1Ad {
        return Err(invalid("vlanProto", "is \"802.1ad\" without a vlan; it needs one from 1 to 4094"));
    }
    Ok(id.map(|_| VfVlan { id: id_number, qos: qos_number, protocol: protocol_kind }))
}

fn mac_of(field: &str, text: &str) -> Result<Mac, Error> {
    let mac: Mac = text.parse().map_err(|error: net_types::MacError| invalid(field, &error.to_string()))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(invalid(field, &format!("is {mac}, which no interface can have; allowed: unicast addresses")))
}

fn rates(min: Option<i64>, max: Option<i64>) -> Result<(Option<u32>, Option<u32>), Error> {
    let rate = |field, rate: Option<i64>| {
        let number = |rate: i64| {
            let allowed = || format!("is {rate}; allowed: 0 (off) or Mbit/s up to {}", u32::MAX);
            u32::try_from(rate).map_err(|_out_of_range| invalid(field, &allowed()))
        };
        rate.map(number).transpose()
    };
    let rates = (rate("min_tx_rate", min)?, rate("max_tx_rate", max)?);
    match rates {
        (Some(min), Some(max)) if max != 0 && min > max => {
            Err(invalid("min_tx_rate", &format!("is {min}, more than max_tx_rate {max}")))
        }
        rates => Ok(rates),
    }
}

fn switch(field: &str, value: Option<Value>) -> Result<Option<bool>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "on" => Ok(Some(true)),
        Some(Value::String(text)) if text == "off" => Ok(Some(false)),
        Some(Value::Bool(bare)) => Err(invalid(
            field,
            &format!(
                "is {bare}; allowed: \"on\", \"off\", in quotes (YAML takes a bare on or off for a boolean)"
            ),
        )),
        Some(other) => Err(invalid(field, &format!("is {other}; allowed: \"on\", \"off\""))),
    }
}

fn link_state_of(text: &str) -> Result<Option<VfLinkState>, Error> {
    match text {
        "" => Ok(None),
        "auto" => Ok(Some(VfLinkState::Auto)),
        "enable" => Ok(Some(VfLinkState::Enable)),
        "disable" => Ok(Some(VfLinkState::Disable)),
        _ => Err(invalid("link_state", &format!("is {text:?}; allowed: \"auto\", \"enable\", \"disable\""))),
    }
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: {what}"))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
