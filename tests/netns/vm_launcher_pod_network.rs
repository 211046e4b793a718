//! `vm-launcher up` with `pod: {}`: the VM gets an address of the pod network, its guest is told its own, and all of it
//! goes again. The guests here are deaf and mute (this rung's KVM runs none better); a namespace on the VM's bridge, with
//! the guest's MAC address, speaks for them.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Launcher, Namespace, Sandbox, Snapshot, eventually, output, sh};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::Value;

use crate::masquerade_ground::{ip, tcp, until_reached};

const SOON: Duration = Duration::from_secs(30);
/// Datagrams of a flood.
const FLOOD: usize = 50_000;
/// Where the node's routes lead.
const WORLD_V4: &str = "192.0.2.254";
const WORLD_V6: &str = "2001:db8::254";
/// What the world sees of the node.
const NODE_V4: &str = "192.0.2.1";
const NODE_V6: &str = "2001:db8::1";

/// A node with an uplink, and the world at the other end, which knows no way back to any pod.
struct Node {
    launcher: Launcher,
    world: Namespace,
    folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

/// A namespace where a VM's guest would be.
struct StandIn {
    guest: Namespace,
    files: PathBuf,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let world = Namespace::new("world");
        for host in ["", &format!("nsenter --net={} ", world.path().display())] {
            // A node of pods forwards.
            sh(&format!(
                "{host}sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.forwarding=1"
            ));
        }
        sh(&format!("ip link add uplink up type veth peer name eth0 netns {}", world.name()));
        for (own, other) in [(NODE_V4, WORLD_V4), (NODE_V6, WORLD_V6)] {
            let (length, nodad) = if own.contains(':') { (64, " nodad") } else { (24, "") };
            sh(&format!("ip address add {own}/{length} dev uplink{nodad}"));
            world.sh(&format!("ip address add {other}/{length} dev eth0"));
        }
        world.sh("ip link set eth0 up");
        for own in [NODE_V4, NODE_V6] {
            until_reached(&world, own);
        }
        sh(&format!("ip route add default via {WORLD_V4}"));
        sh(&format!("ip -6 route add default via {WORLD_V6}"));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("resolv.conf"), "search ns.example\nnameserver 192.0.2.254\n").unwrap();
        Self { launcher: Launcher::new(folder.path()), world, folder, _sandbox: sandbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The example, changed.
    fn manifest(&self, changes: &[(&str, &str)]) -> PathBuf {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/vm-pod-network.yaml");
        let mut text = fs::read_to_string(example).unwrap();
        for (from, to) in changes {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        let path = self.path("vm.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn try_up(&self, manifest: &Path, more: &[&str]) -> Result<(), String> {
        let resolv_conf = self.path("resolv.conf").display().to_string();
        let up = self.launcher.up_halted(manifest, &[more, &["--resolv-conf", &resolv_conf]].concat());
        if up.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&up.stderr).into_owned()) }
    }

    #[track_caller]
    fn up(&self, manifest: &Path, more: &[&str]) {
        self.try_up(manifest, more).unwrap_or_else(|error| panic!("{error}\n{}", self.launcher.story()));
    }

