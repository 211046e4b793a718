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
fn what_the_operator_writes_is_understood() {
    let config = parse(json!({
        "type": "sriov", "deviceID": "0000:07:10.1", "vlan": 100, "vlanQoS": 3, "vlanProto": "802.1Q",
        "spoofchk": "on", "trust": "off", "link_state": "auto", "min_tx_rate": 10, "max_tx_rate": 100,
        "runtimeConfig": {"mac": "02:00:00:00:00:01", "CNIDeviceInfoFile": "/x"}, "ipam": {},
    }));
    let expected = Config {
        device: "0000:07:10.1".parse().ok(),
        vlan: Some(VfVlan { id: 100, qos: 3, protocol: VlanProtocol::Dot1Q }),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        min_rate: Some(10),
        max_rate: Some(100),
        spoof_check: Some(true),
        trust: Some(false),
        link_state: Some(VfLinkState::Auto),
        device_info: Some("/x".into()),
    };
    assert_eq!(config, Ok(expected));
}

#[test]
fn what_is_left_out_is_left_alone() {
    let empty =
        json!({"spoofchk": "", "trust": "", "link_state": "", "vlanProto": "", "mac": "", "vlanQoS": 0});
    let config = parse(empty).unwrap();
    assert_eq!(config, parse(json!({})).unwrap());
    assert_eq!(config.attributes(&Vf::default()), []);
}

#[test]
fn a_vlan_of_0_takes_the_vf_out_of_its_vlan() {
    let config = parse(json!({"vlan": 0})).unwrap();
    assert_eq!(config.attributes(&Vf::default()), [Attribute::Vlan(VfVlan::default())]);
}

#[test]
fn one_rate_keeps_the_other() {
    let now = Vf { rate: VfRate { min: 5, max: 9 }, ..Vf::default() };
    let attributes = |config: Value| parse(config).unwrap().attributes(&now);
    assert_eq!(attributes(json!({"max_tx_rate": 7})), [Attribute::Rate(VfRate { min: 5, max: 7 })]);
    assert_eq!(attributes(json!({"min_tx_rate": 7})), [Attribute::Rate(VfRate { min: 7, max: 9 })]);
}

#[test]
fn the_most_particular_address_wins() {
    let mac = |last: u8| Some(Mac([2, 0, 0, 0, 0, last]));
    let args = "MAC=02:00:00:00:00:02";
    let all = json!({"runtimeConfig": {"mac": "02:00:00:00:00:01"}, "mac": "02:00:00:00:00:03"});
    assert_eq!(parse_with_args(all, args).unwrap().mac, mac(1));
    assert_eq!(parse_with_args(json!({"mac": "02:00:00:00:00:03"}), args).unwrap().mac, mac(2));
    assert_eq!(parse(json!({"mac": "02:00:00:00:00:03"})).unwrap().mac, mac(3));
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    let table = [
        (json!({"deviceID": "07:10.1"}), Code::InvalidConfig, "deviceID: \"07:10.1\" is not a PCI address"),
        (json!({"vlan": 4095}), Code::InvalidConfig, "vlan: is 4095, which IEEE 802.1Q reserves"),
        (json!({"vlan": 4096}), Code::InvalidConfig, "vlan: is 4096; allowed: 0 (none), 1 to 4094"),
        (json!({"vlan": -1}), Code::InvalidConfig, "vlan: is -1"),
        (json!({"vlan": "100"}), Code::Decode, "vlan"),
        (json!({"vlan": 1, "vlanQoS": 8}), Code::InvalidConfig, "vlanQoS: is 8; allowed: 0 to 7"),
        (json!({"vlanQoS": 3}), Code::InvalidConfig, "vlanQoS: is 3 without a vlan"),
        (json!({"vlan": 0, "vlanQoS": 3}), Code::InvalidConfig, "vlanQoS: is 3 without a vlan"),
        (json!({"vlanProto": "802.1ad"}), Code::InvalidConfig, "vlanProto: is \"802.1ad\" without a vlan"),
        (json!({"vlan": 1, "vlanProto": "802.1x"}), Code::InvalidConfig, "vlanProto: is \"802.1x\"; allowed"),
        (json!({"min_tx_rate": 2, "max_tx_rate": 1}), Code::InvalidConfig, "min_tx_rate: is 2, more than"),
        (json!({"max_tx_rate": -1}), Code::InvalidConfig, "max_tx_rate: is -1"),
        (json!({"min_tx_rate": 1u64 << 32}), Code::InvalidConfig, "min_tx_rate: is 4294967296"),
        (json!({"spoofchk": true}), Code::InvalidConfig, "in quotes"),
        (json!({"trust": "yes"}), Code::InvalidConfig, "trust: is \"yes\"; allowed: \"on\", \"off\""),
        (json!({"link_state": "up"}), Code::InvalidConfig, "link_state: is \"up\"; allowed"),
        (json!({"mac": "01:00:5e:00:00:01"}), Code::InvalidConfig, "mac: is 01:00:5e:00:00:01, which no"),
        (json!({"runtimeConfig": {"mac": "x"}}), Code::InvalidConfig, "runtimeConfig.mac: \"x\" is not"),
    ];
    for (config, code, message) in table {
        let error = parse(config.clone()).unwrap_err();
        assert_eq!(error.code, code, "{config}: {error}");
        assert!(error.to_string().contains(message), "{config}: {error}");
    }
    assert!(parse(json!({"min_tx_rate": 2, "max_tx_rate": 0})).is_ok(), "0 is no bound");
}
