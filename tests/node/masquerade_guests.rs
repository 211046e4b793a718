//! Real guests on the pod network, brought up as the manual has it: they learn who they are by DHCP and router
//! advertisements, are reached by their pods' addresses and through Services, and reach out under those addresses.
//!
//! Two guests, booted together since each takes long here: `web` is the example of the guide, with a list of ports;
//! `open` has none, and a second NIC on a bridge.

use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use e2e::{CniCall, Launcher, Namespace, Sandbox, Snapshot, SshKey, eventually, example, output, run, sh};
use serde_json::Value;

/// Guests are emulated twice over here.
const BOOT: Duration = Duration::from_secs(180);
/// Most queries the name server answers.
const QUERIES: usize = 64;
/// What it answers.
const ANSWER: [u8; 4] = [192, 0, 2, 77];

/// A node whose pod network has jumbo frames, another pod on it, and the two guests.
struct Cluster {
    launcher: Launcher,
    /// Another pod.
    client: Namespace,
    client_addresses: [String; 2],
    key: SshKey,
    folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Cluster {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        let folder = tempfile::tempdir().unwrap();
        let client = Namespace::new("client");
        let result = Self::plugin(folder.path(), &client).call("ADD").success();
        let client_addresses = [0, 1].map(|index| {
            let address = result["ips"][index]["address"].as_str().unwrap();
            address.split('/').next().unwrap().to_owned()
        });
        let key = SshKey::generate(folder.path());
        Self {
            launcher: Launcher::new(folder.path()),
            client,
            client_addresses,
            key,
            folder,
            _sandbox: sandbox,
        }
    }

    /// The example of a pod network; who has which address is written below `folder`.
    fn network(folder: &Path) -> Value {
        let mut network: Value =
            serde_json::from_str(include_str!("../../docs/examples/pods.conflist")).unwrap();
        network["plugins"][0]["ipam"]["dataDir"] = folder.join("ipam").to_str().into();
        network
    }

    /// Puts a pod on the network without a launcher.
    fn plugin(folder: &Path, pod: &Namespace) -> CniCall {
        let network = Self::network(folder);
        let mut config = network["plugins"][0].clone();
        for field in ["cniVersion", "name"] {
            config[field] = network[field].clone();
        }
        let path = format!("{}:/usr/lib/cni", e2e::binary_dir().display());
        CniCall::new("cnv-bridge", config).netns(pod).ifname("eth0").container("client").var("CNI_PATH", path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn up(&self, manifest: &Path) {
        let list = Self::network(self.folder.path());
        let list = self.write("pods.conflist", &list.to_string());
        let [server, _] = &self.client_addresses;
        let resolv_conf = self.write("resolv.conf", &format!("search ns.example\nnameserver {server}\n"));
        let more = ["--pod-network", list.to_str().unwrap(), "--resolv-conf", resolv_conf.to_str().unwrap()];
        let up = self.launcher.up(manifest, &more);
        assert!(up.status.success(), "{}\n{}", String::from_utf8_lossy(&up.stderr), self.launcher.story());
    }

    /// Pod addresses of a VM as its status has them: IPv4, then IPv6.
    fn pod_addresses(&self, vm: &str) -> [String; 2] {
        let both = eventually("the pod's addresses are in the status", BOOT, || {
            <[String; 2]>::try_from(self.launcher.addresses(vm)).ok()
        });
        assert!(both[0].starts_with("10.77.0.") && both[1].starts_with("fd77::"), "{both:?}");
        both
    }

    /// Runs a command in a guest, reached by `address`, as soon as its sshd is there.
    fn guest(&self, address: &str, command: &str) -> String {
        eventually(&format!("ssh to {address}"), BOOT, || {
            let login = output(&mut self.key.login(&self.client, address, "true"));
            login.status.success().then_some(())
        });
        run(&mut self.key.login(&self.client, address, command))
    }

    /// Accepts one connection to the client's `port` from a guest, and tells its source.
    fn caller(&self, guest: &str, index: usize, port: u16) -> IpAddr {
        let own = &self.client_addresses[index];
        let address: IpAddr = own.parse().unwrap();
        let listener = self.client.netns().run(|| TcpListener::bind((address, port))).unwrap().unwrap();
        let accepted = thread::spawn(move || listener.accept().unwrap().1.ip());
        self.guest(guest, &format!("nc -w 60 {own} {port} </dev/null"));
        accepted.join().unwrap()
    }

    /// A name server on the client's port 53 that knows one address, and tells who asked.
    fn name_server(&self) -> Receiver<IpAddr> {
        let own: IpAddr = self.client_addresses[0].parse().unwrap();
        let socket = self.client.netns().run(|| UdpSocket::bind((own, 53))).unwrap().unwrap();
        let (heard, asked) = channel();
        thread::spawn(move || {
            for _ in 0..QUERIES {
                let mut query = [0; 512];
                let (length, peer) = socket.recv_from(&mut query).unwrap();
                socket.send_to(&answer(&query[..length]), peer).unwrap();
                if heard.send(peer.ip()).is_err() {
                    return;
                }
            }
        });
        asked
    }
}

/// A test that fails shows what the VMs had to say.
impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.launcher.story());
        }
    }
}

