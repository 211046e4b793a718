//! The CNI plugin `vhost-user` joins a pod's interface to a guest, and lets go of it whatever happened meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{CniCall, Daemon, Namespace, Sandbox, binary, eventually, output, sh};
use serde_json::{Value, json};

use crate::vhost_guests::{Guest, await_socket};

const LIMIT: Duration = Duration::from_secs(20);
const CONTROL: &str = "/run/guestwire/vhost.sock";
const DEVICE_INFO: &str = "/run/k8s.cni.cncf.io/devinfo/cni/net1-device.json";

/// A node with a bridge and the daemon, and a pod on the bridge.
struct Node {
    pod: Option<Namespace>,
    daemon: Daemon,
    plugin: CniCall,
    mac: String,
    _sandbox: Sandbox,
}

fn daemon() -> Daemon {
    let mut command = Command::new(binary("vhost-net-backend"));
    let daemon = Daemon::start(command.args(["--control", CONTROL, "--state", "/run/guestwire/state"]));
    await_socket(Path::new(CONTROL));
    eventually("the daemon answers", LIMIT, || output(&mut ctl("list")).status.success().then_some(()));
    daemon
}

fn ctl(what: &str) -> Command {
    let mut command = Command::new(binary("vhost-net-backend"));
    command.args(["ctl", what]);
    command
}

fn links() -> Vec<Value> {
    let answer: Value = serde_json::from_slice(&output(&mut ctl("list")).stdout).unwrap();
    answer["links"].as_array().unwrap().clone()
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        sh("ip addr add 192.0.2.1/24 dev br1");
        let (pod, daemon) = (Namespace::new("pod"), daemon());
        let bridge = json!({"cniVersion": "1.1.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true});
        let result = CniCall::new("cnv-bridge", bridge).netns(&pod).call("ADD").success();
        let mac = result["interfaces"][2]["mac"].as_str().unwrap().to_owned();
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "vhost-user",
            "runtimeConfig": {"CNIDeviceInfoFile": DEVICE_INFO},
        });
        let plugin = CniCall::new("vhost-user", config).netns(&pod).with("prevResult", result);
        Self { pod: Some(pod), daemon, plugin, mac, _sandbox: sandbox }
    }

    /// Attaches; returns where the socket is.
    fn add(&self) -> PathBuf {
        let result = self.plugin.call("ADD").success();
        let ours =
            result["interfaces"].as_array().unwrap().iter().find(|interface| interface["name"] == "net1");
        PathBuf::from(ours.unwrap()["socketPath"].as_str().unwrap())
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(links(), Vec::<Value>::new());
        assert!(!Path::new(DEVICE_INFO).exists());
        for folder in ["/run/guestwire/vhost", "/run/guestwire/state"] {
            let left = std::fs::read_dir(folder).map(|files| files.count());
            assert!(matches!(left, Ok(0) | Err(_)), "{folder}: {left:?}");
        }
    }
}

fn guest(directory: &Path, socket: &Path, mac: &str) -> Guest {
    let port = format!("path={},queue_size=256,mac={mac}", socket.display());
    let mut guest = Guest::start(directory, "guest.log", "icmpecho", &[port]);
    guest.say("start");
    guest.received(1);
    guest
}

#[test]
fn a_guest_on_a_pods_interface_is_reached_and_its_address_observed() {
    let node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = node.add();
    let told: Value = serde_json::from_slice(&std::fs::read(DEVICE_INFO).unwrap()).unwrap();
    let vhost_user = json!({"mode": "client", "path": socket});
    assert_eq!(told, json!({"type": "vhost-user", "version": "1.1.0", "vhost-user": vhost_user}));
    let _guest = guest(directory.path(), &socket, &node.mac);
    sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
    node.plugin.call("CHECK").success();
    let seen = eventually("the guest's address is observed", LIMIT, || {
        links()[0]["ends"][0]["addresses"].as_array().filter(|seen| !seen.is_empty()).cloned()
    });
    assert_eq!((&seen[0]["address"], &seen[0]["mac"]), (&json!("192.0.2.2"), &json!(node.mac)));
    let (code, message) = node.plugin.call("ADD").error();
    assert!(code == 103 && message.contains("vhost-net-backend"), "{code} {message}");
    for _ in 0..2 {
        node.plugin.call("DEL").success();
        node.assert_nothing_is_left();
    }
    let (code, message) = node.plugin.call("CHECK").error();
    assert!(code == 105 && message.contains("absent"), "{code} {message}");
}

