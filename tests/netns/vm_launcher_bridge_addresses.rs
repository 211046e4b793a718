//! `vm-launcher up` with `bridge: {}`: addresses that the network gave the pod are the guest's, who is told them; where
//! there are none, nobody of ours says a word. A namespace at the tap speaks for the guest; the node's tests have guests that
//! speak, behind a bridge in the pod.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use e2e::{Daemon, Launcher, Namespace, Sandbox, Snapshot, eventually, output, sh};
use net_types::Mac;
use serde_json::{Value, json};

use crate::masquerade_ground::until_reached;
use crate::stand_in::{StandIn, dhcp_server, each_frame, packet_socket};

const SOON: Duration = Duration::from_secs(30);
const NAME: &str = "vm1";
const GUEST: &str = "02:00:00:00:01:01";
/// `tap` and eleven digits of the SHA-256 of "blue", the network's name in the manifest.
const TAP: &str = "tap16477688c0e";
/// Who our server says it is.
const SERVER: &str = "169.254.75.10";
const OUTSIDE_MAC: &str = "02:00:00:00:00:09";

/// A node with a bridge, and a host on the bridge's network.
struct Node {
    launcher: Launcher,
    outside: Namespace,
    folder: tempfile::TempDir,
    /// The machine's own configuration, which a client's scripts would write to.
    etc: String,
    _sandbox: Sandbox,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let outside = Namespace::new("outside");
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        sh(&format!("ip link add uplink up master br1 type veth peer name eth0 netns {}", outside.name()));
        outside.sh("sysctl -qw net.ipv6.conf.eth0.accept_dad=0");
        // What is said by UDP is finished here: the stand-in copies frames as they are.
        outside.sh("ethtool -K eth0 tx off");
        outside.sh(&format!("ip link set eth0 address {OUTSIDE_MAC} up"));
        for address in ["192.0.2.1/24", "2001:db8::1/64", "198.51.100.1/24"] {
            outside.sh(&format!("ip address add {address} dev eth0"));
        }
        let folder = tempfile::tempdir().unwrap();
        let etc = e2e::files(Path::new("/etc"));
        Self { launcher: Launcher::new(folder.path()), outside, folder, etc, _sandbox: sandbox }
    }

    /// Brings up a VM of two vCPUs, and so of a tap with several queues, on a network of this plugin. The tap is joined to it
    /// by traffic control, since this rung's kernel has no dummies. Returns what the launcher says.
    #[track_caller]
    fn up(&self, bridge: Value) -> String {
        let plugins = json!([bridge, {"type": "vm-tap", "mode": "tc"}]);
        let network = json!({"cniVersion": "1.0.0", "name": "blue", "plugins": plugins});
        let nad = json!({
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": {"name": "blue"},
            "spec": {"config": network.to_string()},
        });
        let devices = json!({
            "networkInterfaceMultiqueue": true,
            "interfaces": [{
                "name": "blue", "bridge": {}, "macAddress": GUEST,
                "dhcpOptions": {
                    "bootFileName": "pxe.0", "tftpServerName": "tftp.example", "ntpServers": ["192.0.2.9"],
                    "privateOptions": [{"option": 240, "value": "hello"}],
                },
            }],
        });
        let vm = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": NAME},
            "spec": {
                "domain": {"cpu": {"cores": 2}, "memory": {"guest": "64Mi"}, "devices": devices},
                "networks": [{"name": "blue", "multus": {"networkName": "blue"}}],
            },
        });
        let write = |name: &str, text: &str| {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let manifest = write("vm.yaml", &format!("{nad}\n---\n{vm}\n"));
        let resolv_conf = write("resolv.conf", "search ns.example\nnameserver 192.0.2.53\n");
        let more = ["--resolv-conf", resolv_conf.to_str().unwrap(), "--plugin-path", &self.plugin_path()];
        let up = self.launcher.up_halted(&manifest, &more);
        let said = String::from_utf8_lossy(&up.stderr).into_owned();
        assert!(up.status.success(), "{said}\n{}", self.launcher.story());
        said
    }

    fn plugin_path(&self) -> String {
        format!("{}:/usr/lib/cni", e2e::binary_dir().display())
    }

    /// The bridge, with addresses by host-local.
    fn with_addresses(&self) -> Value {
        json!({
            "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true, "mtu": 1400,
            "ipam": {
                "type": "host-local", "dataDir": self.folder.path().join("ipam"),
                "ranges": [
                    [{"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.7", "gateway": "192.0.2.1"}],
                    [{"subnet": "2001:db8::/64", "rangeStart": "2001:db8::7", "gateway": "2001:db8::1"}],
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "192.0.2.9"}],
            },
        })
    }

    fn stand_in(&self) -> StandIn {
        StandIn::new(&self.launcher.pod(NAME), TAP, GUEST)
    }

    /// What a DHCP client in `guest` learns, as the lines of its hook's environment.
    fn ask(&self, guest: &Namespace, line: &str, event: &str) -> String {
        let (hook, told) = (self.folder.path().join("hook"), self.folder.path().join("told"));
        let _none_yet = fs::remove_file(&told);
        let told_at = told.display();
        fs::write(&hook, format!("#!/bin/sh\nenv >{told_at}.$$\nmv {told_at}.$$ {told_at}.${event}\n"))
            .unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let line = line.replace("HOOK", &hook.display().to_string());
        let words: Vec<_> = line.split_whitespace().collect();
        let _client = Daemon::start(guest.command(words[0]).args(&words[1..]));
        let end = if event == "1" { "bound" } else { "BOUND6" };
        eventually("the client is told", SOON, || fs::read_to_string(format!("{told_at}.{end}")).ok())
    }

    fn udhcpc(&self, guest: &Namespace) -> String {
        let more = "-O mtu -O staticroutes -O search -O ntpsrv -O bootfile -O tftp -O 240";
        self.ask(guest, &format!("udhcpc -i eth0 -f -q -n -t 10 -T 3 {more} -s HOOK"), "1")
    }

    fn dhclient_v6(&self, guest: &Namespace) -> String {
        let files = self.folder.path().display();
        let line = format!("dhclient -6 -d -sf HOOK -lf {files}/leases -pf {files}/pid eth0");
        self.ask(guest, &line, "reason")
    }

    /// Whoever answers as a DHCPv4 server within hearing of the host outside.
    fn servers_outside(&self) -> Arc<Mutex<BTreeSet<Mac>>> {
        let socket = self.outside.netns().run(|| packet_socket("eth0")).unwrap();
        let servers = Arc::<Mutex<BTreeSet<Mac>>>::default();
        let heard = Arc::clone(&servers);
        thread::spawn(move || {
            each_frame(&socket, false, |frame| heard.lock().unwrap().extend(dhcp_server(frame)));
        });
        servers
    }

    /// A guest that asks is told everything, and what it then uses is in its status.
    fn assert_told(&self) {
        let outside = self.servers_outside();
        let stand_in = self.stand_in();
        let guest = &stand_in.guest;
        let told = self.udhcpc(guest);
        let server = format!("serverid={SERVER}");
        for line in [
            "ip=192.0.2.7",
            "mask=24",
            "router=192.0.2.1",
            &server,
            "dns=192.0.2.53",
            "search=ns.example",
            "mtu=1400",
            "hostname=vm1",
            "staticroutes=10.9.0.0/16 192.0.2.9 0.0.0.0/0 192.0.2.1",
            "ntpsrv=192.0.2.9",
            "bootfile=pxe.0",
            "tftp=tftp.example",
            "opt240=68656c6c6f",
        ] {
            assert!(told.lines().any(|found| found == line), "{line} is not in:\n{told}");
        }
        assert_eq!(stand_in.servers().len(), 1, "one server speaks to the guest");
        assert_eq!(*outside.lock().unwrap(), BTreeSet::new(), "and nobody else hears it");
        let told = self.dhclient_v6(guest);
        assert!(told.contains("new_ip6_address=2001:db8::7\n"), "{told}");

        // Advertised: what is on the wire, and no router that is none.
        eventually("the prefix is known", SOON, || {
            guest.sh("ip -6 route").contains("2001:db8::/64").then_some(())
        });
        assert_eq!(guest.sh("ip -6 route show default"), "");
        guest.sh("ip address add 192.0.2.7/24 dev eth0");
        guest.sh("ip route add default via 192.0.2.1");
        guest.sh("ip address add 2001:db8::7/128 dev eth0");
        for beyond in ["192.0.2.1", "198.51.100.1", "2001:db8::1"] {
            until_reached(guest, beyond);
        }
        let interface = eventually("both addresses are seen", SOON, || {
            let interface = self.launcher.status(NAME)["status"]["interfaces"][0].clone();
            let seen = interface["ipAddresses"].to_string();
            (seen.contains("192.0.2.7") && seen.contains("2001:db8::7")).then_some(interface)
        });
        assert_eq!(interface["infoSource"], "domain, wire", "{interface}");
    }
}

