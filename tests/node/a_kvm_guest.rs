//! The ground of every promise about guests: KVM in the node runs an unmodified kernel, and the quick-test guest
//! applies its seed. QEMU is the reference here; our own launcher's promises are in their own modules.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, GuestImage, eventually, run};

/// A seed disk with these files.
fn seed_disk(folder: &Path, files: &[(&str, &str)]) -> std::path::PathBuf {
    let disk = folder.join("seed.img");
    run(Command::new("mkfs.vfat").args(["-C", "-n", "CIDATA"]).arg(&disk).arg("1024"));
    for (name, content) in files {
        let file = folder.join(name);
        fs::write(&file, content).unwrap();
        run(Command::new("mcopy").arg("-i").arg(&disk).arg(&file).arg("::"));
    }
    disk
}

#[test]
fn boots_under_kvm_and_applies_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console");
    let seed = seed_disk(
        folder.path(),
        &[
            ("meta-data", "instance-id: i-1\nlocal-hostname: overridden\n"),
            ("user-data", "#cloud-config\nhostname: vm1\nruncmd:\n- ip address show dev eth0\n- poweroff\n"),
            ("network-config", "version: 2\nethernets:\n  eth0:\n    addresses: [10.10.10.14/24]\n"),
        ],
    );
    let guest = GuestImage::get();
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-enable-kvm", "-cpu", "host", "-m", "256", "-display", "none", "-no-reboot", "-net", "none"])
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&guest.initrd)
        .args(["-append", "console=ttyS0 quiet"])
        .arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,readonly=on", seed.display()))
        .args(["-device", "virtio-net-pci,romfile="])
        .arg("-serial")
        .arg(format!("file:{}", console.display()));
    let mut qemu = Daemon::start(&mut qemu);
    let printed = || fs::read_to_string(&console).unwrap_or_default();
    eventually("the guest powers off", Duration::from_secs(120), || {
        qemu.child().try_wait().unwrap().map(|status| assert!(status.success(), "{}", printed()))
    });
    let printed = printed();
    assert!(printed.contains("inet 10.10.10.14/24"), "{printed}");
    assert!(printed.contains("guest ready: vm1"), "{printed}");
}
