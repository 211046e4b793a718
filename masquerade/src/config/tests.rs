use serde_json::{Value, json};

use super::*;

fn parse(mut config: Value) -> Result<Config, Error> {
    config["name"] = "n".into();
    config["cniVersion"] = "1.1.0".into();
    let environment =
        [("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/p")];
    let variable = |name: &str| {
        environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    };
    Config::try_from(&Request::parse(cni::Command::Add, variable, config.to_string().as_bytes())?)
}

#[test]
fn defaults_are_kubevirt_s() {
    let config = parse(json!({})).unwrap();
    assert_eq!(config.v4.guest.to_string(), "10.0.2.2");
    assert_eq!(config.v6.guest.to_string(), "fd10:0:2::2");
    assert_eq!(config.rules.forwarded, Forwarded::All);
    assert!([49152, 49153].into_iter().all(|port| config.rules.reserved.contains(Protocol::Tcp, port)));
    assert_eq!(config.tap, Tap { owner: None, group: None, queues: 1 });
    assert_eq!(config.candidates, ["eth0".parse().unwrap()]);
}

#[test]
fn kubevirt_names_the_network_instead_of_the_interface() {
    let config = parse(json!({"args": {"cni": {"logicNetworkName": "bridge-net"}}})).unwrap();
    let names: Vec<_> = config.candidates.iter().map(IfName::as_str).collect();
    assert_eq!(names, ["pod03b731d2111", "eth0"]);
}

#[test]
fn reserved_ports_are_the_network_s_to_choose() {
    let config = parse(json!({"reservedPorts": [], "ports": [{"port": 49152}]})).unwrap();
    assert!(!config.rules.reserved.contains(Protocol::Tcp, 49152));
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    let table = [
        (
            json!({"vmNetworkCIDR": "10.0.2.0"}),
            Code::InvalidConfig,
            "vmNetworkCIDR: \"10.0.2.0\" is not an IPv4",
        ),
        (json!({"vmNetworkCIDR": "fd00::/64"}), Code::InvalidConfig, "vmNetworkCIDR: "),
        (
            json!({"vmIPv6NetworkCIDR": "fd00::/127"}),
            Code::InvalidConfig,
            "vmIPv6NetworkCIDR: fd00::/127 has prefix",
        ),
        (json!({"reservedPorts": [0]}), Code::InvalidConfig, "reservedPorts[0]: is 0; allowed"),
        (json!({"ports": [{"port": 49153}]}), Code::InvalidConfig, "ports[0]: TCP port 49153 is reserved"),
        (json!({"ports": [{"port": "80"}]}), Code::Decode, "ports[0].port"),
        (json!({"ports": [{}]}), Code::Decode, "ports[0]"),
        (json!({"istio": "yes"}), Code::Decode, "istio"),
        (json!({"mtu": 67}), Code::InvalidConfig, "mtu: is 67"),
        (json!({"owner": -1}), Code::InvalidConfig, "owner: is -1"),
        (json!({"group": 4294967295_u32}), Code::InvalidConfig, "group: is 4294967295"),
        (json!({"queues": 0}), Code::InvalidConfig, "queues: is 0; allowed: 1 to 256"),
        (json!({"queues": 257}), Code::InvalidConfig, "queues: is 257"),
    ];
    for (config, code, message) in table {
        let error = parse(config.clone()).unwrap_err();
        assert_eq!(error.code, code, "{config}: {error}");
        assert!(error.to_string().starts_with(message), "{config}: {error}");
    }
}
