//! podman, with its CNI backend, puts a container on our bridges as our tests' own calls do, and leaves nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, binary, files, run, sh};
use serde_json::{Value, json};

/// What a node of podman has: its configuration, networks, storage, and a root file system for containers.
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn new(folder: &Path) -> Self {
        // The sandbox's /sys shows this namespace's links, and no control groups.
        sh("mount -t cgroup2 cgroup2 /sys/fs/cgroup");
        let plugins = binary("cnv-bridge").parent().unwrap().to_owned();
        let networks = folder.join("net.d");
        fs::create_dir(&networks).unwrap();
        let configuration = format!(
            "[network]\nnetwork_backend = \"cni\"\nnetwork_config_dir = {networks:?}\n\
             cni_plugin_dirs = [{plugins:?}, \"/usr/lib/cni\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n"
        );
        fs::write(folder.join("containers.conf"), configuration).unwrap();
        let root = folder.join("rootfs");
        for folder in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for tool in ["sh", "ip", "ping", "sleep"] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        Self { folder: folder.to_owned() }
    }

    /// Adds a network: the bridge in `vlan`, addresses of `subnet`.
    fn network(&self, name: &str, vlan: u16, subnet: &str) {
        let ranges = json!([[{"subnet": subnet, "rangeStart": subnet.replace("0/24", "10")}]]);
        let network = json!({"cniVersion": "0.4.0", "name": name, "plugins": [{
            "type": "cnv-bridge", "bridge": "br1", "vlan": vlan, "preserveDefaultVlan": false, "macspoofchk": true,
            "ipam": {"type": "host-local", "dataDir": self.addresses(), "ranges": ranges},
        }]});
        fs::write(self.folder.join(format!("net.d/{name}.conflist")), network.to_string()).unwrap();
    }

    /// Where host-local keeps the addresses it has given.
    fn addresses(&self) -> PathBuf {
        self.folder.join("addresses")
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command.args(["--storage-driver", "vfs", "--root"]).arg(self.folder.join("storage"));
        command.args(arguments.split_whitespace());
        command
    }

    fn run(&self, arguments: &str) -> String {
        run(&mut self.command(arguments))
    }

    /// Starts a container on a network; it sleeps.
    fn start(&self, name: &str, network: &str) {
        let options = "--detach --log-driver none --cgroups disabled --ulimit nofile=1024:1024";
        let mut command = self.command(&format!("run {options} --name {name} --network {network} --rootfs"));
        run(command.arg(self.folder.join("rootfs")).args(["/bin/sleep", "10000"]));
    }

    /// What a command says inside of a container.
    fn inside(&self, name: &str, command: &str) -> String {
        self.run(&format!("exec {name} {command}"))
    }
}

/// A pod of ours with this address in `vlan`.
fn peer(vlan: u16, address: &str) -> (Namespace, CniCall) {
    let pod = Namespace::new("pod");
    let config = json!({
        "cniVersion": "1.0.0", "name": "peers", "type": "cnv-bridge", "bridge": "br1", "vlan": vlan,
        "preserveDefaultVlan": false,
    });
    let call = CniCall::new("cnv-bridge", config).netns(&pod).container(&format!("peer{vlan}"));
    call.call("ADD").success();
    pod.sh(&format!("ip address add {address}/24 dev net1"));
    (pod, call)
}

#[test]
fn a_container_of_podman_is_in_the_vlans_of_its_networks_and_leaves_nothing() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
    let folder = tempfile::tempdir().unwrap();
    let podman = Podman::new(folder.path());
    podman.network("blue", 100, "192.0.2.0/24");
    podman.network("red", 200, "198.51.100.0/24");
    let peers = [peer(100, "192.0.2.1"), peer(200, "198.51.100.1")];
    // Where libcni, which podman calls the plugins by, keeps their results.
    let before = Snapshot::take(&[Path::new("/var/lib/cni/results")]);

    podman.start("c", "blue:interface_name=net1");
    let shown = podman.inside("c", "ip -o address show net1");
    assert!(shown.contains("192.0.2.10/24"), "{shown}");
    podman.inside("c", "ping -c 1 -W 30 192.0.2.1");
    let inspected: Value = serde_json::from_str(&podman.run("inspect c")).unwrap();
    let seen = &inspected[0]["NetworkSettings"]["Networks"]["blue"];
    assert_eq!(seen["IPAddress"], "192.0.2.10", "{seen}");
    assert!(shown_mac(&podman).contains(seen["MacAddress"].as_str().unwrap()), "{seen}");

    // Another network comes and goes while the container runs.
    podman.run("network connect red c");
    let shown = podman.inside("c", "ip -o address");
    assert!(shown.contains("192.0.2.10/24") && shown.contains("198.51.100.10/24"), "{shown}");
    podman.inside("c", "ping -c 1 -W 30 198.51.100.1");
    let vlans = sh("bridge -compressvlans vlan show");
    for vlan in ["100 PVID Egress Untagged", "200 PVID Egress Untagged"] {
        assert_eq!(vlans.matches(vlan).count(), 2, "the container's and the peer's: {vlans}");
    }
    podman.run("network disconnect red c");
    let shown = podman.inside("c", "ip -o address");
    assert!(shown.contains("192.0.2.10/24") && !shown.contains("198.51.100.10"), "{shown}");

    podman.run("rm --force --time 0 c");
    before.assert_unchanged();
    let given = files(&podman.addresses());
    assert!(!given.contains("192.0.2.10 ") && !given.contains("198.51.100.10 "), "{given}");
    for (_, call) in peers {
        call.call("DEL").success();
    }
}

fn shown_mac(podman: &Podman) -> String {
    podman.inside("c", "ip link show net1")
}
