//! `vm-launcher up` refuses what it cannot run with a clear error, and nothing is left behind.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use e2e::{Launcher, Sandbox, Snapshot, output, sh};

const NAD: &str = r#"{"cniVersion":"0.3.1","name":"bridge-network","type":"cnv-bridge","bridge":"br1"}"#;

/// A place with a bridge, a launcher, a manifest, a network and a kernel, each of which a test may spoil.
struct Place {
    launcher: Launcher,
    folder: tempfile::TempDir,
    _sandbox: Sandbox,
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("networks")).unwrap();
        let place = Self { launcher: Launcher::new(folder.path()), folder, _sandbox: sandbox };
        place.network(NAD);
        // What a bzImage shows at first sight, and nothing behind it.
        let mut kernel = vec![0; 4096];
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(place.path("kernel"), kernel).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn network(&self, config: &str) {
        let head = "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition";
        let text = format!("{head}\nmetadata: {{name: bridge-network}}\nspec:\n  config: '{config}'\n");
        fs::write(self.path("networks/bridge-network.yaml"), text).unwrap();
    }

    /// The example with one place changed; `from` must be there.
    fn manifest(&self, from: &str, to: &str) -> PathBuf {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/vm1.yaml");
        let text = fs::read_to_string(example).unwrap();
        assert!(text.contains(from), "{from}");
        let path = self.path("vm.yaml");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        path
    }

    /// What `up` says about `manifest`, which it must refuse; the machine must be as before.
    fn refused(&self, manifest: &PathBuf, more: &[&str]) -> String {
        let before = Snapshot::take(&[&self.launcher.run_dir()]);
        let mut up = self.launcher.command("up", more);
        up.arg("--file").arg(manifest).arg("--nad-dir").arg(self.path("networks"));
        let up = output(&mut up);
        assert_eq!(up.status.code(), Some(1), "{up:?}");
        assert_eq!(up.stdout, b"");
        before.assert_unchanged();
        String::from_utf8(up.stderr).unwrap()
    }

    fn kernel(&self) -> String {
        self.path("kernel").display().to_string()
    }
}

#[test]
fn what_the_manifest_gets_wrong_is_named() {
    let place = Place::new();
    let kernel = place.kernel();
    for (from, to, expected) in [
        ("bridge: {}", "masquerade: {}", "interfaces[0].masquerade: goes with the pod network only"),
        (
            "multus: {networkName: bridge-network}",
            "pod: {}",
            "interfaces[0].bridge: the pod network takes masquerade: {}",
        ),
        ("bus: virtio", "bus: sata", "disk.bus: \"sata\" is not allowed: virtio"),
        (
            "02:00:00:00:01:01",
            "01:00:5e:00:00:01",
            "macAddress: \"01:00:5e:00:00:01\" is not allowed: a unicast",
        ),
        ("memory: 256Mi", "memory: much", "requests.memory: \"much\" is not an amount of bytes"),
        (
            "networkName: bridge-network",
            "networkName: nowhere",
            "no NetworkAttachmentDefinition default/nowhere; known:",
        ),
        ("runStrategy: Always", "running: false", "VM default/vm1 is halted by its manifest"),
        ("kind: VirtualMachine", "kind: Pod", "kind \"Pod\"; expected kubevirt.io/v1 VirtualMachine"),
        ("metadata:", "metadata: [", "not YAML"),
    ] {
        let message = place.refused(&place.manifest(from, to), &["--kernel", &kernel]);
        assert!(message.contains(expected), "expected {expected:?} in {message}");
    }
    let unknown = place.manifest("rng: {}", "warp: {}");
    let message = place.refused(&unknown, &["--kernel", &kernel, "--strict"]);
    assert!(message.contains("--strict refuses what would be ignored: spec.template"), "{message}");
}

#[test]
fn what_the_node_lacks_is_named() {
    let place = Place::new();
    let kernel = place.kernel();
    let manifest = place.manifest("rng: {}", "rng: {}");
    assert!(
        place.refused(&manifest, &[]).contains("there is no kernel: the manifest has no firmware.kernelBoot")
    );
    let missing = place.path("missing").display().to_string();
    assert!(place.refused(&manifest, &["--kernel", &missing]).contains("kernel: cannot open"));
    let garbage = manifest.display().to_string();
    assert!(place.refused(&manifest, &["--kernel", &garbage]).contains("is not a kernel (bzImage or ELF)"));
    assert!(
        place
            .refused(&manifest, &["--kernel", &kernel, "--initrd", &missing])
            .contains("initrd: cannot open")
    );
    let disk = format!("hostDisk: {{path: {garbage}, type: Disk}}\n        other:");
    let bad_disk = place.manifest("cloudInitNoCloud:", &disk);
    let message = place.refused(&bad_disk, &["--kernel", &kernel]);
    assert!(message.contains("disk cloudinitdisk") && message.contains("multiple of 512"), "{message}");
}

#[test]
fn what_the_network_gets_wrong_is_named_and_undone() {
    let place = Place::new();
    let kernel = place.kernel();
    let manifest = place.manifest("rng: {}", "rng: {}");
    for (config, expected) in [
        (r#"{"name":"n","bridge":"br1"}"#, "bridge-network.yaml: type is \"\""),
        ("{", "bridge-network.yaml: the network configuration is not JSON"),
        (r#"{"name":"n","type":"nowhere"}"#, "needs CNI plugin nowhere, which is not in"),
        (
            r#"{"cniVersion":"0.3.1","name":"n","type":"cnv-bridge","bridge":"br7"}"#,
            "bridge br7 does not exist",
        ),
        (
            r#"{"cniVersion":"0.3.1","name":"n","type":"cnv-bridge","bridge":"br1","vlan":4095}"#,
            "vlan: is 4095; allowed: 0 (off), 1 to 4094",
        ),
    ] {
        place.network(config);
        let message = place.refused(&manifest, &["--kernel", &kernel]);
        assert!(message.contains(expected), "expected {expected:?} in {message}");
    }
}

#[test]
fn a_vmm_that_cannot_boot_is_undone() {
    let place = Place::new();
    // Without a NIC: this rung's kernel has none of the links that a pod needs.
    let text = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: bare}
spec: {domain: {memory: {guest: 64Mi}, devices: {autoattachPodInterface: false}}}
";
    fs::write(place.path("vm.yaml"), text).unwrap();
    let message = place.refused(&place.path("vm.yaml"), &["--kernel", &place.kernel()]);
    assert!(message.contains("VM default/bare") && message.contains("kernel"), "{message}");
}

#[test]
fn without_kvm_nothing_is_touched() {
    let place = Place::new();
    let manifest = place.manifest("rng: {}", "rng: {}");
    let before = Snapshot::take(&[&place.launcher.run_dir()]);
    let mut up = Command::new("unshare");
    up.args(["--mount", "sh", "-c", "mount -t tmpfs none /dev && exec \"$0\" \"$@\""]);
    let launcher = place.launcher.command("up", &["--kernel", &place.kernel()]);
    up.arg(launcher.get_program()).args(launcher.get_args());
    up.arg("--file").arg(&manifest).arg("--nad-dir").arg(place.path("networks"));
    let up = output(&mut up);
    let message = String::from_utf8_lossy(&up.stderr).into_owned();
    assert_eq!(up.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot open /dev/kvm; guests need hardware virtualization"), "{message}");
    before.assert_unchanged();
}
