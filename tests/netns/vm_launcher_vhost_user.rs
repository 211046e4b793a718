//! `vm-launcher up` with `binding: {name: vhostuser}`: the supervisor connects the VMM to vhost-net-backend, again after the
//! backend has died, and `down` leaves nothing. The guests here are deaf and mute; the node's tests have one that speaks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use e2e::{Daemon, Launcher, Sandbox, Snapshot, binary, eventually, output, run, sh};

use crate::cnv_bridge_ipam::{PLUGINS, answering};
use crate::vhost_guests::await_socket;

pub(crate) const SOON: Duration = Duration::from_secs(60);
const CONTROL: &str = "/run/guestwire/vhost.sock";
pub(crate) const NAME: &str = "fast1";

pub(crate) struct Node {
    pub(crate) launcher: Launcher,
    folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Node {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::enter();
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        let folder = tempfile::tempdir().unwrap();
        Self { launcher: Launcher::new(folder.path()), folder, _sandbox: sandbox }
    }

    /// The example, on a bridge without VLANs, changed.
    pub(crate) fn manifest(&self, from: &str, to: &str) -> PathBuf {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/vm-vhostuser.yaml");
        let text = fs::read_to_string(example).unwrap().replace(r#""vlan": 100, "#, "");
        assert!(text.contains(from), "{from:?} is not in the example");
        let path = self.folder.path().join("vm.yaml");
        fs::write(&path, text.replace(from, to)).unwrap();
        path
    }

    pub(crate) fn link_is(&self, state: &str) {
        eventually(&format!("the link is {state}"), SOON, || {
            let status = self.launcher.status(NAME);
            (status["status"]["interfaces"][0]["linkState"] == state).then_some(())
        });
    }

    /// What the launcher says of a manifest that it refuses.
    fn refusal(&self, manifest: &Path) -> String {
        let up = self.launcher.up_halted(manifest, &[]);
        assert!(!up.status.success());
        String::from_utf8_lossy(&up.stderr).into_owned()
    }
}

pub(crate) fn ctl(arguments: &[&str]) -> String {
    run(Command::new(binary("vhost-net-backend")).arg("ctl").args(arguments))
}

fn daemon() -> Daemon {
    daemon_at(CONTROL)
}

/// The daemon, asked at `control`.
pub(crate) fn daemon_at(control: &str) -> Daemon {
    let mut command = Command::new(binary("vhost-net-backend"));
    let daemon = Daemon::start(command.args(["--control", control, "--state", "/run/guestwire/state"]));
    await_socket(Path::new(control));
    eventually("the daemon answers", SOON, || {
        let mut list = Command::new(binary("vhost-net-backend"));
        output(list.args(["ctl", "--control", control, "list"])).status.success().then_some(())
    });
    daemon
}

/// The names of the backend's links.
fn links() -> Vec<String> {
    let list: serde_json::Value = serde_json::from_str(&ctl(&["list"])).unwrap();
    let links = list["links"].as_array().unwrap();
    links.iter().map(|link| link["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_vmm_is_connected_to_its_backend_whenever_there_is_one() {
    let node = Node::new();
    let before = Snapshot::take(&[&node.launcher.run_dir()]);
    let mut backend = daemon();
    let up = node.launcher.up_halted(&node.manifest("fast", "fast"), &[]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    assert_eq!(links().len(), 1);
    for _ in 0..2 {
        backend.child().kill().unwrap();
        backend.child().wait().unwrap();
        node.link_is("down");
        backend = daemon();
        node.link_is("up");
    }
    let status = node.launcher.status(NAME);
    assert!(!node.launcher.run("status", &[NAME]).contains("link:"), "what is as it should be is not told");
    assert_eq!(status["status"]["phase"], "Running", "the guest never noticed more than its link");
    assert_eq!(status["status"]["interfaces"][0]["mac"], "02:00:00:00:0f:01");
    // One link can be asked for by its name.
    let [name] = &links()[..] else { panic!("{:?}", links()) };
    assert!(ctl(&["list", name]).contains(name));
    node.launcher.run("down", &[NAME, "--now"]);
    assert_eq!(links(), [""; 0], "no link is left");
    assert_eq!(fs::read_dir("/run/guestwire/vhost").unwrap().count(), 0, "no socket either");
    drop(backend);
    before.assert_unchanged();
}

#[test]
fn a_guest_starts_again_without_its_backend_and_gets_it_later() {
    let node = Node::new();
    let before = Snapshot::take(&[&node.launcher.run_dir()]);
    let mut backend = daemon();
    let up = node.launcher.up_halted(&node.manifest("fast", "fast"), &[]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    backend.child().kill().unwrap();
    backend.child().wait().unwrap();
    node.link_is("down");
    let vmm = node.launcher.vmm(NAME).unwrap();
    kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();
    let status = eventually("another guest runs", SOON, || {
        let another = node.launcher.vmm(NAME).is_some_and(|now| now != vmm);
        Some(node.launcher.status(NAME)).filter(|status| another && status["status"]["phase"] == "Running")
    });
    assert_eq!(status["status"]["interfaces"][0]["linkState"], "down", "{status}");
    let told = node.launcher.run("status", &[NAME]);
    assert!(told.contains("  link:       down, its backend is away\n"), "{told}");

    // The backend remembers its link, so what is left of the VM is known as long as it is away.
    let down = output(&mut node.launcher.command("down", &[NAME, "--now"]));
    let told = String::from_utf8_lossy(&down.stderr).into_owned();
    assert!(
        !down.status.success() && told.contains("the VM has ended, but something it had is left"),
        "{told}"
    );
    assert!(told.contains("cannot reach the daemon at /run/guestwire/vhost.sock"), "{told}");
    let backend = daemon();
    assert_eq!(node.launcher.run("gc", &[]), "default/fast1: removed\n");
    assert!(!ctl(&["list"]).contains("cni-"));
    assert_eq!(fs::read_dir("/run/guestwire/vhost").unwrap().count(), 0);
    drop(backend);
    before.assert_unchanged();
}

#[test]
fn without_a_backend_up_says_so_in_one_line_and_leaves_nothing() {
    let node = Node::new();
    let before = Snapshot::take(&[&node.launcher.run_dir()]);
    // The second time the folder for sockets is there.
    for _ in 0..2 {
        assert_eq!(
            node.refusal(&node.manifest("fast", "fast")),
            "vm-launcher: VM default/fast1: interface fast: network fast: vhost-user ADD: vhost-net-backend: cannot reach the \
             daemon at /run/guestwire/vhost.sock: No such file or directory (os error 2) (code 11)\n"
        );
        before.assert_unchanged();
        assert_eq!(fs::read_dir("/run/guestwire/vhost").unwrap().count(), 0);
    }
}

#[test]
fn what_dead_supervisors_leave_is_collected_with_their_links() {
    let node = Node::new();
    let before = Snapshot::take(&[&node.launcher.run_dir()]);
    let mut backend = daemon();
    let process = backend.child().id();
    let descriptors = || fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    // With those of questions that it has just answered.
    let at_rest = descriptors();
    for _ in 0..5 {
        let up = node.launcher.up_halted(&node.manifest("fast", "fast"), &[]);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        assert_eq!(links().len(), 1);
        kill(Pid::from_raw(node.launcher.supervisor(NAME)), Signal::SIGKILL).unwrap();
        // A supervisor keeps what is its own until it is gone.
        eventually("its VM is removed", SOON, || {
            (node.launcher.run("gc", &[]) == "default/fast1: removed\n").then_some(())
        });
        assert_eq!(links(), [""; 0]);
        assert_eq!(fs::read_dir("/run/guestwire/vhost").unwrap().count(), 0, "no socket either");
        assert_eq!(node.launcher.run("gc", &[]), "");
        eventually("the backend keeps nothing of it", SOON, || (descriptors() <= at_rest).then_some(()));
    }
    drop(backend);
    before.assert_unchanged();
}

#[test]
fn what_a_backend_cannot_be_had_for_is_refused_by_name() {
    let node = Node::new();
    let _backend = daemon();
    let before = Snapshot::take(&[&node.launcher.run_dir()]);
    let other = node.refusal(&node.manifest("{name: vhostuser}", "{name: passt}"));
    assert!(other.contains(r#"interfaces[0].binding.name: "passt" is not allowed: vhostuser"#), "{other}");
    let chain = node.manifest(",\n        {\"type\": \"vhost-user\"}", "");
    let without = node.refusal(&chain);
    assert!(
        without.contains("binding vhostuser needs a network whose last plugin is vhost-user"),
        "{without}"
    );
    let old = node.refusal(&node.manifest("1.1.0", "1.0.0"));
    assert!(old.contains("interface fast: its network's plugins tell no vhost-user socket; they do from cniVersion 1.1.0 on"), "{old}");
    // A plugin that gives the interface an address of its own.
    let ipam = format!(
        r#"{{"type": "host-local", "subnet": "192.0.2.0/24", "dataDir": "{}"}}"#,
        node.folder.path().join("ipam").display()
    );
    let ptp = format!(r#"{{"type": "ptp", "ipam": {ipam}}}"#);
    let bridge = r#"{"type": "cnv-bridge", "bridge": "br1", "macspoofchk": true}"#;
    let manifest = node.manifest(bridge, &ptp);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(r#""cniVersion": "1.1.0""#, r#""cniVersion": "1.0.0""#)).unwrap();
    let own = node.refusal(&manifest);
    assert!(own.contains("interface fast: its network's plugins gave it the MAC address "), "{own}");
    assert!(own.contains(", not 02:00:00:00:0f:01; its backend lets a guest use no other"), "{own}");
    assert_eq!(links(), [""; 0], "no link is left");
    before.assert_unchanged();
}

#[test]
fn a_network_s_addresses_that_a_guest_is_not_told_are_named() {
    let node = Node::new();
    let _backend = daemon();
    answering(r#"{"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.7/24"}]}"#);
    let ipam = r#""type": "cnv-bridge", "ipam": {"type": "fixed"}, "#;
    let manifest = node.manifest(r#""type": "cnv-bridge", "#, ipam);
    let path = format!("{}:{PLUGINS}", e2e::binary_dir().display());
    let up = node.launcher.up_halted(&manifest, &["--plugin-path", &path]);
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(up.status.success() && said.contains("the guest is not told 192.0.2.7: "), "{said}");
    node.launcher.run("down", &[NAME, "--now"]);
}