/// The query with one A record, or none if it asks for something else (RFC 1035, 4.1).
fn answer(query: &[u8]) -> Vec<u8> {
    let is_a = query[query.len() - 4..] == [0, 1, 0, 1];
    let mut answer = query.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = u8::from(is_a);
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ANSWER);
    }
    answer
}

/// What a server says to whom connects.
fn hear(from: &Namespace, address: &str, port: u16) -> std::io::Result<String> {
    let address = std::net::SocketAddr::new(address.parse().unwrap(), port);
    let mut stream =
        from.netns().run(|| TcpStream::connect_timeout(&address, Duration::from_secs(30))).unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut heard = String::new();
    stream.read_to_string(&mut heard)?;
    Ok(heard)
}

/// A VM that lists no ports, with a second NIC on a bridge of the node.
fn open_vm(key: &SshKey) -> String {
    format!(
        "apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {{name: blue}}
spec: {{config: '{{\"cniVersion\":\"1.0.0\",\"name\":\"blue\",\"type\":\"cnv-bridge\",\"bridge\":\"br1\"}}'}}
---
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {{name: open}}
spec:
  domain:
    memory: {{guest: 192Mi}}
    devices:
      disks: [{{name: seed, disk: {{}}}}]
      interfaces: [{{name: default, masquerade: {{}}}}, {{name: blue, bridge: {{}}}}]
  networks: [{{name: default, pod: {{}}}}, {{name: blue, multus: {{networkName: blue}}}}]
  volumes:
  - name: seed
    cloudInitNoCloud:
      userData: |
        #cloud-config
        ssh_authorized_keys:
        - {}
      networkData: |
        version: 2
        ethernets:
          eth0:
            dhcp4: true
            addresses: ['fd10:0:2::2/120']
          eth1:
            addresses: [10.10.10.15/24]
",
        key.public()
    )
}

#[test]
fn guests_on_the_pod_network_serve_and_are_served() {
    let cluster = Cluster::new();
    let before = Snapshot::take(&[&cluster.launcher.run_dir()]);
    cluster.up(&example("vm-pod-network.yaml", &cluster.key, cluster.folder.path()));
    cluster.up(&cluster.write("open.yaml", &open_vm(&cluster.key)));
    let web = cluster.pod_addresses("web");
    let open = cluster.pod_addresses("open");

    knows_who_it_is(&cluster, &web[0]);
    listed_ports_alone_are_the_guests(&cluster, &web);
    services_lead_to_the_guest(&cluster, &web);
    for (index, address) in web.iter().enumerate() {
        let seen = cluster.caller(&web[0], index, 443);
        assert_eq!(seen.to_string(), *address, "the world sees the pod's address");
    }
    all_ports_and_jumbo_frames(&cluster, &open);

    for vm in ["web", "open"] {
        assert_eq!(cluster.launcher.run("down", &[vm, "--now"]), format!("default/{vm}: down\n"));
    }
    before.assert_unchanged();
}

