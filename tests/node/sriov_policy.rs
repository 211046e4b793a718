//! `sriov policy apply` makes a NIC what its policies want, once, and touches no VF that a pod has.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use e2e::{Namespace, binary, sh};
use serde_json::{Value, json};

use crate::sriov_nic::Nic;

/// Runs `sriov` with a file on standard input.
fn sriov(args: &[&str], file: &str) -> Output {
    let mut command = Command::new(binary("sriov"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that takes no file ends without reading.
    let _unread = child.stdin.take().unwrap().write_all(file.as_bytes());
    child.wait_with_output().unwrap()
}

fn done(output: Output) -> String {
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn failed(output: Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn policy(nic: &Nic, spec: Value) -> String {
    let mut policy = json!({
        "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetworkNodePolicy",
        "metadata": {"name": format!("policy-{}", spec["resourceName"].as_str().unwrap_or("nics"))},
        "spec": {"resourceName": "nics", "numVfs": 4, "nicSelector": {"pfNames": [nic.link]}},
    });
    for (key, value) in spec.as_object().unwrap() {
        policy["spec"][key] = value.clone();
    }
    format!("---\n{policy}\n")
}

fn drivers() -> Vec<String> {
    let status: Value = serde_json::from_str(&done(sriov(&["status", "-o", "json"], ""))).unwrap();
    let vfs = status["physicalFunctions"][0]["virtualFunctions"].as_array().unwrap();
    vfs.iter().map(|vf| vf["driver"].as_str().unwrap_or("none").to_owned()).collect()
}

#[test]
fn what_is_wanted_is_done_once() {
    let nic = Nic::bare();
    sh(&format!("ip link set {} down", nic.link));
    let halves_of = |mtu: u32, first: &str, second: &str| {
        let part = |name: &str, range: &str, kind: &str| {
            let selector = json!({"vendor": "8086", "pfNames": [format!("{}#{range}", nic.link)]});
            policy(
                &nic,
                json!({"resourceName": name, "deviceType": kind, "mtu": mtu, "nicSelector": selector}),
            )
        };
        part("a", "0-1", first) + &part("b", "2-3", second)
    };
    let halves = |first: &str, second: &str| halves_of(2000, first, second);
    let wanted = halves("vfio-pci", "netdevice");
    let apply = ["policy", "apply", "-f", "-"];
    let planned = done(sriov(&["policy", "apply", "--dry-run", "-f", "-"], &wanted));
    assert!(planned.contains("would: ") && planned.contains("4 VFs instead of 0"), "{planned}");
    assert_eq!(drivers(), [""; 0], "a dry run does nothing");

    let said = done(sriov(&apply, &wanted));
    assert!(said.contains("4 VFs instead of 0") && said.contains("MTU 2000 instead of 1500"), "{said}");
    assert_eq!(drivers(), ["vfio-pci", "vfio-pci", "igbvf", "igbvf"]);
    assert_eq!(done(sriov(&apply, &wanted)), "nothing to do\n");
    assert!(sh(&format!("ip link show {}", nic.link)).contains("mtu 2000"));
    assert!(sh(&format!("ip link show {}", nic.link)).contains("UP"));
    // A guest asks the PF for its address: the one that the network driver had chosen.
    assert_ne!(nic.vf_info(0)["address"], "00:00:00:00:00:00");
    let override_file = format!("/sys/bus/pci/devices/{}/driver_override", nic.vf(0));
    assert_eq!(
        fs::read_to_string(override_file).unwrap(),
        "(null)\n",
        "its network driver may have it again"
    );
    // Whoever relies on the PF's MTU keeps it; a VF has its policy's.
    let said = done(sriov(&apply, &halves_of(1600, "vfio-pci", "netdevice")));
    assert!(!said.contains(&format!("{}: MTU", nic.link)), "{said}");
    assert!(sh(&format!("ip link show {}", nic.link)).contains("mtu 2000"));
    assert!(sh(&format!("ip link show {}", nic.vf_link(2).unwrap())).contains("mtu 1600"));

    done(sriov(&apply, &halves("netdevice", "vfio-pci")));
    assert_eq!(drivers(), ["igbvf", "igbvf", "vfio-pci", "vfio-pci"]);
    assert_eq!(done(sriov(&apply, &halves("netdevice", "vfio-pci"))), "nothing to do\n");
    sh(&format!("ip link set {} mtu 1500", nic.link));
}

#[test]
fn a_vf_that_a_pod_has_is_not_touched() {
    let nic = Nic::with_vfs(2);
    let pod = Namespace::new("pod");
    let call = nic.call(1, json!({"vlan": 100})).netns(&pod);
    call.call("ADD").success();
    let apply = ["policy", "apply", "-f", "-"];
    for (spec, message) in [
        (json!({"numVfs": 4}), "belongs to interface net1 of container c1"),
        (json!({"numVfs": 2, "deviceType": "vfio-pci"}), "belongs to interface net1 of container c1"),
        (json!({"numVfs": 8}), "which can have 7"),
        (json!({"numVfs": 4, "externallyManaged": true}), "externally managed"),
    ] {
        let said = failed(sriov(&apply, &policy(&nic, spec)));
        assert!(said.contains(message), "{said}");
        assert_eq!(drivers(), ["igbvf", "igbvf"], "no other VF is touched either");
    }
    assert!(pod.sh("ip link show net1").contains("net1"));
    let table = done(sriov(&["status"], ""));
    assert!(table.contains("c1/net1 on blue"), "{table}");
    let status: Value = serde_json::from_str(&done(sriov(&["status", "-o", "json"], ""))).unwrap();
    let shown = &status["physicalFunctions"][0]["virtualFunctions"][1];
    assert_eq!(shown["owner"], json!({"container": "c1", "ifName": "net1", "network": "blue"}));
    assert_eq!((&shown["attributes"]["vlan"]["id"], &shown["attached"]), (&json!(100), &json!(true)));

    // Somebody else made the VFs, more than enough: one gets its driver, and the PF stays as it is.
    sh(&format!("ip link set {} down", nic.link));
    let managed = json!({"numVfs": 1, "externallyManaged": true, "mtu": 3000, "deviceType": "vfio-pci"});
    let said = done(sriov(&apply, &policy(&nic, managed.clone())));
    assert!(said.contains("vfio-pci instead of igbvf") && said.lines().count() == 1, "{said}");
    let pf = sh(&format!("ip link show {}", nic.link));
    assert!(pf.contains("mtu 1500") && !pf.contains(",UP"), "{pf}");
    assert_eq!(drivers(), ["vfio-pci", "igbvf"]);
    assert_eq!(done(sriov(&apply, &policy(&nic, managed))), "nothing to do\n");
    sh(&format!("ip link set {} up", nic.link));
    call.call("DEL").success();
}

#[test]
fn policies_for_other_nodes_and_nics_do_nothing() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let elsewhere = policy(&nic, json!({"nodeSelector": {"zone": "b"}}));
    let args = ["policy", "apply", "-f", "-", "--node-label", "zone=a"];
    assert!(done(sriov(&args, &elsewhere)).contains("not for this node"));
    let other = policy(&nic, json!({"nicSelector": {"vendor": "15b3"}}));
    assert!(done(sriov(&args, &other)).contains("selects no NIC"));
    assert_eq!(nic.state(), before);
}

#[test]
fn a_rendered_network_attaches() {
    let nic = Nic::with_vfs(1);
    let network = json!({
        "apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovNetwork",
        "metadata": {"name": "blue", "namespace": "openshift-sriov-network-operator"},
        "spec": {"resourceName": "nics", "networkNamespace": "vms", "vlan": 100, "spoofChk": "on", "trust": "off"},
    });
    let rendered = done(sriov(&["render", "-f", "-"], &network.to_string()));
    let config = rendered.lines().find_map(|line| line.trim().strip_prefix("config: ")).unwrap();
    // The YAML scalar is in double quotes, which JSON reads too.
    let config: String = serde_json::from_str(config).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let pod = Namespace::new("pod");
    let call = e2e::CniCall::new("sriov", config).with("deviceID", nic.vf(0).into()).netns(&pod);
    call.call("ADD").success();
    assert_eq!(nic.vf_info(0)["vlan_list"], json!([{"vlan": 100}]));
    call.call("DEL").success();
}
