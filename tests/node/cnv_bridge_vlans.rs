//! `cnv-bridge` keeps pods in their VLANs.

use std::path::Path;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, output, sh};
use serde_json::{Value, json};

fn config(more: Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn attach(container: &str, address: &str, more: Value) -> (Namespace, CniCall) {
    let pod = Namespace::new("pod");
    let call = CniCall::new("cnv-bridge", config(more)).netns(&pod).container(container);
    let result = call.call("ADD").success();
    pod.sh(&format!("ip address add {address}/24 dev net1"));
    (pod, call.with("prevResult", result))
}

/// Whether an answer comes within so many seconds: long where one is expected, short where none is.
fn answers(from: &Namespace, to: &str, seconds: u8) -> bool {
    let wait = seconds.to_string();
    output(from.command("ping").args(["-c", "1", "-W", &wait, to])).status.success()
}

fn vlans_of(call: &CniCall, pod: &Namespace) -> String {
    let result = call.clone().netns(pod).call("CHECK");
    result.success();
    sh("bridge -compressvlans vlan show")
}

#[test]
fn a_vlan_separates_and_joins() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let before = Snapshot::take(&[]);
    let access = |vlan: u16| json!({"vlan": vlan, "preserveDefaultVlan": false, "macspoofchk": true});
    let (a, a_call) = attach("a", "192.0.2.1", access(100));
    let (b, b_call) = attach("b", "192.0.2.2", access(100));
    let (c, c_call) = attach("c", "192.0.2.3", access(200));
    assert!(answers(&a, "192.0.2.2", 30));
    assert!(!answers(&a, "192.0.2.3", 2), "VLAN 100 reached VLAN 200");
    assert!(!answers(&c, "192.0.2.1", 2), "VLAN 200 reached VLAN 100");
    for call in [&a_call, &b_call, &c_call] {
        call.call("CHECK").success();
        call.call("DEL").success();
    }
    drop((a, b, c));
    before.assert_unchanged();
}

/// The chain of OpenShift's manual for a VM that boots over the network: VLAN 1 is the bridge's own, so the boot server behind
/// its uplink hears the guest untagged.
#[test]
fn a_guest_that_boots_over_the_network_reaches_its_server_untagged() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let server = Namespace::new("server");
    sh(&format!("ip link add eth1 type veth peer name eth0 netns {}", server.name()));
    sh("ip link set eth1 up master br1");
    server.sh("ip address add 192.0.2.1/24 dev eth0");
    server.sh("ip link set eth0 up");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[Path::new("/run/cni")]);
    let list =
        json!({"plugins": [{"type": "cnv-bridge", "bridge": "br1", "vlan": 1}, {"type": "cnv-tuning"}]});
    // As the runtime calls them for an interface with `macAddress`.
    let calls = list["plugins"].as_array().unwrap().iter().map(|plugin| {
        let call = CniCall::new(plugin["type"].as_str().unwrap(), plugin.clone()).netns(&pod).container("vm");
        let call = call.with("cniVersion", "0.4.0".into()).with("name", "pxe-net-conf".into());
        call.with("args", json!({"cni": {"mac": "de:00:00:00:00:de"}}))
    });
    let [bridge, tuning] = <[CniCall; 2]>::try_from(calls.collect::<Vec<_>>()).unwrap();
    let result = tuning.clone().with("prevResult", bridge.call("ADD").success()).call("ADD").success();
    assert_eq!(result["interfaces"][2]["mac"], "de:00:00:00:00:de");
    let [bridge, tuning] = [bridge, tuning].map(|call| call.with("prevResult", result.clone()));
    pod.sh("ip address add 192.0.2.2/24 dev net1");
    assert!(answers(&pod, "192.0.2.1", 30));
    let neighbours = server.sh("ip neighbour show dev eth0");
    assert!(neighbours.contains("192.0.2.2 lladdr de:00:00:00:00:de"), "{neighbours}");
    // In another VLAN of the bridge nobody hears it.
    sh("bridge vlan add dev eth1 vid 100 pvid untagged");
    assert!(!answers(&pod, "192.0.2.1", 2), "VLAN 1 reached VLAN 100");
    bridge.call("CHECK").success();
    tuning.call("CHECK").success();
    sh("bridge vlan add dev eth1 vid 1 pvid untagged");
    sh("bridge vlan del dev eth1 vid 100");
    tuning.call("DEL").success();
    bridge.call("DEL").success();
    before.assert_unchanged();
}

