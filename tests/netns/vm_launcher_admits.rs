//! `vm-launcher up --admit`: a VM is shown to macpool first, as the API server would show it, and runs as macpool says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use e2e::{Launcher, LocalMacpool, Sandbox, output};

/// A launcher, and a macpool of the machine's own.
struct Place {
    launcher: Launcher,
    folder: tempfile::TempDir,
    macpool: LocalMacpool,
    _sandbox: Sandbox,
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::enter();
        let folder = tempfile::tempdir().unwrap();
        let macpool = LocalMacpool::start(folder.path());
        // A kernel that looks like one at first sight: the VMs here end before they would run it.
        let mut kernel = vec![0; 4096];
        kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(folder.path().join("kernel"), kernel).unwrap();
        Self { launcher: Launcher::new(folder.path()), folder, macpool, _sandbox: sandbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A VM with one NIC, which asks for this address if it is not empty.
    fn manifest(&self, name: &str, mac: &str) -> PathBuf {
        let mac = if mac.is_empty() { String::new() } else { format!(", macAddress: '{mac}'") };
        let manifest = self.path(&format!("{name}.yaml"));
        let text = format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec:\n  running: true\n  \
             template:\n    spec:\n      domain:\n        resources: {{requests: {{memory: 64Mi}}}}\n        devices:\n          \
             interfaces: [{{name: nic, bridge: {{}}{mac}}}]\n      networks: [{{name: nic, multus: {{networkName: none}}}}]\n"
        );
        fs::write(&manifest, text).unwrap();
        manifest
    }

    /// `up` of such a VM, whose network is not defined.
    fn up(&self, name: &str, mac: &str, url: &str, ca: &Path) -> Output {
        let manifest = self.manifest(name, mac);
        let mut up = self.launcher.command("up", &["--admit", url]);
        output(
            up.arg("--admit-ca").arg(ca).arg("--kernel").arg(self.path("kernel")).arg("--file").arg(manifest),
        )
    }

    /// What `up` says about a VM that is admitted and refused.
    fn refused(&self, name: &str, mac: &str) -> String {
        let up = self.up(name, mac, self.macpool.url(), &self.macpool.ca());
        assert_eq!(up.status.code(), Some(1), "{up:?}");
        String::from_utf8(up.stderr).unwrap()
    }
}

#[test]
fn macpool_reserves_what_a_vm_is_given_and_refuses_what_another_has() {
    let place = Place::new();
    // Its network does not exist, so it does not run; its address waits for it.
    let text = place.refused("one", "");
    assert!(text.contains("default/none"), "admitted, and then looked at: {text}");
    let table = place.macpool.reservations();
    assert!(table.contains("02:00:00:00:00:00") && table.contains("default/one"), "{table}");
    assert!(!place.refused("one", "").contains("admitted"), "a VM may come again");
    assert_eq!(place.macpool.reservations(), table, "and has the same address");
    let text = place.refused("two", "02:00:00:00:00:00");
    assert!(
        text.contains("VM default/two is not admitted")
            && text.contains("macAddress 02:00:00:00:00:00 is already used by default/one"),
        "{text}"
    );
}

#[test]
fn a_vm_runs_with_the_address_that_macpool_gave_each_time_it_comes_up() {
    let place = Place::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/vm-pod-network.yaml");
    let text = fs::read_to_string(example).unwrap();
    assert!(!text.contains("macAddress"), "the example leaves the choice to others");
    let manifest = place.path("web.yaml");
    fs::write(&manifest, text).unwrap();
    let resolv_conf = place.path("resolv.conf");
    fs::write(&resolv_conf, "nameserver 192.0.2.254\n").unwrap();
    let (ca, resolv_conf) = (place.macpool.ca().display().to_string(), resolv_conf.display().to_string());
    for _ in 0..2 {
        let options = ["--admit", place.macpool.url(), "--admit-ca", &ca, "--resolv-conf", &resolv_conf];
        let up = place.launcher.up_halted(&manifest, &options);
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        let status = place.launcher.status("web");
        assert_eq!(status["status"]["interfaces"][0]["mac"], "02:00:00:00:00:00", "{status}");
        place.launcher.run("down", &["web", "--now"]);
    }
    let table = place.macpool.reservations();
    assert!(
        table.contains("\n02:00:00:00:00:00  reserved  vm default/web") && table.lines().count() == 2,
        "{table}"
    );
}

#[test]
fn a_webhook_that_cannot_be_asked_stops_the_vm() {
    let place = Place::new();
    let (ca, url) = (place.macpool.ca(), place.macpool.url());
    let says = |url: &str, ca: &Path| {
        let up = place.up("one", "", url, ca);
        assert!(!up.status.success(), "{up:?}");
        String::from_utf8(up.stderr).unwrap()
    };
    for (url, reason) in [
        ("https://127.0.0.1:9/mutate-virtualmachines", "cannot reach the webhook 127.0.0.1:9"),
        (&url.replace("mutate-virtualmachines", "else"), "404 Not Found: no such path"),
        (&url.replace("mutate-virtualmachines", "mutate-pods"), "this path takes \"pods\""),
        (&url.replace("https", "http"), "expected https://"),
    ] {
        let text = says(url, &ca);
        assert!(text.contains(reason), "{url}: {text}");
    }
    let text = says(url, &place.path("kernel"));
    assert!(text.contains("not a certificate") || text.contains("cannot reach"), "{text}");
    assert_eq!(place.macpool.reservations(), "");
}