fn knows_who_it_is(cluster: &Cluster, address: &str) {
    assert_eq!(cluster.guest(address, "hostname"), "web\n");
    let told = cluster.guest(address, "ip address show dev eth0; ip route; cat /etc/resolv.conf");
    let server = format!("nameserver {}", cluster.client_addresses[0]);
    let expected =
        ["mtu 9000", "10.0.2.2/24", "fd10:0:2::2/120", "default via 10.0.2.1", "search ns.example", &server];
    for part in expected {
        assert!(told.contains(part), "{part} is not in: {told}");
    }
    let asked = cluster.name_server();
    let found = cluster.guest(address, "nslookup www.example");
    assert!(found.contains("192.0.2.77"), "{found}");
    assert_eq!(asked.recv().unwrap().to_string(), address);
}

fn listed_ports_alone_are_the_guests(cluster: &Cluster, pod: &[String; 2]) {
    let serve = "for port in 80 81; do (while true; do echo I am web | nc -l -p $port; done) </dev/null >/dev/null 2>&1 & done";
    cluster.guest(&pod[0], serve);
    for address in pod {
        let heard = eventually("the server answers", BOOT, || hear(&cluster.client, address, 80).ok());
        assert_eq!(heard, "I am web\n", "{address}");
        let refused = hear(&cluster.client, address, 81).unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{address}: port 81 is the pod's own"
        );
    }
}

/// What kube-proxy does for a ClusterIP with port 27017 and targetPort 22, as in the manual.
fn services_lead_to_the_guest(cluster: &Cluster, pod: &[String; 2]) {
    let nft = |command: String| cluster.client.sh(&format!("nft {command}"));
    for (family, service, address) in
        [("ip", "10.96.0.9", pod[0].clone()), ("ip6", "fd96::9", format!("[{}]", pod[1]))]
    {
        nft(format!("add table {family} services"));
        nft(format!("add chain {family} services output {{ type nat hook output priority -100; }}"));
        nft(format!(
            "add rule {family} services output {family} daddr {service} tcp dport 27017 dnat to {address}:22"
        ));
        let told = run(&mut cluster.key.login_on(&cluster.client, service, 27017, "hostname"));
        assert_eq!(told, "web\n", "through {service}");
    }
}

fn all_ports_and_jumbo_frames(cluster: &Cluster, pod: &[String; 2]) {
    assert_eq!(cluster.guest(&pod[0], "hostname"), "open\n");
    // No gateway6 was configured: the route came by advertisement, which also tells the MTU.
    let routes = eventually("a router is known", BOOT, || {
        let routes = cluster.guest(&pod[0], "ip -6 route");
        routes.contains("default via fe80::ff:fe00:0").then_some(routes)
    });
    assert_eq!(cluster.guest(&pod[1], "hostname"), "open\n", "{routes}");
    for (index, address) in pod.iter().enumerate() {
        let seen = cluster.caller(&pod[0], index, 443);
        assert_eq!(seen.to_string(), *address, "the world sees the pod's address");
    }
    // Every port is the guest's, and so is ICMP: echoes of full size come from it, not from the pod.
    let serve = "(while true; do echo I am open | nc -l -p 12345; done) </dev/null >/dev/null 2>&1 &";
    cluster.guest(&pod[0], serve);
    let received = |of: &str| {
        cluster
            .guest(&pod[0], "cat /proc/net/snmp /proc/net/snmp6")
            .lines()
            .filter(|line| line.contains(of))
            .map(str::to_owned)
            .next_back()
            .unwrap()
    };
    for (address, headers, counter) in [(&pod[0], 28, "Icmp:"), (&pod[1], 48, "Icmp6InEchos")] {
        let heard = eventually("the server answers", BOOT, || hear(&cluster.client, address, 12345).ok());
        assert_eq!(heard, "I am open\n", "{address}");
        let before = received(counter);
        let size = (9000 - headers).to_string();
        run(cluster.client.command("ping").args(["-c", "1", "-W", "30", "-M", "do", "-s", &size, address]));
        assert_ne!(received(counter), before, "the echo came from the guest");
    }
    let blue = &cluster.launcher.status("open")["status"]["interfaces"][1];
    assert_eq!(blue["name"], "blue");
    sh("ip address add 10.10.10.1/24 dev br1");
    sh("ping -c 1 -W 30 10.10.10.15");
    sh("ip address del 10.10.10.1/24 dev br1");
}