#[test]
fn the_default_vlan_is_left_or_kept_as_asked() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let (pod, call) = attach("a", "192.0.2.1", json!({"vlan": 100, "preserveDefaultVlan": false}));
    let host = sh("ip -o link show master br1");
    let host = host.split_whitespace().nth(1).unwrap().split('@').next().unwrap();
    let shown = vlans_of(&call, &pod);
    let own: Vec<_> = shown.lines().skip_while(|line| !line.starts_with(host)).collect();
    assert!(own[0].contains("100 PVID Egress Untagged"), "{shown}");
    assert!(!own[0].split_whitespace().any(|word| word == "1"), "{shown}");
    call.call("DEL").success();

    let (pod, call) = attach("b", "192.0.2.1", json!({"vlan": 100}));
    let warned =
        CniCall::new("cnv-bridge", config(json!({"vlan": 100}))).netns(&Namespace::new("pod")).call("ADD");
    assert!(warned.stderr.contains("preserveDefaultVlan is not set"), "{}", warned.stderr);
    assert!(vlans_of(&call, &pod).contains("1 Egress Untagged"));
}

#[test]
fn check_sees_a_changed_vlan() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let (_pod, call) = attach("a", "192.0.2.1", json!({"vlan": 100, "preserveDefaultVlan": false}));
    let port = sh("ip -o link show master br1");
    let port = port.split_whitespace().nth(1).unwrap().split('@').next().unwrap().to_owned();
    let expected = "expected 100 PVID untagged";
    for (change, restore) in [
        (format!("bridge vlan add dev {port} vid 7"), format!("bridge vlan del dev {port} vid 7")),
        (
            format!("bridge vlan add dev {port} vid 100"),
            format!("bridge vlan add dev {port} vid 100 pvid untagged"),
        ),
        (
            format!("bridge vlan del dev {port} vid 100"),
            format!("bridge vlan add dev {port} vid 100 pvid untagged"),
        ),
    ] {
        sh(&change);
        let (code, message) = call.call("CHECK").error();
        assert!(code == 105 && message.contains(expected), "{change}: {message}");
        sh(&restore);
        call.call("CHECK").success();
    }
}

#[test]
fn del_minds_no_vlan_that_somebody_took_away_by_hand() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let before = Snapshot::take(&[]);
    for change in [
        "bridge vlan del dev PORT vid 100",
        "bridge vlan del dev PORT vid 10-20",
        "ip link set br1 type bridge vlan_filtering 0",
        "ip link set PORT down name other",
    ] {
        let trunk = json!([{"minID": 10, "maxID": 20}]);
        let (pod, call) =
            attach("a", "192.0.2.1", json!({"vlan": 100, "vlanTrunk": trunk, "preserveDefaultVlan": false}));
        let port = sh("ip -o link show master br1");
        let port = port.split_whitespace().nth(1).unwrap().split('@').next().unwrap();
        sh(&change.replace("PORT", port));
        assert_ne!(call.call("CHECK").error().0, 0, "{change}");
        call.call("DEL").success();
        sh("ip link set br1 type bridge vlan_filtering 1");
        drop(pod);
        before.assert_unchanged();
    }
}

#[test]
fn what_a_crash_left_is_gone_after_del() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[]);
    let more = json!({"macspoofchk": true, "vlan": 100, "preserveDefaultVlan": false});
    let call = CniCall::new("cnv-bridge", config(more)).netns(&pod);
    let crashes = call.cut_off_add(|| before.assert_unchanged());
    assert_eq!(crashes, 11, "one crash for each change that ADD makes");
}

#[test]
fn a_trunk_carries_its_vlans_beside_a_native_one() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let before = Snapshot::take(&[]);
    let trunk = json!([{"id": 50}, {"minID": 10, "maxID": 20}]);
    let (pod, call) =
        attach("a", "192.0.2.1", json!({"vlan": 100, "vlanTrunk": trunk, "preserveDefaultVlan": false}));
    let shown = vlans_of(&call, &pod);
    for part in ["10-20", "50", "100 PVID Egress Untagged"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let tagged = json!({"vlan": 15, "preserveDefaultVlan": false});
    let (access, access_call) = attach("b", "198.51.100.2", tagged);
    pod.sh("ip link add link net1 name net1.15 type vlan id 15");
    pod.sh("ip address add 198.51.100.1/24 dev net1.15");
    pod.sh("ip link set net1.15 up");
    assert!(answers(&pod, "198.51.100.2", 30), "a tagged frame of the trunk does not arrive");
    call.call("DEL").success();
    access_call.call("DEL").success();
    drop((pod, access));
    before.assert_unchanged();
}

#[test]
fn vlan_filtering_is_switched_on_where_the_network_says_so() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let wanted = config(json!({"vlan": 100, "preserveDefaultVlan": false}));
    let call = CniCall::new("cnv-bridge", wanted).netns(&pod);
    assert_eq!(call.call("ADD").error().0, 102);
    call.with("enableVlanFiltering", true.into()).call("ADD").success();
    assert!(sh("ip -d link show br1").contains("vlan_filtering 1"));
}
