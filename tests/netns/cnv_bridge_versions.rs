//! Each version of the protocol gets results in its shape, and has its own results taken back.

use e2e::{CniCall, Namespace, Sandbox, sh};
use serde_json::{Value, json};

use crate::cnv_bridge_ipam::{PLUGINS, answering};

#[test]
fn every_version_s_results_go_out_and_come_back_in() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let routes = json!([{"dst": "198.51.100.0/24"}, {"dst": "2001:db8:1::/64"}]);
    let addresses = json!([{"address": "192.0.2.2/24"}, {"address": "2001:db8::2/64"}]);
    answering(&json!({"cniVersion": "1.0.0", "ips": addresses, "routes": routes}).to_string());
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Namespace::new("pod");
        let network = json!({
            "cniVersion": version, "name": "net", "type": "cnv-bridge", "bridge": "br1", "isGateway": true,
            "macspoofchk": true, "ipspoofchk": true, "mtu": 1400, "ipam": {"type": "fixed"},
        });
        let bridge = CniCall::new("cnv-bridge", network).netns(&pod).var("CNI_PATH", PLUGINS);
        let result = bridge.call("ADD").success();
        assert_eq!(result["cniVersion"], if version.is_empty() { "0.1.0" } else { version });
        assert!(result["dns"].is_object(), "{result}");
        match version {
            "" | "0.1.0" | "0.2.0" => expect_oldest(&result),
            _ => expect_lists(&result, version),
        }
        // The next plugin of a chain hands on what it got.
        let tuning = json!({"cniVersion": version, "name": "net", "type": "cnv-tuning", "txQLen": 77});
        let tuning = CniCall::new("cnv-tuning", tuning).netns(&pod).with("prevResult", result.clone());
        assert_eq!(tuning.call("ADD").success(), result, "{version}");
        let check = bridge.clone().with("prevResult", result);
        match version {
            "0.4.0" | "1.0.0" | "1.1.0" => drop(check.call("CHECK").success()),
            _ => assert_eq!(check.call("CHECK").error().0, 1, "{version} has no CHECK"),
        }
        tuning.call("DEL").success();
        check.call("DEL").success();
        assert!(!pod.sh("ip -brief link").contains("net1"), "{version}");
    }
}

/// 0.1.0 and 0.2.0: an address for each family, with its routes, and no interfaces.
fn expect_oldest(result: &Value) {
    for (family, route) in [("ip4", "198.51.100.0/24"), ("ip6", "2001:db8:1::/64")] {
        let members = &result[family];
        assert!(members["ip"].is_string() && members["gateway"].is_string(), "{result}");
        assert_eq!(members["routes"][0]["dst"], route, "{result}");
    }
    assert!(result.get("interfaces").is_none() && result.get("ips").is_none(), "{result}");
}

fn expect_lists(result: &Value, version: &str) {
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result["interfaces"][2].get("mtu").is_some(), version == "1.1.0", "{result}");
    assert_eq!(result["ips"].as_array().unwrap().len(), 2);
    assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0", "{result}");
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
}