/// The VM ends with the test, however that ends; a test that fails shows what it had to say.
impl Drop for Node {
    fn drop(&mut self) {
        let panicking = thread::panicking();
        if panicking {
            eprintln!("{}", self.launcher.story());
        }
        let down = output(&mut self.launcher.command("down", &[NAME, "--now"]));
        if !panicking {
            assert!(down.status.success(), "{down:?}");
            assert_eq!(self.etc, e2e::files(Path::new("/etc")), "a client changed the machine's /etc");
        }
    }
}

#[test]
fn a_guest_is_told_the_addresses_its_network_gave_it() {
    let node = Node::new();
    let before = Snapshot::take(&[&node.launcher.run_dir().join("vms")]);
    let said = node.up(node.with_addresses());
    assert!(!said.contains("is not told"), "{said}");
    node.assert_told();
    node.launcher.run("down", &[NAME, "--now"]);
    before.assert_unchanged();
}

#[test]
fn without_addresses_the_network_s_own_server_alone_answers() {
    let node = Node::new();
    let said = node.up(json!({"type": "cnv-bridge", "bridge": "br1", "macspoofchk": true}));
    assert!(said.contains("the guest is not told dhcpOptions"), "{said}");
    let stand_in = node.stand_in();
    let leases = node.folder.path().join("leases");
    let conf = node.folder.path().join("udhcpd.conf");
    let text = format!(
        "start 192.0.2.100\nend 192.0.2.100\ninterface eth0\nlease_file {0}\npidfile {0}.pid\noption router 192.0.2.1\n",
        leases.display()
    );
    fs::write(&leases, "").unwrap();
    fs::write(&conf, text).unwrap();
    let _server = Daemon::start(node.outside.command("busybox").args(["udhcpd", "-f"]).arg(&conf));
    let told = node.udhcpc(&stand_in.guest);
    for line in ["ip=192.0.2.100", "serverid=192.0.2.1", "router=192.0.2.1"] {
        assert!(told.lines().any(|found| found == line), "{line} is not in:\n{told}");
    }
    assert_eq!(stand_in.servers(), BTreeSet::from([OUTSIDE_MAC.parse().unwrap()]));
    assert_eq!(stand_in.guest.sh("ip -6 route show proto ra"), "", "nobody advertised");
}

