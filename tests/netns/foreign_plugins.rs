//! Plugins of others run in our runtime, and ours in chains with theirs: Debian's containernetworking-plugins.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cni::runtime::{Invocation, NetworkConfigList, Runtime};
use cni::{Attachment, Success};
use e2e::{Daemon, Namespace, Sandbox, Snapshot, binary, eventually, output, sh};
use serde_json::{Value, json};

struct Node {
    runtime: Runtime,
}

impl Node {
    /// A runtime that finds our plugins and Debian's.
    fn new() -> Self {
        let ours = binary("cnv-bridge").parent().unwrap().to_owned();
        let plugin_path = vec![ours, PathBuf::from("/usr/lib/cni")];
        Self {
            runtime: Runtime { plugin_path, cache: "/run/cache".into(), timeout: Duration::from_secs(60) },
        }
    }

    fn add(&self, network: &NetworkConfigList, pod: &Namespace, capabilities: Value) -> Success {
        let Value::Object(capabilities) = capabilities else { panic!("{capabilities}") };
        let invocation = Invocation { attachment: attachment(pod), args: Vec::new(), capabilities };
        self.runtime.add(network, &invocation).unwrap_or_else(|error| panic!("{error:?}"))
    }
}

fn attachment(pod: &Namespace) -> Attachment {
    Attachment {
        container: pod.name().parse().unwrap(),
        if_name: "net1".parse().unwrap(),
        netns: Some(pod.path().to_owned()),
    }
}

fn network(plugins: Value) -> NetworkConfigList {
    let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins});
    NetworkConfigList::parse(&list.to_string()).unwrap()
}

fn ipam() -> Value {
    json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "192.0.2.0/24"}]]})
}

fn pings(from: &Namespace, to: &str) -> bool {
    output(from.command("ping").args(["-c", "1", "-W", "20", to])).status.success()
}

#[test]
fn macvlan_with_host_local_runs_in_our_runtime_and_ours_tunes_it() {
    let _sandbox = Sandbox::enter();
    let other = Namespace::new("other");
    sh(&format!("ip link add uplink type veth peer name eth0 netns {}", other.name()));
    sh("ip link set uplink up");
    other.sh("ip address add 192.0.2.200/24 dev eth0");
    other.sh("ip link set eth0 up");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[Path::new("/run/cache"), Path::new("/run/cni")]);
    let node = Node::new();
    let network = network(json!([
        {"type": "macvlan", "master": "uplink", "mode": "bridge", "ipam": ipam()},
        {"type": "cnv-tuning", "mac": "02:00:00:00:00:77", "sysctl": {"net.ipv4.conf.IFNAME.arp_announce": "2"}},
    ]));
    let result = node.add(&network, &pod, json!({}));
    assert_eq!(result.ips[0].address.to_string(), "192.0.2.2/24");
    let link = pod.sh("ip -d link show net1");
    assert!(link.contains("macvlan") && link.contains("02:00:00:00:00:77"), "{link}");
    assert!(pings(&pod, "192.0.2.200"));
    node.runtime.check("net", &attachment(&pod)).unwrap();
    node.runtime.del("net", &attachment(&pod)).unwrap();
    assert!(!pod.sh("ip link").contains("net1"));
    before.assert_unchanged();
}

