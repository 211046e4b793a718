//! The configuration of `cnv-bridge`, checked.

use cni::{Code, Error, Request};
use net_types::{IfName, Mac, VlanId};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What a network asks of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The bridge to attach to.
    pub(crate) bridge: IfName,
    /// The access VLAN; none leaves the port as the bridge makes it.
    pub(crate) vlan: Option<VlanId>,
    /// Next to `vlan`: the port also stays in the bridge's default VLAN.
    pub(crate) preserve_default_vlan: bool,
    /// Only the pod's own address may send.
    pub(crate) mac_spoof_check: bool,
    /// MTU in bytes; none means the bridge's.
    pub(crate) mtu: Option<u32>,
    /// The pod interface's address; none lets the kernel choose.
    pub(crate) mac: Option<Mac>,
}

/// The configuration as it is written. Names are those of the reference plugin's documentation.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    bridge: Option<String>,
    vlan: Option<i64>,
    preserve_default_vlan: Option<bool>,
    #[serde(default, rename = "macspoofchk")]
    mac_spoof_check: bool,
    mtu: Option<i64>,
    #[serde(default)]
    runtime_config: Addresses,
    #[serde(default)]
    args: Args,
    #[serde(default)]
    ipam: Map<String, Value>,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: Addresses,
}

#[derive(Default, Deserialize)]
struct Addresses {
    mac: Option<String>,
}

/// Keys that are honoured.
const KEYS: [&str; 5] = ["bridge", "vlan", "preserveDefaultVlan", "macspoofchk", "mtu"];

/// Keys of the reference plugin that this release refuses to ignore: each would change what the network is.
const NOT_YET: [&str; 11] = [
    "isGateway",
    "isDefaultGateway",
    "forceAddress",
    "ipMasq",
    "hairpinMode",
    "promiscMode",
    "enabledad",
    "disableContainerInterface",
    "portIsolation",
    "ipMasqBackend",
    "vlanTrunk",
];

/// The smallest MTU Ethernet devices take (`ETH_MIN_MTU`) and the largest of a veth (`ETH_MAX_MTU`), in bytes.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

impl TryFrom<&Request> for Config {
    type Error = Error;

    fn try_from(request: &Request) -> Result<Self, Error> {
        request.args.expect_only(&["MAC"])?;
        let known: Vec<_> = KEYS.into_iter().chain(NOT_YET).collect();
        request.warn_of_unknown_keys(&known);
        refuse_unsupported(&request.config)?;
        let Raw { bridge, vlan, preserve_default_vlan, mac_spoof_check, mtu, runtime_config, args, ipam } =
            request.config_as()?;
        if !ipam.is_empty() {
            return Err(unsupported("ipam", "a guest's addresses are its own; leave ipam out or empty"));
        }
        let bridge = bridge.filter(|name| !name.is_empty()).unwrap_or_else(|| "cni0".to_owned());
        let vlan = vlan_of(vlan)?;
        if vlan.is_some() && preserve_default_vlan.is_none() {
            tracing::warn!(
                "preserveDefaultVlan is not set next to vlan: the port stays in the bridge's default VLAN too; \
                 set it to false to leave that VLAN, or to true to keep this without a warning"
            );
        }
        // The capability is the most particular, the environment the least.
        let mac = [
            ("runtimeConfig.mac", runtime_config.mac.as_deref()),
            ("args.cni.mac", args.cni.mac.as_deref()),
            ("CNI_ARGS MAC", request.args.get("MAC")),
        ];
        let mac =
            mac.into_iter().find_map(|(field, text)| Some((field, text.filter(|text| !text.is_empty())?)));
        Ok(Self {
            bridge: bridge
                .parse()
                .map_err(|error: net_types::IfNameError| invalid("bridge", &error.to_string()))?,
            vlan,
            preserve_default_vlan: preserve_default_vlan.unwrap_or(true),
            mac_spoof_check,
            mtu: mtu_of(mtu)?,
            mac: mac.map(|(field, text)| mac_of(field, text)).transpose()?,
        })
    }
}

fn vlan_of(vlan: Option<i64>) -> Result<Option<VlanId>, Error> {
    match vlan {
        None | Some(0) => Ok(None),
        Some(id) => {
            let known = u64::try_from(id).ok().and_then(|id| VlanId::try_from(id).ok());
            known.map(Some).ok_or_else(|| invalid("vlan", &format!("is {id}; allowed: 0 (off), 1 to 4094")))
        }
    }
}

fn mtu_of(mtu: Option<i64>) -> Result<Option<u32>, Error> {
    match mtu {
        None | Some(0) => Ok(None),
        Some(mtu) => {
            let fitting = u32::try_from(mtu).ok().filter(|mtu| MTU.contains(mtu));
            let allowed = || format!("is {mtu}; allowed: 0 (the bridge's), {} to {}", MTU.start(), MTU.end());
            fitting.map(Some).ok_or_else(|| invalid("mtu", &allowed()))
        }
    }
}

