//! The ground of every promise about guests: KVM in the node runs an unmodified kernel, and the quick-test guest
//! applies its seed. QEMU is the reference here; our own launcher's promises are in their own modules.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, GuestImage, Namespace, Sandbox, SshKey, eventually, output, run, seed_disk, sh};

#[test]
fn applies_its_seed_and_lets_the_key_in() {
    let _sandbox = Sandbox::enter();
    let client = Namespace::new("client");
    sh("ip link add br0 up type bridge");
    sh("ip tuntap add tap0 mode tap");
    sh("ip link set tap0 up master br0");
    sh(&format!("ip link add port up master br0 type veth peer name eth0 netns {}", client.name()));
    client.sh("ip address add 10.10.10.1/24 dev eth0");
    client.sh("ip link set eth0 up");

    let folder = tempfile::tempdir().unwrap();
    let key = SshKey::generate(folder.path());
    let user = format!(
        "#cloud-config\nhostname: vm1\nssh_authorized_keys:\n- {}\nruncmd:\n- touch /tmp/commanded\n",
        key.public()
    );
    let network = "version: 2\nethernets:\n  eth0:\n    addresses: [10.10.10.14/24]\n";
    let meta = "instance-id: i-1\nlocal-hostname: overridden\n";
    let seed =
        seed_disk(folder.path(), &[("meta-data", meta), ("user-data", &user), ("network-config", network)]);
    let console = folder.path().join("console");
    let mut qemu = Daemon::start(&mut reference_vm(&seed, &console));

    let printed = || fs::read_to_string(&console).unwrap_or_default();
    eventually("the guest is ready", Duration::from_secs(120), || {
        assert_eq!(qemu.child().try_wait().unwrap(), None, "QEMU ended: {}", printed());
        printed().contains("guest ready: vm1").then_some(())
    });
    let told = run(&mut key.login(&client, "10.10.10.14", "hostname; ls /tmp/commanded"));
    assert_eq!(told, "vm1\n/tmp/commanded\n");

    output(&mut key.login(&client, "10.10.10.14", "poweroff"));
    eventually("the guest is off", Duration::from_secs(60), || qemu.child().try_wait().unwrap());
}

/// QEMU with the quick-test guest on `tap0`. If the guest is reset it boots again, as a launcher's does: the emulated CPUs
/// were once seen to reset it before it printed anything.
fn reference_vm(seed: &Path, console: &Path) -> Command {
    let guest = GuestImage::get();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-enable-kvm", "-cpu", "host", "-m", "256", "-display", "none"]);
    qemu.arg("-kernel").arg(guest.kernel).arg("-initrd").arg(guest.initrd);
    qemu.args(["-append", "console=ttyS0 quiet"]);
    qemu.arg("-drive").arg(format!("file={},if=virtio,format=raw,readonly=on", seed.display()));
    qemu.args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"]);
    qemu.args(["-device", "virtio-net-pci,netdev=n,romfile="]);
    qemu.arg("-serial").arg(format!("file:{}", console.display()));
    qemu
}
