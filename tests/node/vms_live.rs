//! `vm-launcher up` to `down` with real guests on a bridge's VLAN, as the manual's examples have it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Launcher, Namespace, Sandbox, Snapshot, SshKey, eventually, example, output, run, sh};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Guests are emulated twice over here.
const BOOT: Duration = Duration::from_secs(150);

/// A bridge with VLANs and a client in VLAN 100, the network definition, a key, a launcher.
struct Node {
    launcher: Launcher,
    client: Namespace,
    key: SshKey,
    folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let client = Namespace::new("client");
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge vlan_filtering 1");
        sh(&format!("ip link add uplink master br1 up type veth peer name eth0 netns {}", client.name()));
        sh("bridge vlan del dev uplink vid 1");
        sh("bridge vlan add dev uplink vid 100 pvid untagged");
        client.sh("ip address add 10.10.10.1/24 dev eth0");
        client.sh("ip link set eth0 up");
        let folder = tempfile::tempdir().unwrap();
        let networks = folder.path().join("networks");
        fs::create_dir(&networks).unwrap();
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/bridge-network.yaml");
        fs::copy(example, networks.join("bridge-network.yaml")).unwrap();
        let key = SshKey::generate(folder.path());
        Self { launcher: Launcher::new(folder.path()), client, key, folder, _sandbox: sandbox }
    }

    fn manifest(&self, name: &str) -> PathBuf {
        example(name, &self.key, self.folder.path())
    }

    /// Starts a VM of the examples and checks that `up` says so.
    fn up(&self, name: &str) {
        let networks = self.folder.path().join("networks");
        let manifest = self.manifest(&format!("{name}.yaml"));
        let up = self.launcher.up(&manifest, &["--nad-dir", networks.to_str().unwrap()]);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        assert_eq!(String::from_utf8_lossy(&up.stdout), format!("default/{name}: running\n"));
    }

    /// Waits until the VM's own name answers on `address`.
    fn reach(&self, name: &str, address: &str) {
        let told = eventually(&format!("ssh to {name}"), BOOT, || {
            let login = output(&mut self.key.login(&self.client, address, "hostname"));
            login.status.success().then(|| String::from_utf8_lossy(&login.stdout).trim().to_owned())
        });
        assert_eq!(told, name, "console: {}", self.launcher.console(name));
    }

    fn becomes(&self, name: &str, what: &str, limit: Duration, mut holds: impl FnMut(&[String]) -> bool) {
        eventually(what, limit, || {
            let v4: Vec<String> =
                self.launcher.addresses(name).into_iter().filter(|address| address.contains('.')).collect();
            holds(&v4).then_some(())
        });
    }

    fn before(&self) -> Snapshot {
        Snapshot::take(&[&self.launcher.run_dir()])
    }
}

/// A test that fails shows what the VMs had to say.
impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.launcher.story());
        }
    }
}

fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[test]
fn two_vms_are_up_seen_and_gone_without_a_trace() {
    let node = Node::new();
    let before = node.before();
    node.up("vm1");
    node.up("vm2");
    node.reach("vm1", "10.10.10.14");
    node.reach("vm2", "10.10.10.15");
    node.becomes("vm1", "vm1's address is seen", BOOT, |v4| v4 == ["10.10.10.14"]);
    node.becomes("vm2", "vm2's address is seen", BOOT, |v4| v4 == ["10.10.10.15"]);
    let list = node.launcher.run("list", &[]);
    assert!(list.contains("Running  True   bridge-net=10.10.10.14"), "{list}");
    run(&mut node.key.login(&node.client, "10.10.10.14", "ping -c 1 -W 10 10.10.10.15"));

    // An address appears in the guest; then the old one goes. The status follows both.
    run(&mut node.key.login(&node.client, "10.10.10.14", "ip address add 10.10.10.24/25 dev eth0"));
    run(node.client.command("ping").args(["-c", "1", "-W", "10", "10.10.10.24"]));
    node.becomes("vm1", "both addresses are seen", BOOT, |v4| v4 == ["10.10.10.24", "10.10.10.14"]);
    run(&mut node.key.login(&node.client, "10.10.10.24", "ip address del 10.10.10.14/24 dev eth0"));
    node.becomes("vm1", "the old address is gone", BOOT, |v4| v4 == ["10.10.10.24"]);

    let down = node.launcher.run("down", &["vm1"]);
    assert_eq!(down, "default/vm1: down\n");
    assert_eq!(node.launcher.run("down", &["vm1"]), "default/vm1: is not there\n");
    node.launcher.run("down", &["vm2"]);
    before.assert_unchanged();
}