#[test]
fn ours_makes_the_port_and_portmap_forwards_to_it() {
    let _sandbox = Sandbox::enter();
    let pod = Namespace::new("pod");
    let node = Node::new();
    let network = network(json!([
        {
            "type": "cnv-bridge", "bridge": "br1", "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true,
            "ipspoofchk": true, "hairpinMode": true, "ipam": ipam(),
        },
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
    ]));
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    node.add(&network, &pod, mapping);
    // No CHECK here: portmap 1.1.1 looks for IPv6 rules even where there is no IPv6 address.

    // A client elsewhere speaks to the node's address.
    let client = Namespace::new("client");
    sh(&format!("ip link add outside type veth peer name eth0 netns {}", client.name()));
    sh("ip address add 198.51.100.1/24 dev outside");
    sh("ip link set outside up");
    client.sh("ip address add 198.51.100.2/24 dev eth0");
    client.sh("ip link set eth0 up");
    let listener = pod.netns().run(|| std::net::TcpListener::bind("192.0.2.2:80").unwrap()).unwrap();
    let target = "198.51.100.1:8080".parse().unwrap();
    let stream = client
        .netns()
        .run(|| std::net::TcpStream::connect_timeout(&target, Duration::from_secs(20)))
        .unwrap();
    let (_accepted, peer) = listener.accept().unwrap();
    assert_eq!(stream.unwrap().local_addr().unwrap().port(), peer.port());
    assert_eq!(peer.ip().to_string(), "198.51.100.2");

    node.runtime.del("net", &attachment(&pod)).unwrap();
    let rules = sh("nft list ruleset");
    assert!(!rules.contains("192.0.2.2") && !rules.contains("cnv-bridge"), "{rules}");
    assert!(node.runtime.cached().unwrap().is_empty());
}

#[test]
fn a_chain_that_a_foreign_plugin_breaks_is_taken_down_whole() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let before = Snapshot::take(&[Path::new("/run/cache")]);
    let node = Node::new();
    let network = network(json!([
        {"type": "cnv-bridge", "bridge": "br1", "macspoofchk": true, "ipam": ipam()},
        {"type": "tuning", "sysctl": {"net.ipv4.no_such_setting": "1"}},
    ]));
    let invocation =
        Invocation { attachment: attachment(&pod), args: Vec::new(), capabilities: Default::default() };
    let error = node.runtime.add(&network, &invocation).unwrap_err();
    assert!(format!("{error:?}").contains("no_such_setting"), "{error:?}");
    before.assert_unchanged();
}

/// A DHCP server with one address to give.
const SERVER: &str = "start 192.0.2.20\nend 192.0.2.20\ninterface eth0\nlease_file /run/leases\npidfile /run/udhcpd.pid\n\
                      opt router 192.0.2.1\nopt subnet 255.255.255.0\nopt lease 3600\n";

#[test]
fn a_lease_of_a_dhcp_server_is_taken_at_once_and_given_back() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let server = Namespace::new("server");
    sh(&format!("ip link add uplink up master br1 type veth peer name eth0 netns {}", server.name()));
    server.sh("ip address add 192.0.2.1/24 dev eth0");
    server.sh("ip link set eth0 up");
    fs::write("/run/udhcpd.conf", SERVER).unwrap();
    fs::write("/run/leases", "").unwrap();
    fs::create_dir("/run/cni").unwrap();
    let log = || File::options().create(true).append(true).open("/run/dhcp.log").unwrap();
    let _daemons = [
        server.command("busybox").args(["udhcpd", "-f", "/run/udhcpd.conf"]),
        Command::new("/usr/lib/cni/dhcp").arg("daemon").stdout(log()).stderr(log()),
    ]
    .map(Daemon::start);
    eventually("both are there", Duration::from_secs(60), || {
        ["/run/udhcpd.pid", "/run/cni/dhcp.sock"].iter().all(|path| Path::new(path).exists()).then_some(())
    });
    let keys = json!({"macspoofchk": true, "ipspoofchk": true, "ipam": {"type": "dhcp"}});
    let mut plugin = json!({"type": "cnv-bridge", "bridge": "br1"});
    plugin.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let (node, network) = (Node::new(), network(json!([plugin])));
    // The second could have no address if the first had kept it.
    for _ in 0..2 {
        let pod = Namespace::new("pod");
        let result = node.add(&network, &pod, json!({}));
        assert_eq!(result.ips[0].address.to_string(), "192.0.2.20/24");
        assert!(pings(&pod, "192.0.2.1"));
        node.runtime.del("net", &attachment(&pod)).unwrap();
    }
    let said = fs::read_to_string("/run/dhcp.log").unwrap();
    assert!(said.contains("lease acquired") && !said.contains("network is down"), "{said}");
}
