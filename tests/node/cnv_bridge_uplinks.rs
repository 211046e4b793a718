//! `cnv-bridge` gives an uplink the VLANs that its NICs need, and a policy gives it all.

use e2e::{CniCall, Namespace, Sandbox, Snapshot, at_once, binary, output, sh};
use serde_json::{Value, json};

/// A bridge `br1` with an uplink `eth1` that is in VLAN 1 as the kernel has it, and in VLAN 300 untagged by hand.
fn bridge_with_uplink() {
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    sh("ip link add eth1 type veth peer name far");
    sh("ip link set eth1 up master br1");
    sh("bridge vlan add dev eth1 vid 300 untagged");
}

fn attach(container: &str, more: Value) -> (Namespace, CniCall) {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "uplink": "eth1",
        "preserveDefaultVlan": false,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config).netns(&pod).container(container);
    (pod, call)
}

/// The tagged VLANs of the uplink.
fn vlans() -> String {
    let list: Value = serde_json::from_str(&sh("bridge -json -compressvlans vlan show dev eth1")).unwrap();
    let is_tagged = |vlan: &&Value| vlan["flags"].as_array().is_none_or(Vec::is_empty);
    let tagged = list[0]["vlans"].as_array().unwrap().iter().filter(is_tagged);
    let range = |vlan: &Value| match vlan.get("vlanEnd") {
        Some(end) => format!("{}-{end}", vlan["vlan"]),
        None => vlan["vlan"].to_string(),
    };
    tagged.map(range).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_uplink_follows_the_nics_that_need_it() {
    let _sandbox = Sandbox::enter();
    bridge_with_uplink();
    let (a_pod, a) = attach("a", json!({"vlan": 100}));
    let (b_pod, b) = attach("b", json!({"vlan": 300, "vlanTrunk": [{"minID": 99, "maxID": 101}]}));
    let before = Snapshot::take(&[]);
    let result = a.call("ADD").success();
    assert_eq!(vlans(), "100");
    b.call("ADD").success();
    assert_eq!(vlans(), "99-101");
    // VLAN 100 is still needed by the one that stays.
    b.call("DEL").success();
    assert_eq!(vlans(), "100");
    let check = a.clone().with("prevResult", result);
    check.call("CHECK").success();
    sh("bridge vlan del dev eth1 vid 100");
    let (code, text) = check.call("CHECK").error();
    assert!(code == 105 && text.contains("VLANs of uplink eth1 is without 100"), "{text}");
    a.call("DEL").success();
    before.assert_unchanged();

    // A DEL that was missed until the pod was gone, and GC in its place.
    let gc = |valid: Value| {
        let gc = a.clone().with("cniVersion", "1.1.0".into()).with("cni.dev/valid-attachments", valid);
        gc.call("GC").success();
    };
    a.call("ADD").success();
    gc(json!([{"containerID": "a", "ifname": "net1"}]));
    assert_eq!(vlans(), "100");
    gc(json!([]));
    assert_eq!(vlans(), "");
    a.call("ADD").success();
    drop(a_pod);
    a.call("DEL").success();
    assert_eq!(vlans(), "");
    drop(b_pod);
    let (_pod, stranger) = attach("c", json!({"vlan": 100, "uplink": "far"}));
    let (code, text) = stranger.call("ADD").error();
    assert!(code == 108 && text.contains("uplink far is no port of bridge br1"), "{text}");
}

#[test]
fn the_uplink_is_right_after_nics_that_came_and_went_at_once() {
    let _sandbox = Sandbox::enter();
    bridge_with_uplink();
    let (_a_pod, a) = attach("a", json!({"vlan": 100}));
    let (_b_pod, b) = attach("b", json!({"vlanTrunk": [{"minID": 99, "maxID": 101}]}));
    let before = Snapshot::take(&[]);
    a.call("ADD").success();
    for (goes, comes, left) in [(&a, &b, "99-101"), (&b, &a, "100")].into_iter().cycle().take(10) {
        at_once(|| goes.call("DEL").success(), || comes.call("ADD").success());
        assert_eq!(vlans(), left);
    }
    b.call("ADD").success();
    at_once(|| a.call("DEL").success(), || b.call("DEL").success());
    before.assert_unchanged();
}

#[test]
fn a_crash_leaves_no_vlan_behind_on_the_uplink() {
    let _sandbox = Sandbox::enter();
    bridge_with_uplink();
    let (_pod, call) = attach("a", json!({"vlan": 100}));
    let before = Snapshot::take(&[]);
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert_eq!(crashes, 10, "one crash for each change that ADD makes");
}

#[test]
fn a_policy_makes_a_trunk_of_the_uplink() {
    let _sandbox = Sandbox::enter();
    sh("ip link add eth1 type veth peer name far");
    let policy = "apiVersion: nmstate.io/v1\nkind: NodeNetworkConfigurationPolicy\nmetadata: {name: p}\nspec:\n  \
                  desiredState:\n    interfaces:\n      - {name: br1, type: linux-bridge, state: up, \
                  bridge: {options: {stp: {enabled: false}}, port: [{name: eth1}]}}\n";
    let apply = |policy: &str| {
        std::fs::write("/run/nncp.yaml", policy).unwrap();
        let mut command = std::process::Command::new(binary("cnv-bridge"));
        let output = output(command.args(["policy", "apply", "-f", "/run/nncp.yaml"]));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report = apply(policy);
    assert!(report.contains("put eth1 into VLAN 2-4094"), "{report}");
    assert_eq!(vlans(), "2-4094");
    assert!(sh("ip -d link show br1").contains("vlan_filtering 1"));
    assert_eq!(apply(policy), "p: nothing to do\n");
    let access = policy.replace("{name: eth1}", "{name: eth1, vlan: {mode: access, tag: 7}}");
    apply(&access);
    assert!(sh("bridge vlan show dev eth1").contains("7 PVID Egress Untagged"));
    assert_eq!(vlans(), "");
    assert_eq!(apply(&access), "p: nothing to do\n");

    // Hardware that the policy does not list leaves the bridge; a pod's or a guest's port does not.
    sh("ip link add eth2 type bond");
    sh("ip link set eth2 master br1");
    sh("ip link add guest type veth peer name guest-far");
    sh("ip link set guest master br1");
    assert_eq!(apply(&access), "p: take port eth2 from br1\n");
    assert!(!sh("ip link show eth2").contains("master"));
    assert!(sh("ip link show guest").contains("master br1"));
}
