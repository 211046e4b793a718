//! A VM's disks: what a containerDisk keeps and for how long, what a hostDisk keeps, and that nobody shares one.

use std::fs;
use std::path::PathBuf;

use e2e::output;

use crate::vm_node::Node;

const IMAGE: &str = "registry.example/system:1";
const ADDRESS: &str = "10.10.10.14";

/// A manifest with a disk of an image and one of the node, and where those are.
struct Disks {
    manifest: PathBuf,
    images: PathBuf,
    of_image: PathBuf,
    of_host: PathBuf,
}

/// The example VM with two disks more, 1 MiB each, both beginning with "before".
fn with_disks(node: &Node, name: &str) -> Disks {
    let images = node.folder.path().join("images");
    let of_image = images.join(IMAGE).join("disk/system.raw");
    let of_host = node.folder.path().join("data.raw");
    let mut content = vec![0; 1 << 20];
    content[..6].copy_from_slice(b"before");
    fs::create_dir_all(of_image.parent().unwrap()).unwrap();
    fs::write(&of_image, &content).unwrap();
    if !of_host.exists() {
        fs::write(&of_host, &content).unwrap();
    }
    let manifest = node.manifest(&format!("{name}.yaml"));
    let text = fs::read_to_string(&manifest).unwrap();
    let more = |text: String, before: &str, lines: &str| {
        assert!(text.contains(before), "{before}");
        text.replacen(before, &format!("{lines}{before}"), 1)
    };
    let text = more(
        text,
        "          - name: cloudinitdisk\n            disk:",
        "          - {name: system, serial: system, disk: {bus: virtio}}\n\
         \x20         - {name: data, serial: data, disk: {bus: virtio}}\n",
    );
    let of_host_path = of_host.display();
    let volumes = format!(
        "      - {{name: system, containerDisk: {{image: '{IMAGE}'}}}}\n\
         \x20     - {{name: data, hostDisk: {{path: {of_host_path}, type: Disk}}}}\n"
    );
    fs::write(&manifest, more(text, "      - name: cloudinitdisk\n        cloudInit", &volumes)).unwrap();
    Disks { manifest, images, of_image, of_host }
}

/// A shell function that finds the disk with a serial.
const FIND: &str =
    r#"disk() { for d in /sys/block/vd*; do [ "$(cat $d/serial)" = "$1" ] && echo /dev/${d##*/}; done; }; "#;

impl Disks {
    fn up(&self, node: &Node, name: &str) {
        node.up_as(name, &self.manifest, &["--images", self.images.to_str().unwrap()]);
        node.reach(name, ADDRESS);
    }
}

/// The first six bytes of both disks, as the guest sees them.
fn seen(node: &Node) -> String {
    node.in_guest(ADDRESS, &format!("{FIND} for s in system data; do head -c 6 $(disk $s); echo; done"))
}

#[test]
fn a_container_disk_lasts_as_long_as_the_instance_and_a_host_disk_for_ever() {
    let node = Node::new();
    let disks = with_disks(&node, "vm1");
    let before = node.before();
    disks.up(&node, "vm1");
    assert_eq!(seen(&node), "before\nbefore\n");
    let write =
        "for s in system data; do printf after_ | dd of=$(disk $s) conv=notrunc 2>/dev/null; done; sync";
    node.in_guest(ADDRESS, &format!("{FIND} {write}"));

    // Another VM must not write to the same disk.
    let second = with_disks(&node, "vm2");
    let images = disks.images.to_str().unwrap();
    let refused = output(&mut node.up_command(&second.manifest, &["--images", images]));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("disk data is used by another VM"), "{message}");

    let vmm = node.launcher.vmm("vm1");
    output(&mut node.key.login(&node.client, ADDRESS, "reboot"));
    e2e::eventually("another VMM", crate::vm_node::BOOT, || {
        node.launcher.vmm("vm1").filter(|now| Some(*now) != vmm)
    });
    node.reach("vm1", ADDRESS);
    assert_eq!(seen(&node), "after_\nafter_\n", "a reboot is the same instance");

    node.launcher.run("down", &["vm1"]);
    before.assert_unchanged();
    assert_eq!(&fs::read(&disks.of_image).unwrap()[..6], b"before", "an image is never written to");
    assert_eq!(&fs::read(&disks.of_host).unwrap()[..6], b"after_");
    disks.up(&node, "vm1");
    assert_eq!(seen(&node), "before\nafter_\n", "a new instance");
    node.launcher.run("down", &["vm1", "--now"]);
    before.assert_unchanged();
}