#[test]
fn a_killed_vmm_is_seen_and_its_guest_runs_again() {
    let node = Node::new();
    let before = node.before();
    node.up("vm1");
    node.reach("vm1", "10.10.10.14");
    let uid = node.launcher.status("vm1")["metadata"]["uid"].clone();
    let vmm = node.launcher.vmm("vm1").unwrap();
    end(vmm, Signal::SIGKILL);
    eventually("another instance runs", BOOT, || {
        let status = node.launcher.status("vm1");
        (status["metadata"]["uid"] != uid && status["status"]["phase"] == "Running").then_some(())
    });
    assert_ne!(node.launcher.vmm("vm1").unwrap(), vmm);
    assert_eq!(node.launcher.addresses("vm1"), [] as [String; 0], "the new guest has shown nothing yet");
    node.reach("vm1", "10.10.10.14");
    // A reboot from inside is the same instance in a new VMM.
    let uid = node.launcher.status("vm1")["metadata"]["uid"].clone();
    let vmm = node.launcher.vmm("vm1");
    output(&mut node.key.login(&node.client, "10.10.10.14", "reboot"));
    eventually("another VMM", BOOT, || node.launcher.vmm("vm1").filter(|now| Some(*now) != vmm));
    node.reach("vm1", "10.10.10.14");
    assert_eq!(node.launcher.status("vm1")["metadata"]["uid"], uid);
    node.launcher.run("down", &["vm1", "--now"]);
    before.assert_unchanged();
}

#[test]
fn a_killed_supervisor_takes_the_guest_along_and_gc_the_rest() {
    let node = Node::new();
    let before = node.before();
    for clean in ["gc", "up", "down"] {
        node.up("vm1");
        let vmm = node.launcher.vmm("vm1").unwrap();
        end(node.launcher.supervisor("vm1"), Signal::SIGKILL);
        eventually("the VMM dies too", BOOT, || kill(Pid::from_raw(vmm), None).err());
        let list = node.launcher.run("list", &[]);
        assert!(list.contains("Failed"), "{list}");
        match clean {
            "gc" => assert_eq!(node.launcher.run("gc", &[]), "default/vm1: removed\n"),
            "up" => {
                node.up("vm1");
                node.launcher.run("down", &["vm1", "--now"]);
            }
            _ => assert_eq!(node.launcher.run("down", &["vm1"]), "default/vm1: down\n"),
        }
        before.assert_unchanged();
    }
}

#[test]
fn a_second_vm_of_the_same_name_disturbs_nothing() {
    let node = Node::new();
    node.up("vm1");
    let (supervisor, vmm) = (node.launcher.supervisor("vm1"), node.launcher.vmm("vm1"));
    let networks = node.folder.path().join("networks");
    let up = node.launcher.up(&node.manifest("vm1.yaml"), &["--nad-dir", networks.to_str().unwrap()]);
    assert!(!up.status.success());
    let message = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(
        message.contains(&format!("VM default/vm1 is there already: process {supervisor} runs it")),
        "{message}"
    );
    assert_eq!((node.launcher.supervisor("vm1"), node.launcher.vmm("vm1")), (supervisor, vmm));
    node.launcher.run("down", &["vm1", "--now"]);
}