#[test]
fn a_guest_cannot_send_from_another_address() {
    let node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = node.add();
    let _guest = guest(directory.path(), &socket, "02:00:00:00:00:99");
    let answer = output(Command::new("ping").args(["-c", "1", "-w", "2", "192.0.2.2"]));
    assert!(!answer.status.success(), "a spoofing guest answered");
    let stats: Value = serde_json::from_slice(&output(&mut ctl("stats")).stdout).unwrap();
    let spoofed = stats["stats"][0]["directions"][0]["drops"]["spoofed"].as_u64();
    assert!(spoofed > Some(0), "{stats}");
}

#[test]
fn del_in_full_traffic_leaves_nothing_and_the_next_add_serves() {
    let mut node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let socket = node.add();
        let _guest = guest(directory.path(), &socket, &node.mac);
        let mut flood = Command::new("ping");
        let flood = flood.args(["-q", "-f", "-s", "1000", "-w", "300", "192.0.2.2"]).stdout(Stdio::null());
        let _flood = Daemon::start(flood);
        sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
        node.plugin.call("DEL").success();
        node.assert_nothing_is_left();
        assert!(!socket.exists());
        assert_eq!(node.daemon.child().try_wait().unwrap(), None, "the daemon ended");
    }
}

#[test]
fn what_the_network_says_of_a_guest_is_what_the_daemon_is_asked_for() {
    let node = Node::new();
    let (pod, mac) = (node.pod.as_ref().unwrap(), &node.mac);
    pod.sh("ip link set net1 mtu 1400");
    let ends = |plugin: &CniCall| {
        plugin.call("ADD").success();
        plugin.call("CHECK").success();
        let link = &links()[0];
        let ends = [0, 1].map(|end| link["ends"][end]["end"].as_str().unwrap().to_owned());
        plugin.call("DEL").success();
        node.assert_nothing_is_left();
        let name = link["name"].as_str().unwrap();
        ends.map(|end| end.replace(&format!("/{name}.sock"), ""))
    };
    let nic = format!("af_xdp:net1?netns={}", pod.path().display());
    let guest = format!("vhost-user:/run/guestwire/vhost?queues=1&mtu=1400&observe&source={mac}");
    assert_eq!(ends(&node.plugin), [guest, nic.clone()]);
    let mut said = node.plugin.clone();
    for (key, value) in [
        ("queues", json!(3)),
        ("sockets", json!("/run/elsewhere")),
        ("spoofCheck", json!(false)),
        ("bytes", json!(1_000_000)),
        ("packets", json!(500)),
    ] {
        said = said.with(key, value);
    }
    let guest = "vhost-user:/run/elsewhere?queues=3&mtu=1400&observe&bytes=1000000&packets=500".to_owned();
    assert_eq!(ends(&said), [guest, nic]);
    assert_eq!(std::fs::read_dir("/run/elsewhere").unwrap().count(), 0);
    // Nobody is asked but the daemon that the network names.
    let (code, _) = node.plugin.clone().with("control", json!("/run/nobody.sock")).call("ADD").error();
    assert_eq!(code, 11);
    node.assert_nothing_is_left();
}

