//! A node with a VLAN bridge, a client and a launcher: where the tests of whole VMs run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Launcher, Namespace, Sandbox, Snapshot, SshKey, eventually, example, output, run, sh};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Guests are emulated twice over here.
pub(crate) const BOOT: Duration = Duration::from_secs(150);

/// A bridge with VLANs and a client in VLAN 100, the network definition, a key, a launcher.
pub(crate) struct Node {
    pub(crate) launcher: Launcher,
    pub(crate) client: Namespace,
    pub(crate) key: SshKey,
    pub(crate) folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Node {
    /// A node without VMs.
    pub(crate) fn new() -> Self {
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

    /// An example, with this node's key in it.
    pub(crate) fn manifest(&self, name: &str) -> PathBuf {
        example(name, &self.key, self.folder.path())
    }

    /// Starts a VM of the examples and checks that `up` says so.
    pub(crate) fn up(&self, name: &str) {
        self.up_as(name, &self.manifest(&format!("{name}.yaml")), &[]);
    }

    /// Starts the VM of a manifest, with more options of `up`.
    pub(crate) fn up_as(&self, name: &str, manifest: &Path, more: &[&str]) {
        let up = output(&mut self.up_command(manifest, more));
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        assert_eq!(String::from_utf8_lossy(&up.stdout), format!("default/{name}: running\n"));
    }

    /// The command line that brings up a manifest on this node's network.
    pub(crate) fn up_command(&self, manifest: &Path, more: &[&str]) -> Command {
        let mut up = self.launcher.up_command(manifest, more);
        up.arg("--nad-dir").arg(self.folder.path().join("networks"));
        up
    }

    /// What a shell command prints in the guest, which must succeed.
    pub(crate) fn in_guest(&self, address: &str, command: &str) -> String {
        run(&mut self.key.login(&self.client, address, command))
    }

    /// Waits until the VM's own name answers on `address`.
    pub(crate) fn reach(&self, name: &str, address: &str) {
        let told = eventually(&format!("ssh to {name}"), BOOT, || {
            let login = output(&mut self.key.login(&self.client, address, "hostname"));
            login.status.success().then(|| String::from_utf8_lossy(&login.stdout).trim().to_owned())
        });
        assert_eq!(told, name, "console: {}", self.launcher.console(name));
    }

    /// Waits until the VM's IPv4 addresses in its status are as `holds` wants them.
    pub(crate) fn becomes(&self, name: &str, what: &str, mut holds: impl FnMut(&[String]) -> bool) {
        eventually(what, BOOT, || {
            let v4: Vec<String> =
                self.launcher.addresses(name).into_iter().filter(|address| address.contains('.')).collect();
            holds(&v4).then_some(())
        });
    }

    /// The machine as it is now, to compare with.
    pub(crate) fn before(&self) -> Snapshot {
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

/// Sends `signal` to a process this test has started.
pub(crate) fn end(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}
