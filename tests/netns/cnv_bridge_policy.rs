//! `cnv-bridge policy apply` makes the bridges that a node policy asks for, once, and does no harm.
//!
//! VLANs need another kernel: see the node rung.

use std::fs;
use std::process::Output;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, binary, output, sh};
use serde_json::json;

fn apply(interfaces: &str, arguments: &[&str]) -> Output {
    let policy = format!(
        "apiVersion: nmstate.io/v1\nkind: NodeNetworkConfigurationPolicy\nmetadata: {{name: p}}\n\
         spec: {{desiredState: {{interfaces: [{interfaces}]}}}}\n"
    );
    fs::write("/run/nncp.yaml", policy).unwrap();
    let mut command = std::process::Command::new(binary("cnv-bridge"));
    output(command.args(["policy", "apply", "-f", "/run/nncp.yaml"]).args(arguments))
}

#[track_caller]
fn applied(interfaces: &str, arguments: &[&str]) -> String {
    let output = apply(interfaces, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(interfaces: &str) -> String {
    let output = apply(interfaces, &[]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

const BRIDGE: &str = "{name: br1, type: linux-bridge, state: up, mtu: 1400, \
                      bridge: {options: {stp: {enabled: true}}, port: [{name: eth1, vlan: {}}]}}";

#[test]
fn a_bridge_is_made_once_and_removed() {
    let _sandbox = Sandbox::enter();
    sh("ip link add eth1 up type veth peer name far");
    let before = Snapshot::take(&[]);
    let plan = applied(BRIDGE, &["--dry-run"]);
    before.assert_unchanged();
    let changes = [
        "create bridge br1",
        "switch STP of br1 on",
        "set MTU of br1 to 1400",
        "make eth1 a port of br1",
        "set br1 up",
    ];
    assert_eq!(plan, changes.map(|change| format!("p: would {change}\n")).concat());
    assert_eq!(applied(BRIDGE, &[]), changes.map(|change| format!("p: {change}\n")).concat());
    let made = Snapshot::take(&[]);
    let bridge = sh("ip -o -d link show br1");
    assert!(
        bridge.contains("mtu 1400") && bridge.contains("stp_state 1") && bridge.contains(",UP"),
        "{bridge}"
    );
    assert!(sh("ip link show eth1").contains("master br1"));
    assert_eq!(applied(BRIDGE, &[]), "p: nothing to do\n");
    made.assert_unchanged();

    let changed = BRIDGE.replace("true", "false").replace("1400", "1300");
    assert_eq!(applied(&changed, &[]), "p: switch STP of br1 off\np: set MTU of br1 to 1300\n");
    for link in ["eth1", "br1"] {
        sh(&format!("ip link set {link} down"));
        assert_eq!(applied(&changed, &[]), format!("p: set {link} up\n"));
        assert!(sh(&format!("ip link show {link}")).contains(",UP"));
    }
    let absent = "{name: br1, type: linux-bridge, state: absent}";
    assert_eq!(applied(absent, &[]), "p: delete bridge br1\n");
    assert_eq!(applied(absent, &[]), "p: nothing to do\n");
    before.assert_unchanged();
}

#[test]
fn the_node_s_default_route_is_not_taken_unless_told() {
    let _sandbox = Sandbox::enter();
    sh("ip link add eth1 type veth peer name far");
    sh("ip address add 192.0.2.1/24 dev eth1");
    sh("ip link set far up");
    sh("ip link set eth1 up");
    sh("ip route add default via 192.0.2.254");
    let before = Snapshot::take(&[]);
    let message = refused(BRIDGE);
    assert!(message.contains("default route goes through eth1"), "{message}");
    before.assert_unchanged();
    for default in [
        "default nexthop via 192.0.2.254 dev eth1 nexthop via 198.51.100.254 dev eth2",
        "default via 192.0.2.254 table 200",
        "default via 2001:db8::fe",
    ] {
        sh("ip link add eth2 type veth peer name far2");
        sh("ip address add 198.51.100.1/24 dev eth2");
        sh("ip address add 2001:db8::1/64 dev eth1 nodad");
        sh("ip link set eth2 up");
        sh("ip route flush exact default");
        sh(&format!("ip route add {default}"));
        let message = refused(BRIDGE);
        assert!(message.contains("default route goes through eth1"), "{default}: {message}");
        sh(&format!("ip route del {default}"));
        sh("ip address del 2001:db8::1/64 dev eth1");
        sh("ip link delete eth2");
    }
    sh("ip route add default via 192.0.2.254");
    applied(BRIDGE, &["--take-default-route"]);
    // Nor is a bridge removed that it goes through.
    sh("ip address add 203.0.113.1/24 dev br1");
    sh("ip route replace default via 203.0.113.254");
    let absent = "{name: br1, type: linux-bridge, state: absent}";
    assert!(refused(absent).contains("default route goes through br1"));
    assert!(sh("ip link show eth1").contains("master br1"));
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is() {
    let _sandbox = Sandbox::enter();
    sh("ip link add eth1 type veth peer name far");
    sh("ip link add br0 type bridge");
    let pod = Namespace::new("pod");
    sh("ip link add br2 address 02:00:00:00:0b:02 up type bridge");
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br2"});
    CniCall::new("cnv-bridge", config).netns(&pod).call("ADD").success();
    let before = Snapshot::take(&[]);
    let good = "{name: br7, type: linux-bridge, state: up}";
    for (interface, message) in [
        ("{name: br1, type: linux-bridge, bridge: {port: [{name: eth9}]}}", "interface eth9 does not exist"),
        ("{name: eth1, type: linux-bridge}", "eth1 exists and is no bridge"),
        ("{name: br2, type: linux-bridge, state: absent}", "br2 has 1 ports of pods"),
        ("{name: br1, type: vlan}", "unknown variant `vlan`"),
        ("{name: br1, type: linux-bridge, colour: red}", "unknown field `colour`"),
    ] {
        let error = refused(&format!("{good}, {interface}"));
        assert!(error.contains(message), "{interface}: {error}");
        before.assert_unchanged();
    }
    sh("ip link set eth1 master br0");
    assert!(refused(BRIDGE).contains("eth1 is a port of br0 already"));
    let missing =
        output(std::process::Command::new(binary("cnv-bridge")).args(["policy", "apply", "-f", "/run/none"]));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot read /run/none"));
}

#[test]
fn a_kernel_that_filters_no_vlans_is_told_by_what_it_lacks() {
    let _sandbox = Sandbox::enter();
    sh("ip link add eth1 type veth peer name far");
    let before = Snapshot::take(&[]);
    // By default a port is a trunk.
    let wanted = "{name: br1, type: linux-bridge, state: up, bridge: {port: [{name: eth1}]}}";
    let mut probe = std::process::Command::new("ip");
    if output(probe.args(["link", "add", "probe", "type", "bridge", "vlan_filtering", "1"])).status.success()
    {
        sh("ip link delete probe");
        applied(wanted, &[]);
        return;
    }
    assert!(refused(wanted).contains("CONFIG_BRIDGE_VLAN_FILTERING"));
    before.assert_unchanged();
    sh("ip link add br1 up type bridge");
    assert!(
        refused(wanted).contains("cannot set VLAN filtering of bridge br1: the kernel has no bridges that")
    );
}
