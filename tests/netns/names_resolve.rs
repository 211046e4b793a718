//! A VM's name is enough to log in: the system's resolver asks secondary-dns, and OpenSSH the resolver.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, Namespace, Sandbox, SshKey, binary, eventually, output, run, sh};
use nix::mount::{MsFlags, mount};
use serde_json::json;

const NAME: &str = "blue.vm1.ns1.vm.example.com";
const PATIENCE: Duration = Duration::from_secs(20);

/// Puts a file of the test's over one of the system's, for this sandbox only.
fn cover(target: &str, folder: &Path, text: &str) {
    let file = folder.join(target.replace('/', "-"));
    fs::write(&file, text).unwrap();
    let none = None::<&str>;
    mount(Some(&file), target, none, MsFlags::MS_BIND, none).unwrap();
}

/// A status as the supervisor writes it: in place in one step.
fn status(vmis: &Path, address: &str) {
    let text = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": "ns1"},
        "status": {"phase": "Running", "interfaces": [{"name": "blue", "ipAddresses": [address]}]},
    });
    let folder = vmis.join("ns1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(".vm1"), text.to_string()).unwrap();
    fs::rename(folder.join(".vm1"), folder.join("vm1.json")).unwrap();
}

/// An SSH server in the VM's namespace, for the one who has the key.
fn serve_ssh(vm: &Namespace, folder: &Path, key: &SshKey) -> Daemon {
    let home = folder.join("home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    fs::write(home.join(".ssh/authorized_keys"), key.public() + "\n").unwrap();
    for private in [home.clone(), home.join(".ssh")] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700)).unwrap();
    }
    cover("/etc/passwd", folder, &format!("root:x:0:0:root:{}:/bin/sh\n", home.display()));
    let host_key = folder.join("host-key");
    run(Command::new("dropbearkey").args(["-t", "ed25519", "-f"]).arg(&host_key));
    Daemon::start(
        vm.command("dropbear")
            .args(["-F", "-E", "-s", "-p", "22", "-r"])
            .arg(&host_key)
            .stderr(Stdio::null()),
    )
}

#[test]
fn ssh_finds_a_vm_by_name_through_the_systems_resolver() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let vmis = folder.path().join("vmis");
    let (client, vm) = (Namespace::new("client"), Namespace::new("vm"));
    sh(&format!("ip link add c netns {} type veth peer name v netns {}", client.name(), vm.name()));
    client.sh("ip address add 10.1.0.1/24 dev c");
    client.sh("ip address add 192.0.2.53/32 dev lo");
    client.sh("ip link set c up");
    vm.sh("ip address add 10.1.0.5/24 dev v");
    vm.sh("ip address add 10.1.0.6/24 dev v");
    vm.sh("ip link set v up");
    let key = SshKey::generate(folder.path());
    let _ssh = serve_ssh(&vm, folder.path(), &key);
    status(&vmis, "10.1.0.5");
    cover("/etc/resolv.conf", folder.path(), "nameserver 192.0.2.53\n");
    cover("/etc/nsswitch.conf", folder.path(), "passwd: files\nhosts: files dns\n");
    let _dns = Daemon::start(client.command(binary("secondary-dns")).args([
        "--source",
        &format!("dir:{}", vmis.display()),
        "--domain",
        "example.com",
        "--listen",
        "192.0.2.53:53",
    ]));
    let login = || output(&mut key.login(&client, NAME, "echo $SSH_CONNECTION"));
    // The address and port at which the VM was reached.
    let reached = |address: &str| {
        eventually(&format!("{NAME} leads to {address}"), PATIENCE, || {
            let text = String::from_utf8(login().stdout).unwrap();
            text.trim().ends_with(&format!(" {address} 22")).then_some(())
        });
    };
    reached("10.1.0.5");
    status(&vmis, "10.1.0.6");
    reached("10.1.0.6");
    let nobody = output(client.command("getent").args(["ahosts", "blue.vm2.ns1.vm.example.com"]));
    assert!(!nobody.status.success(), "{nobody:?}");
}