    /// The example of a pod network, of one address family: its first range is IPv4, its second IPv6.
    fn pods_of_family(&self, range: usize, resolv_conf: Option<&str>) -> String {
        let example = include_str!("../../docs/examples/pods.conflist");
        let mut conflist: Value = serde_json::from_str(example).unwrap();
        let ipam = &mut conflist["plugins"][0]["ipam"];
        ipam["dataDir"] = self.path("ipam").to_str().into();
        ipam["ranges"] = [ipam["ranges"][range].clone()].as_slice().into();
        if let Some(name) = resolv_conf {
            ipam["resolvConf"] = self.path(name).to_str().into();
        }
        let path = self.path("pods.conflist");
        fs::write(&path, conflist.to_string()).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The status of the VM's first NIC once it has as many addresses.
    fn interface(&self, addresses: usize) -> Value {
        eventually("the pod's addresses are in the status", SOON, || {
            let interface = self.launcher.status("web")["status"]["interfaces"][0].clone();
            let found = interface["ipAddresses"].as_array().map_or(0, Vec::len);
            (found == addresses).then_some(interface)
        })
    }

    /// Puts a namespace with the guest's MAC address on the VM's bridge.
    fn stand_in(&self, mac: &str) -> StandIn {
        let guest = Namespace::new("guest");
        guest.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        let pod = self.launcher.pod("web");
        let (p, g) = (pod.name(), guest.name());
        sh(&format!("ip link add guest mtu 9000 netns {p} type veth peer name eth0 mtu 9000 netns {g}"));
        pod.sh("ip link set guest master k6t-eth0 up");
        guest.sh(&format!("ip link set eth0 address {mac} up"));
        StandIn { guest, files: self.folder.path().to_owned() }
    }

    /// What is there besides host-local's bookkeeping, in which no address may be taken.
    fn before(&self) -> Snapshot {
        Snapshot::take(&[&self.launcher.run_dir().join("vms"), &self.launcher.run_dir().join("cni")])
    }

    fn assert_gone(&self, before: &Snapshot) {
        before.assert_unchanged();
        let run = self.launcher.run_dir();
        let ipam = format!("{}/ipam", run.display());
        for line in e2e::files(&run).lines() {
            let is_address = line.contains("/10.213.") || line.contains("/fd6f:");
            assert!(line.starts_with(&ipam) && !is_address, "{line} is left");
        }
    }
}

impl StandIn {
    /// What udhcpc learns.
    fn ask(&self) -> String {
        let (hook, told) = (self.files.join("hook"), self.files.join("told"));
        let _none_yet = fs::remove_file(&told);
        fs::write(&hook, format!("#!/bin/sh\n[ $1 != bound ] || env >{}\n", told.display())).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let more = "-O search -O mtu -O ntpsrv -O bootfile -O tftp -O 240";
        self.guest.sh(&format!("udhcpc -i eth0 -f -q -n -t 10 -T 3 {more} -s {}", hook.display()));
        fs::read_to_string(told).unwrap()
    }

