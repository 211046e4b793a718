//! What a policy may say.

use super::*;

const HEAD: &str = "apiVersion: nmstate.io/v1\nkind: NodeNetworkConfigurationPolicy\nmetadata: {name: p}\n";

fn read_interfaces(interfaces: &str) -> Result<Vec<Desired>, PolicyError> {
    read(&format!("{HEAD}spec: {{desiredState: {{interfaces: [{interfaces}]}}}}\n"))
}

fn vlans_of(port: &str) -> String {
    let text =
        format!("{{name: br1, type: linux-bridge, state: up, bridge: {{port: [{{name: eth1{port}}}]}}}}");
    let desired = read_interfaces(&text).unwrap();
    desired[0].bridges[0].ports[0].vlans.as_ref().map_or("untouched".to_owned(), Vlans::to_string)
}

#[test]
fn the_manual_s_policy_is_understood() {
    let desired = read(
        "apiVersion: nmstate.io/v1
kind: NodeNetworkConfigurationPolicy
metadata:
  name: br1-eth1-policy
spec:
  desiredState:
    interfaces:
      - name: br1
        description: Linux bridge with eth1 as a port
        type: linux-bridge
        state: up
        mtu: 9000
        ipv4:
          enabled: false
        bridge:
          options:
            stp:
              enabled: false
          port:
            - name: eth1
      - name: br0
        type: linux-bridge
        state: absent
",
    )
    .unwrap();
    assert_eq!(desired.len(), 1);
    let Desired { policy, bridges, absent } = &desired[0];
    assert_eq!((policy.as_str(), absent[0].as_str()), ("br1-eth1-policy", "br0"));
    let Bridge { name, mtu, stp, ports } = &bridges[0];
    assert_eq!((name.as_str(), *mtu, *stp, ports.len()), ("br1", Some(9000), false, 1));
    assert_eq!(ports[0].name.as_str(), "eth1");
}

#[test]
fn a_port_s_vlans_are_those_of_nmstate() {
    assert_eq!(vlans_of(""), "1 PVID untagged, 2-4094");
    assert_eq!(vlans_of(", vlan: {}"), "untouched");
    assert_eq!(vlans_of(", vlan: {mode: access, tag: 100}"), "100 PVID untagged");
    let tags = "trunk-tags: [{id: 50}, {id-range: {min: 10, max: 20}}]";
    assert_eq!(vlans_of(&format!(", vlan: {{mode: trunk, {tags}}}")), "10-20, 50");
    let native = format!(", vlan: {{mode: trunk, enable-native: true, tag: 7, {tags}}}");
    assert_eq!(vlans_of(&native), "7 PVID untagged, 10-20, 50");
}

#[test]
fn what_is_wrong_is_named() {
    let bridge = |more: &str| format!("{{name: br1, type: linux-bridge, state: up{more}}}");
    let port = |vlan: &str| bridge(&format!(", bridge: {{port: [{{name: eth1, vlan: {vlan}}}]}}"));
    let table = [
        (bridge(", mtu: 5"), "interfaces[0].mtu: is 5; allowed: 68 to 65535"),
        (bridge(", ipv4: {enabled: true, dhcp: true}"), "interfaces[0].ipv4: is enabled"),
        (bridge(", mac-address: 02:00:00:00:00:01"), "unknown field `mac-address`"),
        (bridge(", bridge: {options: {group-forward-mask: 1}}"), "unknown field `group-forward-mask`"),
        ("{name: ovs, type: ovs-bridge}".to_owned(), "unknown variant `ovs-bridge`"),
        ("{name: sixteen-bytes-xx, type: linux-bridge}".to_owned(), "interfaces[0].name: interface name"),
        ("{name: br1, type: linux-bridge, state: down}".to_owned(), "unknown variant `down`"),
        (port("{mode: trunk, trunk-tags: [{id: 4095}]}"), "4095 is not a VLAN identifier"),
        (port("{mode: trunk, trunk-tags: [{id-range: {min: 9, max: 8}}]}"), "has the range 9 to 8"),
        (port("{mode: trunk, tag: 5}"), "vlan.tag: is set in a trunk"),
        (port("{mode: access}"), "vlan.tag: is missing"),
        (port("{mode: access, tag: 5, enable-native: true}"), "vlan.mode: is access next to"),
        (port("{tag: 5}"), "vlan.mode: is missing"),
        (
            format!("{}, {}", bridge(""), bridge("")),
            "interfaces[1].name: is br1, which stands in the policy before",
        ),
        (
            format!("{}, {}", port("{}"), port("{}").replace("br1", "br2")),
            "interfaces[1].bridge.port[0].name: is eth1, which stands",
        ),
        (
            bridge(", bridge: {port: [{name: br1}]}"),
            "interfaces[0].bridge.port[0].name: is br1, which stands",
        ),
    ];
    for (interfaces, message) in table {
        let error = read_interfaces(&interfaces).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(format!("{error}: {source}").contains(message), "{interfaces}: {error}: {source}");
    }
    assert!(matches!(read(""), Err(PolicyError::Empty)));
    assert!(matches!(read("a: [1"), Err(PolicyError::Yaml(_))));
    let other = read("apiVersion: v1\nkind: Pod\n").unwrap_err();
    assert_eq!(
        other.to_string(),
        "document 1 is Pod of v1; allowed: NodeNetworkConfigurationPolicy of nmstate.io/v1 or v1beta1"
    );
}