#[test]
fn the_nodes_end_of_a_veth_finishes_its_checksums() {
    let node = Node::new();
    let end = sh("ls /sys/class/net/br1/brif");
    let offload = || sh(&format!("ethtool -k {}", end.trim()));
    assert!(offload().contains("tx-checksumming: on"));
    node.add();
    assert!(offload().contains("tx-checksumming: off"));
}

#[test]
fn check_names_what_is_not_as_add_made_it() {
    let node = Node::new();
    node.add();
    let (pod, name) = (node.pod.as_ref().unwrap(), links()[0]["name"].as_str().unwrap().to_owned());
    let expect = |plugin: &CniCall, reasons: &[&str]| {
        let (code, message) = plugin.call("CHECK").error();
        assert!(code == 105 && reasons.iter().all(|reason| message.contains(reason)), "{code} {message}");
    };
    node.plugin.call("CHECK").success();
    // What the network or the interface says by now.
    expect(&node.plugin.clone().with("queues", json!(2)), &[&name, "queues=1", "queues=2"]);
    expect(&node.plugin.clone().with("bytes", json!(5)), &[&name, "&bytes=5"]);
    pod.sh("ip link set net1 mtu 1400");
    expect(&node.plugin, &["mtu=1500", "mtu=1400"]);
    pod.sh("ip link set net1 mtu 1500");
    node.plugin.call("CHECK").success();
    std::fs::remove_file(DEVICE_INFO).unwrap();
    expect(&node.plugin, &["device-info file", "is absent, expected present"]);
    // An interface that went, and another that came: the link has the one that is gone.
    let mac = &node.mac;
    pod.sh("ip link del net1");
    pod.sh(&format!("ip link add net1 address {mac} type veth peer name other"));
    eventually("the link's end has ended", LIMIT, || {
        (links()[0]["ends"][1]["running"] == false).then_some(())
    });
    expect(&node.plugin, &["end at the interface is closed, expected running"]);
    node.plugin.call("DEL").success();
    node.assert_nothing_is_left();
}

#[test]
fn an_interface_whose_frames_are_longer_than_af_xdps_is_refused() {
    let node = Node::new();
    let pod = node.pod.as_ref().unwrap();
    pod.sh("ip link set net1 mtu 3823");
    let (code, message) = node.plugin.call("ADD").error();
    assert_eq!((code, message.as_str()), (141, "net1 has an MTU of 3823; AF_XDP carries up to 3822"));
    node.assert_nothing_is_left();
    pod.sh("ip link set net1 mtu 3822");
    node.add();
    assert!(links()[0]["ends"][0]["end"].as_str().unwrap().contains("&mtu=3822&"));
    node.plugin.call("DEL").success();
    node.assert_nothing_is_left();
}

#[test]
fn a_crash_anywhere_in_add_or_del_leaves_nothing_that_del_does_not_find() {
    let node = Node::new();
    let whole = |verb: &str| {
        for changes in 1.. {
            let crashed = node.plugin.clone().var("GUESTWIRE_CRASH_AFTER", changes.to_string()).call(verb);
            if crashed.code.is_some() {
                return changes;
            }
            node.plugin.call("DEL").success();
            node.assert_nothing_is_left();
            if verb == "DEL" {
                node.add();
            }
        }
        unreachable!("an endless range")
    };
    assert!(whole("ADD") > 2);
    assert!(whole("DEL") > 1);
    node.plugin.call("DEL").success();
    node.assert_nothing_is_left();
}

#[test]
fn del_and_gc_need_no_namespace() {
    let mut node = Node::new();
    node.add();
    let other = node.plugin.clone().container("c2");
    other.call("ADD").error();
    drop(node.pod.take());
    let without = node.plugin.clone().without("CNI_NETNS");
    without.call("DEL").success();
    without.call("DEL").success();
    node.assert_nothing_is_left();
}