#[test]
fn the_node_is_advertised_as_the_gateway_and_all_ipv6_addresses_are_told() {
    let node = Node::new();
    // Two subnets, in both of which the node is the gateway, and a host behind it.
    let ranges = json!([[{"subnet": "2001:db8:1::/64"}], [{"subnet": "2001:db8:2::/64"}]]);
    node.up(json!({
        "type": "cnv-bridge", "bridge": "br1", "isDefaultGateway": true,
        "ipam": {"type": "host-local", "dataDir": node.folder.path().join("ipam"), "ranges": ranges},
    }));
    sh("ip address add 2001:db8:9::1/128 dev lo");
    let stand_in = node.stand_in();
    let guest = &stand_in.guest;
    node.dhclient_v6(guest);
    let leases = fs::read_to_string(node.folder.path().join("leases")).unwrap();
    for address in ["2001:db8:1::2", "2001:db8:2::2"] {
        assert!(leases.contains(&format!("iaaddr {address} ")), "{address} is not in {leases}");
        guest.sh(&format!("ip address add {address}/128 dev eth0"));
    }
    let bridge = sh("ip -6 -oneline address show dev br1 scope link");
    let router = bridge.split_whitespace().nth(3).unwrap().trim_end_matches("/64");
    eventually("the node is the default router, and both subnets are on the wire", SOON, || {
        let routes = guest.sh("ip -6 route");
        let known = [
            "2001:db8:1::/64 dev eth0",
            "2001:db8:2::/64 dev eth0",
            &format!("default via {router} dev eth0"),
        ];
        known.iter().all(|route| routes.contains(route)).then_some(())
    });
    for beyond in ["2001:db8:1::1", "2001:db8:2::1", "2001:db8:9::1"] {
        until_reached(guest, beyond);
    }
    let log = node.launcher.story();
    assert!(!log.contains("is not told"), "{log}");
}