    /// Uses the addresses that every guest of the pod network has. The IPv6 default route came by advertisement.
    fn settle(&self) {
        for address in ["10.0.2.2/24", "fd10:0:2::2/120"] {
            self.guest.sh(&format!("ip address add {address} dev eth0"));
        }
        self.guest.sh("ip route add default via 10.0.2.1");
        for gateway in ["10.0.2.1", "fd10:0:2::1"] {
            until_reached(&self.guest, gateway);
        }
        let routes = self.guest.sh("ip -6 route show default");
        assert!(routes.contains("via fe80::ff:fe00:0"), "{routes}");
    }
}

#[track_caller]
fn assert_told(told: &str, expected: &[&str]) {
    for line in expected {
        assert!(told.lines().any(|found| found == *line), "{line} is not in:\n{told}");
    }
}

#[test]
fn a_vm_is_on_the_pod_network_reaches_out_is_reached_and_gone_without_a_trace() {
    let node = Node::new();
    // Makes host-local's files, and leaves nothing else.
    let before = node.before();
    node.up(&node.manifest(&[]), &[]);
    let interface = node.interface(2);
    assert_eq!(interface["ipAddresses"][0], interface["ipAddress"]);
    let [v4, v6] = [0, 1].map(|index| interface["ipAddresses"][index].as_str().unwrap().to_owned());
    assert!(v4.starts_with("10.213.0.") && v6.starts_with("fd6f:2a91:c34e::"), "{interface}");
    assert_eq!(
        (&interface["infoSource"], &interface["podInterfaceName"]),
        (&"domain, pod".into(), &"eth0".into())
    );
    let list = node.launcher.run("list", &[]);
    assert!(list.contains(&format!("Running  True   default={v4}")), "{list}");

    let stand_in = node.stand_in(interface["mac"].as_str().unwrap());
    let told = stand_in.ask();
    let expected = [
        "ip=10.0.2.2",
        "mask=24",
        "router=10.0.2.1",
        "dns=192.0.2.254",
        "mtu=1500",
        "hostname=web",
        "search=ns.example",
    ];
    assert_told(&told, &expected);
    let router = eventually("a router answers", SOON, || {
        let asked = output(stand_in.guest.command("rdisc6").args(["-1", "-r", "1", "eth0"]));
        asked.status.success().then(|| String::from_utf8(asked.stdout).unwrap())
    });
    assert!(router.contains("fd10:0:2::/120") && router.contains("fe80::ff:fe00:0"), "{router}");

    stand_in.settle();
    for (world, seen) in [(WORLD_V4, NODE_V4), (WORLD_V6, NODE_V6)] {
        assert_eq!(tcp(&stand_in.guest, world, 443, &node.world), ip(seen), "the guest reaches {world}");
    }
    // From the node, as kube-proxy or a neighbour would: listed ports only.
    let here = Namespace::alias("node", Path::new("/proc/thread-self/ns/net"));
    for address in [&v4, &v6] {
        assert!(tcp(&here, address, 80, &stand_in.guest).is_some(), "{address} port 80");
        assert!(tcp(&here, address, 81, &stand_in.guest).is_none(), "{address} port 81 is not listed");
    }
    // The status follows the pod's interface.
    let pod = node.launcher.pod("web");
    pod.sh("ip address add 10.213.9.9/16 dev eth0");
    assert_eq!(node.interface(3)["ipAddresses"][1], "10.213.9.9");
    pod.sh("ip address del 10.213.9.9/16 dev eth0");
    node.interface(2);
    drop((stand_in, pod, here));
    assert_eq!(node.launcher.run("down", &["web", "--now"]), "default/web: down\n");
    node.assert_gone(&before);
}

#[test]
fn what_the_manifest_asks_for_is_what_the_guest_is_told() {
    let node = Node::new();
    let options = "dhcpOptions: {bootFileName: pxe.0, tftpServerName: tftp.example, ntpServers: [192.0.2.9], \
                   privateOptions: [{option: 240, value: hello}]}";
    let manifest = node.manifest(&[
        ("pod: {}", "pod: {vmNetworkCIDR: 10.9.8.0/24, vmIPv6NetworkCIDR: 'fd99::2/64'}"),
        (
            "masquerade: {}",
            &format!("masquerade: {{}}\n            macAddress: 02:00:00:00:00:77\n            {options}"),
        ),
        (
            "            ports:\n            - port: 22\n",
            "            portRanges: [{start: 79, end: 81, protocol: UDP}]\n            ports:\n",
        ),
    ]);
    // The example network, with its jumbo frames, without IPv6, and with name servers of its own.
    fs::write(node.path("dns"), "domain b.example\nnameserver 192.0.2.53\n").unwrap();
    let pods = node.pods_of_family(0, Some("dns"));
    node.up(&manifest, &["--pod-network", &pods]);
    let interface = node.interface(1);
    assert_eq!(interface["ipAddress"], "10.77.0.2");
    assert_eq!(interface["mac"], "02:00:00:00:00:77");
    let vmi = node.launcher.status("web");
    assert_eq!(vmi["spec"]["networks"][0]["pod"]["vmNetworkCIDR"], "10.9.8.0/24");
    let told = node.stand_in("02:00:00:00:00:77").ask();
    let expected = [
        "ip=10.9.8.2",
        "router=10.9.8.1",
        "mtu=9000",
        "dns=192.0.2.53",
        "search=b.example",
        "ntpsrv=192.0.2.9",
        "bootfile=pxe.0",
        "tftp=tftp.example",
        "opt240=68656c6c6f",
    ];
    assert_told(&told, &expected);
    let rules = node.launcher.pod("web").sh("nft list table inet guestwire-masquerade-eth0");
    assert!(rules.contains("tcp dport 80") && rules.contains("udp dport 79-81"), "{rules}");
    node.launcher.run("down", &["web", "--now"]);
    let left = e2e::files(&node.path("ipam"));
    assert!(!left.contains("10.77.0."), "{left}");
}

#[test]
fn a_guest_of_a_network_without_ipv4_hears_of_ipv6_alone() {
    let node = Node::new();
    let pods = node.pods_of_family(1, None);
    node.up(&node.manifest(&[]), &["--pod-network", &pods]);
    let interface = node.interface(1);
    assert!(interface["ipAddress"].as_str().unwrap().starts_with("fd77::"), "{interface}");
    let guest = node.stand_in(interface["mac"].as_str().unwrap()).guest;
    eventually("a router answers", SOON, || {
        let asked = output(guest.command("rdisc6").args(["-1", "-r", "1", "eth0"]));
        asked.status.success().then_some(())
    });
    let ask = ["-i", "eth0", "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"];
    let asked = output(guest.command("udhcpc").args(ask));
    assert!(!asked.status.success(), "there is no IPv4 to be told");
    node.launcher.run("down", &["web", "--now"]);
}

#[test]
fn a_guest_that_floods_or_dies_is_told_again() {
    let node = Node::new();
    node.up(&node.manifest(&[]), &[]);
    let interface = node.interface(2);
    let stand_in = node.stand_in(interface["mac"].as_str().unwrap());
    let socket = stand_in.guest.netns().run(|| UdpSocket::bind("0.0.0.0:68")).unwrap().unwrap();
    socket.set_broadcast(true).unwrap();
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).unwrap();
    for _ in 0..FLOOD {
        // What does not fit into the queue is lost, as on any wire.
        let _sent = socket.send_to(&[1; 300], "255.255.255.255:67");
    }
    drop(socket);
    assert_told(&stand_in.ask(), &["ip=10.0.2.2"]);