#[test]
fn gc_ends_what_belongs_to_no_attachment_of_its_network() {
    let node = Node::new();
    node.add();
    let gc = |network: &str, valid: Value| {
        let plugin =
            node.plugin.clone().with("name", json!(network)).with("cni.dev/valid-attachments", valid);
        plugin.call("GC").success();
        links().len()
    };
    assert_eq!(gc("net", json!([{"containerID": "c1", "ifname": "net1"}])), 1);
    assert_eq!(gc("other", json!([])), 1);
    assert_eq!(gc("net", json!([{"containerID": "c1", "ifname": "net2"}])), 0);
}

#[test]
fn gc_ends_what_a_daemon_remembers_and_cannot_have_again() {
    let mut node = Node::new();
    let socket = node.add();
    node.daemon.child().kill().unwrap();
    node.daemon.child().wait().unwrap();
    // The pod goes while the daemon is away.
    drop(node.pod.take());
    node.daemon = daemon();
    let lost = links();
    assert_eq!((lost.len(), &lost[0]["ends"][1]["running"]), (1, &json!(false)));
    assert!(lost[0]["error"].as_str().unwrap().contains("network namespace"), "{lost:?}");
    assert!(socket.exists(), "a killed daemon leaves it");
    node.plugin.clone().with("cni.dev/valid-attachments", json!([])).call("GC").success();
    std::fs::remove_file(DEVICE_INFO).unwrap();
    node.assert_nothing_is_left();
}

#[test]
fn gc_removes_what_an_add_left_that_never_got_a_link() {
    let node = Node::new();
    let crashed = node.plugin.clone().var("GUESTWIRE_CRASH_AFTER", "2").call("ADD");
    assert!(crashed.code.is_none());
    let files = || std::fs::read_dir("/run/guestwire/vhost").unwrap().count();
    assert_eq!((files(), links().len()), (1, 0), "only a note");
    let gc = |network: &str, valid: Value| {
        let plugin = node.plugin.clone().with("name", json!(network));
        plugin.with("cni.dev/valid-attachments", valid).call("GC").success();
        files()
    };
    assert_eq!(gc("other", json!([])), 1);
    assert_eq!(gc("net", json!([{"containerID": "c1", "ifname": "net1"}])), 1);
    assert_eq!(gc("net", json!([])), 0);
    node.assert_nothing_is_left();
}

#[test]
fn a_killed_daemon_comes_back_with_its_links() {
    let mut node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = node.add();
    node.daemon.child().kill().unwrap();
    node.daemon.child().wait().unwrap();
    let (code, _) = node.plugin.call("STATUS").error();
    assert_eq!(code, 51, "guests' packets pass by the daemon");
    let (code, message) = node.plugin.call("DEL").error();
    assert_eq!((code, message.as_str()), (11, "vhost-net-backend"));
    node.daemon = daemon();
    node.plugin.call("STATUS").success();
    node.plugin.call("CHECK").success();
    let _guest = guest(directory.path(), &socket, &node.mac);
    sh("ping -c 1 -w 20 192.0.2.2");
    node.plugin.call("DEL").success();
    node.assert_nothing_is_left();
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let node = Node::new();
    for (key, value, code, reason) in [
        ("queues", json!(0), 7, "queues: is 0; allowed: 1 to 64"),
        ("control", json!("relative"), 7, "control: is \"relative\""),
        ("sockets", json!("/a,b"), 7, "sockets: is \"/a,b\""),
        ("bytes", json!(-1), 7, "bytes: is -1"),
        ("runtimeConfig", json!({"CNIDeviceInfoFile": "/etc/passwd"}), 126, "/etc/passwd"),
    ] {
        let answer = node.plugin.clone().with(key, value).call("ADD").error();
        assert!(answer.0 == code && answer.1.contains(reason), "{key}: {answer:?}");
    }
    let (code, message) = node.plugin.clone().ifname("net7").call("ADD").error();
    assert!(code == 110 && message.contains("net7"), "{code} {message}");
    node.assert_nothing_is_left();
}
