//! Guests on bridge networks learn who they are: by their launcher where the network gave their pod addresses, and by the
//! network's own DHCP server, undisturbed, where it did not.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Daemon, eventually};
use serde_json::{Value, json};

use crate::vm_node::Node;

/// Beyond the network, by its gateway, in each family.
const BEYOND: [&str; 2] = ["198.51.100.1", "2001:db8:99::1"];

/// Writes the network `name`: VLAN 100 of the node's bridge, with `ipam` if it is not null.
fn network(node: &Node, name: &str, ipam: &Value) {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": name, "type": "cnv-bridge", "bridge": "br1", "vlan": 100,
        "preserveDefaultVlan": false, "macspoofchk": true, "ipspoofchk": !ipam.is_null(), "mtu": 1400,
    });
    if !ipam.is_null() {
        config["ipam"] = ipam.clone();
    }
    let nad = json!({
        "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": name},
        "spec": {"config": config.to_string()},
    });
    fs::write(node.folder.path().join("networks").join(format!("{name}.json")), nad.to_string()).unwrap();
}

/// An example's VM on that network, which asks by DHCP.
fn manifest(node: &Node, vm: &str, network: &str) -> PathBuf {
    let path = node.manifest(&format!("{vm}.yaml"));
    let text = fs::read_to_string(&path).unwrap();
    let (head, _addresses) = text.split_once("addresses:").unwrap();
    let text = head.replace("networkName: bridge-network", &format!("networkName: {network}"));
    fs::write(&path, format!("{text}dhcp4: true\n")).unwrap();
    path
}

#[test]
fn a_guest_uses_its_network_s_addresses_and_hears_an_outside_server_where_there_are_none() {
    let node = Node::new();
    for address in ["fe80::1/64", "198.51.100.1/24", "2001:db8:99::1/64"] {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        node.client.sh(&format!("ip address add {address} dev eth0{nodad}"));
    }
    // The way back: what the guest has by IPv6 is on the wire.
    node.client.sh("ip route add 2001:db8:10::/64 dev eth0");
    let ipam = json!({
        "type": "host-local", "dataDir": node.folder.path().join("ipam"),
        "ranges": [
            [{"subnet": "10.10.10.0/24", "rangeStart": "10.10.10.77", "gateway": "10.10.10.1"}],
            [{"subnet": "2001:db8:10::/64", "rangeStart": "2001:db8:10::77"}],
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fe80::1"}],
    });
    network(&node, "given", &ipam);
    network(&node, "silent", &Value::Null);
    let conf = node.folder.path().join("udhcpd.conf");
    let leases = node.folder.path().join("leases");
    fs::write(&leases, "").unwrap();
    let text = format!(
        "start 10.10.10.200\nend 10.10.10.200\ninterface eth0\nlease_file {0}\npidfile {0}.pid\noption router 10.10.10.1\n",
        leases.display()
    );
    fs::write(&conf, text).unwrap();

    // Nobody but the launcher can answer yet.
    node.up_as("vm1", &manifest(&node, "vm1", "given"), &[]);
    node.reach("vm1", "10.10.10.77");
    let told = node.in_guest("10.10.10.77", "ip address show dev eth0; ip route; cat /etc/resolv.conf");
    for part in ["inet 10.10.10.77/24", "mtu 1400", "default via 10.10.10.1 dev eth0"] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
    // The guest asks for routers only when it is sure of its own link-local address.
    for part in ["2001:db8:10::/64 dev eth0", "default via fe80::1 dev eth0"] {
        eventually(&format!("the guest has {part}, as advertised"), Duration::from_secs(60), || {
            node.in_guest("10.10.10.77", "ip -6 route").contains(part).then_some(())
        });
    }
    node.in_guest("10.10.10.77", "ip address add 2001:db8:10::77/128 dev eth0");
    for address in BEYOND {
        node.in_guest("10.10.10.77", &format!("ping -c 1 -W 20 {address}"));
    }
    node.becomes("vm1", "its address is seen", |v4| v4 == ["10.10.10.77"]);
    assert_eq!(node.launcher.status("vm1")["status"]["interfaces"][0]["infoSource"], "domain, wire");

    let _server = Daemon::start(node.client.command("busybox").args(["udhcpd", "-f"]).arg(&conf));
    node.up_as("vm2", &manifest(&node, "vm2", "silent"), &[]);
    node.reach("vm2", "10.10.10.200");
    eventually("the guest asks for routers", Duration::from_secs(60), || {
        (!node.in_guest("10.10.10.200", "ip -6 address show dev eth0").contains("tentative")).then_some(())
    });
    let v6 = node.in_guest("10.10.10.200", "sleep 3; ip -6 route");
    assert!(!v6.contains("default") && !v6.contains("2001:"), "nobody advertised:\n{v6}");
    for vm in ["vm1", "vm2"] {
        node.launcher.run("down", &[vm, "--now"]);
    }
}