    let vmm = node.launcher.vmm("web").unwrap();
    kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();
    eventually("another VMM runs", SOON, || node.launcher.vmm("web").filter(|now| *now != vmm));
    assert_eq!(node.interface(2)["ipAddresses"], interface["ipAddresses"], "the pod is the same");
    assert_told(&stand_in.ask(), &["ip=10.0.2.2"]);
    node.launcher.run("down", &["web", "--now"]);
}

#[test]
fn a_killed_supervisor_leaves_nothing_that_gc_does_not_find() {
    let node = Node::new();
    let before = node.before();
    node.up(&node.manifest(&[]), &[]);
    kill(Pid::from_raw(node.launcher.supervisor("web")), Signal::SIGKILL).unwrap();
    eventually("the VMM dies too", SOON, || node.launcher.run("list", &[]).contains("Failed").then_some(()));
    assert_eq!(node.launcher.run("gc", &[]), "default/web: removed\n");
    node.assert_gone(&before);
    // Its address is free again, and so is its name.
    node.up(&node.manifest(&[]), &[]);
    node.launcher.run("down", &["web", "--now"]);
    node.assert_gone(&before);
}

#[test]
fn what_is_wrong_with_the_pod_network_is_named_and_undone() {
    let node = Node::new();
    let before = node.before();
    fs::write(
        node.path("bad.conflist"),
        r#"{"name": "n", "type": "cnv-bridge", "ipam": {"type": "nowhere"}}"#,
    )
    .unwrap();
    fs::write(
        node.path("none.conflist"),
        r#"{"name": "n", "type": "cnv-bridge", "bridge": "b", "isGateway": true}"#,
    )
    .unwrap();
    let [bad, none, missing] = ["bad.conflist", "none.conflist", "missing.conflist"]
        .map(|name| node.path(name).display().to_string());
    for (change, more, expected) in [
        (("", ""), &["--pod-network", missing.as_str()][..], "missing.conflist"),
        (("", ""), &["--pod-network", &bad], "network n (pod) needs CNI plugin nowhere, which is not in"),
        (
            ("", ""),
            &["--pod-network", &none],
            "interface eth0 of the container has no IPv4 or IPv6 address that others can reach",
        ),
        (("port: 80", "port: 49152"), &[], "TCP port 49152 is reserved and never forwarded"),
        (("port: 80", "port: 0"), &[], "ports[1].port: \"0\" is not allowed: 1 to 65535"),
        (
            ("pod: {}", "pod: {vmNetworkCIDR: 10.213.7.0/24}"),
            &[],
            "vmNetworkCIDR: 10.213.7.0/24 overlaps 10.213.0.",
        ),
    ] {
        let said = node.try_up(&node.manifest(&[change]), more).unwrap_err();
        assert!(said.contains(expected), "expected {expected:?} in {said}");
        node.assert_gone(&before);
    }
}
