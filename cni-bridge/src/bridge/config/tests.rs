//! What a configuration may say.

use cni::{Code, Error, Request};
use serde_json::{Value, json};

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
        vlan: VlanId::try_from(100u16).ok(),
        preserve_default_vlan: false,
        mac_spoof_check: true,
        ..Config::for_tests()
    };
    assert_eq!(config, Ok(expected));
}

#[test]
fn what_is_left_out_has_the_documented_default() {
    let config = parse(json!({})).unwrap();
    assert_eq!((config.bridge.as_str(), config.vlan, config.mac_spoof_check), ("cni0", None, false));
    assert!(config.preserve_default_vlan);
    assert_eq!(parse(json!({"vlan": 0, "mtu": 0, "ipam": {}})).unwrap(), config);
    assert_eq!(parse(json!({"ipam": {"type": ""}})).unwrap(), config);
}

#[test]
fn a_trunk_s_keys_are_known_in_any_case() {
    let trunk = |entries: Value| parse(json!({"vlanTrunk": entries, "preserveDefaultVlan": false}));
    let written = trunk(json!([{"minID": 10, "maxID": 20}, {"id": 7}])).unwrap();
    assert_eq!(trunk(json!([{"minId": 10, "MAXID": 20}, {"ID": 7}])).unwrap(), written);
    assert_eq!(trunk(json!([{"id": 7, "minID": 10, "maxID": 20}])).unwrap().trunk.len(), 2);
    let error = trunk(json!([{"minId": 20, "maxId": 10}])).unwrap_err();
    assert_eq!(error.code, Code::InvalidConfig);
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
        (json!({"ipspoofchk": "yes"}), Code::Decode, "ipspoofchk"),
        (json!({"ipspoofchk": true}), Code::InvalidConfig, "ipspoofchk: is true without ipam"),
        (
            json!({"ipspoofchk": ["192.0.2.1", "192.0.2.0/24"]}),
            Code::InvalidConfig,
            "ipspoofchk[1]: is \"192.0.2.0/24\"; allowed",
        ),
        (json!({"ipspoofchk": ["::"]}), Code::InvalidConfig, "ipspoofchk[0]"),
        (json!({"ipspoofchk": vec!["192.0.2.1"; 33]}), Code::InvalidConfig, "lists 33 addresses"),
        (
            json!({"bridge": "twelve-bytes", "vlan": 4094, "isGateway": true}),
            Code::InvalidConfig,
            "bridge: with vlan 4094 and a gateway: interface name",
        ),
        (json!({"uplink": "eth1"}), Code::InvalidConfig, "uplink: is set without a VLAN"),
        (json!({"uplink": "a/b", "vlan": 5}), Code::InvalidConfig, "uplink: interface name"),
        (json!({"vlanTrunk": vec![json!({"id": 7}); 4095]}), Code::InvalidConfig, "vlanTrunk: lists 4095"),
        (json!({"ipMasq": "yes"}), Code::Decode, "ipMasq"),
        (json!({"ipMasqBackend": "pf"}), Code::InvalidConfig, "ipMasqBackend: is \"pf\"; allowed"),
        (json!({"ipam": []}), Code::InvalidConfig, "ipam: must be an object"),
        (json!({"ipam": {"subnet": "10.0.0.0/8"}}), Code::InvalidConfig, "ipam: type is missing"),
        (json!({"ipam": {"type": "../sh"}}), Code::InvalidConfig, "ipam: type is"),
        (json!({"vlanTrunk": [{"id": 0}]}), Code::InvalidConfig, "vlanTrunk[0].id: is 0; allowed: 1 to 4094"),
        (
            json!({"vlanTrunk": [{"id": 7}, {"minID": 9, "maxID": 8}]}),
            Code::InvalidConfig,
            "vlanTrunk[1].minID",
        ),
        (json!({"vlanTrunk": [{"minID": 9}]}), Code::InvalidConfig, "vlanTrunk[0].maxID: is missing"),
        (json!({"vlanTrunk": [{"maxID": 9}]}), Code::InvalidConfig, "vlanTrunk[0].minID: is missing"),
        (
            json!({"vlanTrunk": [{"id": 7, "maxID": 9}]}),
            Code::InvalidConfig,
            "vlanTrunk[0].minID: is missing",
        ),
        (json!({"vlanTrunk": [{}]}), Code::InvalidConfig, "vlanTrunk[0].id: is missing"),
        (
            json!({"hairpinMode": true, "promiscMode": true}),
            Code::InvalidConfig,
            "hairpinMode: is set together",
        ),
        (
            json!({"disableContainerInterface": true, "ipam": {"type": "host-local"}}),
            Code::InvalidConfig,
            "disableContainerInterface: is set together",
        ),
    ];
    for (config, code, message) in table {
        let error = parse(config.clone()).unwrap_err();
        assert_eq!(error.code, code, "{config}: {error}");
        assert!(error.to_string().contains(message), "{config}: {error}");
    }
    assert_eq!(parse_with_args(json!({}), "X=1").unwrap_err().code, Code::InvalidEnvironment);
}