fn mac_of(field: &str, text: &str) -> Result<Mac, Error> {
    let mac: Mac = text.parse().map_err(|error: net_types::MacError| invalid(field, &error.to_string()))?;
    if mac.is_unicast() {
        return Ok(mac);
    }
    Err(invalid(field, &format!("is {mac}, which no interface can have; allowed: unicast addresses")))
}

fn refuse_unsupported(config: &Map<String, Value>) -> Result<(), Error> {
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value.as_str() == Some("");
    let set = |key: &&&str| {
        config.get(**key).is_some_and(|value| !off(value) && *value != Value::Array(Vec::new()))
    };
    match NOT_YET.iter().find(set) {
        None => Ok(()),
        Some(key) => Err(unsupported(key, "this release attaches virtual machines to existing bridges")),
    }
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new(Code::InvalidConfig, format!("{field}: {what}"))
}

fn unsupported(field: &str, why: &str) -> Error {
    Error::new(Code::UnsupportedField, format!("{field} is not supported")).details(why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(config: Value) -> Result<Config, Error> {
        parse_with_args(config, "")
    }

    fn parse_with_args(mut config: Value, args: &str) -> Result<Config, Error> {
        config["name"] = "n".into();
        config["cniVersion"] = "1.0.0".into();
        let environment = [
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "e"),
            ("CNI_PATH", "/p"),
            ("CNI_ARGS", args),
        ];
        let variable =
            |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Config::try_from(&Request::parse(cni::Command::Add, variable, config.to_string().as_bytes())?)
    }

    #[test]
    fn the_manual_s_example_is_understood() {
        let config = parse(json!({
            "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true, "vlan": 100, "preserveDefaultVlan": false,
        }));
        let expected = Config {
            bridge: "br1".parse().unwrap(),
            vlan: VlanId::try_from(100u16).ok(),
            preserve_default_vlan: false,
            mac_spoof_check: true,
            mtu: None,
            mac: None,
        };
        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn what_is_left_out_has_the_documented_default() {
        let config = parse(json!({})).unwrap();
        assert_eq!((config.bridge.as_str(), config.vlan, config.mac_spoof_check), ("cni0", None, false));
        assert!(config.preserve_default_vlan);
        assert_eq!(parse(json!({"vlan": 0, "mtu": 0, "ipam": {}})).unwrap(), config);
    }

    #[test]
    fn the_most_particular_address_wins() {
        let args = "MAC=02:00:00:00:00:03";
        let mac = |last: u8| Some(Mac([2, 0, 0, 0, 0, last]));
        let runtime = json!({"mac": "02:00:00:00:00:01"});
        let by_args = json!({"cni": {"mac": "02:00:00:00:00:02"}});
        let all = json!({"runtimeConfig": runtime, "args": by_args});
        assert_eq!(parse_with_args(all, args).unwrap().mac, mac(1));
        assert_eq!(parse_with_args(json!({"args": by_args}), args).unwrap().mac, mac(2));
        assert_eq!(parse_with_args(json!({}), args).unwrap().mac, mac(3));
        assert_eq!(parse_with_args(json!({}), "IgnoreUnknown=1;K8S_POD_NAME=p").unwrap().mac, None);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let table = [
            (json!({"vlan": 4095}), Code::InvalidConfig, "vlan: is 4095; allowed: 0 (off), 1 to 4094"),
            (json!({"vlan": -1}), Code::InvalidConfig, "vlan: is -1"),
            (json!({"vlan": "100"}), Code::Decode, "vlan"),
            (json!({"vlan": 1.5}), Code::Decode, "vlan"),
            (json!({"mtu": 67}), Code::InvalidConfig, "mtu: is 67"),
            (json!({"mtu": 65536}), Code::InvalidConfig, "mtu: is 65536"),
            (json!({"bridge": "sixteen-bytes-xx"}), Code::InvalidConfig, "bridge: interface name"),
            (json!({"bridge": "a/b"}), Code::InvalidConfig, "bridge: interface name"),
            (json!({"bridge": 7}), Code::Decode, "bridge"),
            (json!({"macspoofchk": "yes"}), Code::Decode, "macspoofchk"),
            (
                json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}),
                Code::InvalidConfig,
                "runtimeConfig.mac: is",
            ),
            (json!({"args": {"cni": {"mac": "x"}}}), Code::InvalidConfig, "args.cni.mac: \"x\" is not"),
            (json!({"isGateway": true}), Code::UnsupportedField, "isGateway is not supported"),
            (json!({"ipam": {"type": "dhcp"}}), Code::UnsupportedField, "ipam is not supported"),
        ];
        for (config, code, message) in table {
            let error = parse(config.clone()).unwrap_err();
            assert_eq!(error.code, code, "{config}: {error}");
            assert!(error.to_string().contains(message), "{config}: {error}");
        }
        assert_eq!(parse_with_args(json!({}), "X=1").unwrap_err().code, Code::InvalidEnvironment);
    }
}
