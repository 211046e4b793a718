//! A VF in a guest: the guest's own driver runs it, with the address and in the VLAN that the node assigned.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use e2e::{GuestImage, Launcher, Namespace, SshKey, eventually, example, output};
use launcher::control::{self, Event, HostFunction, Passthrough, Place, exit_code};
use launcher::vfio;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::a_vmm_boots_linux::{Guest, Wish, disk, noise, tcp_both_ways};
use crate::sriov_nic::{Nic, has_carrier, pings};

/// Guests are emulated twice over here.
pub(crate) const BOOT: Duration = Duration::from_secs(150);

/// A pod on VF `index` in `vlan`, with this address.
pub(crate) fn pod(nic: &Nic, index: usize, vlan: u16, address: &str) -> (Namespace, e2e::CniCall) {
    let pod = Namespace::new("pod");
    let call = nic.call(index, json!({"vlan": vlan})).netns(&pod).container(&format!("pod{index}"));
    call.call("ADD").success();
    pod.sh(&format!("ip address add {address} dev net1"));
    has_carrier(&pod);
    (pod, call)
}

#[test]
fn a_guest_drives_a_vf_by_itself_and_stays_in_its_vlan() {
    let nic = Nic::with_vfs(3);
    nic.bind_vfio(0);
    let before = nic.state();
    let near = pod(&nic, 1, 100, "192.0.2.2/24");
    let far = pod(&nic, 2, 200, "192.0.2.3/24");
    let vm = Namespace::new("vm");
    let call = nic.call(0, json!({"vlan": 100, "mac": "02:00:00:00:00:01"})).netns(&vm).container("vm");
    call.call("ADD").success();

    // Beside it two devices that share a group.
    let pci = Path::new("/sys/bus/pci");
    let partners = sharing();
    let _bound = [Bound::to_vfio(pci, &partners[0]), Bound::to_vfio(pci, &partners[1])];
    let addresses = [&nic.vf(0), &partners[0], &partners[1]].map(|address| address.parse().unwrap());
    let vfio::Opened { container, devices } = vfio::open(&addresses).unwrap();
    let functions = devices.into_iter().zip(addresses).enumerate();
    let functions = functions
        .map(|(place, (vfio::OpenedDevice { group, device }, address))| HostFunction {
            address,
            group,
            device,
            place,
        })
        .collect();
    let passthrough = Some(Passthrough { container, functions });
    let content = noise(4 << 20);
    let disks = vec![disk(&content, true, "content").0];
    let places = [10, 11, 12].map(|slot| Place { slot: Some(slot.try_into().unwrap()) }).to_vec();
    let wish = Wish { vcpus: 1, mebibytes: 256, disks, places, passthrough, ..Wish::default() };
    let mut guest = Guest::boot(wish);
    assert_eq!(guest.run("cat /sys/class/net/eth0/address"), "02:00:00:00:00:01\n");
    let place = guest.run("cd /sys/class/net/eth0/device; readlink -f .; readlink -f driver");
    assert!(place.contains("0000:00:0a.0") && place.contains("igbvf"), "{place}");
    let both = guest.run("cd /sys/bus/pci/devices; cat 0000:00:0b.0/vendor 0000:00:0c.0/vendor");
    assert_eq!(both, "0x1af4\n0x1af4\n", "both devices of a group");
    guest.run("ip address add 192.0.2.1/24 dev eth0; ip link set eth0 up");
    assert!(
        pings(&near.0, "192.0.2.1"),
        "one VLAN; guest: {}",
        guest.run("ip -s link; cat /proc/interrupts; dmesg | tail")
    );
    assert!(!pings(&far.0, "192.0.2.1"), "VLAN 200 reached the guest in VLAN 100");
    let answer = guest.run(
        "ping -c 1 -W 5 192.0.2.2 >/dev/null && echo near; ping -c 1 -W 5 192.0.2.3 >/dev/null || echo alone",
    );
    assert_eq!(answer, "near\nalone\n");
    let full_size = "ping -c 3 -W 5 -s 1472 192.0.2.2 >/dev/null && echo all";
    assert_eq!(guest.run(full_size), "all\n", "frames of 1514 bytes");
    tcp_both_ways(&mut guest, &content, near.0.netns(), "192.0.2.2", "192.0.2.1");
    // Without interrupts the driver would work for a while by its watchdog alone.
    let interrupts = guest.run("grep eth0 /proc/interrupts");
    assert!(interrupts.contains("MSI-X") || interrupts.contains("MSIX"), "{interrupts}");

    guest.channel.send_command(&control::Command::PowerButton).unwrap();
    assert_eq!(guest.end(), (Event::Shutdown, Some(exit_code::CLEAN.into())));
    for call in [&call, &near.1, &far.1] {
        call.call("DEL").success();
    }
    assert_eq!(nic.state(), before);
}

/// `up` of the example, with these VFs to choose from.
pub(crate) fn up(launcher: &Launcher, folder: &Path, key: &SshKey, devices: &[String]) -> Output {
    output(&mut up_command(launcher, folder, key, devices))
}

pub(crate) fn up_command(launcher: &Launcher, folder: &Path, key: &SshKey, devices: &[String]) -> Command {
    let image = GuestImage::with_nic_drivers();
    let mut command = launcher.command("up", &[]);
    let manifest = example("vm-sriov.yaml", key, folder);
    let text = fs::read_to_string(&manifest).unwrap();
    // Shown on the console, by a guest that nobody has to log in to.
    let told = "runcmd:\n            - cd /sys/class/net/eth0; cat address; readlink -f device; readlink -f device/driver";
    let hostname = "hostname: vm-sriov";
    fs::write(&manifest, text.replace(hostname, &format!("{hostname}\n            {told}"))).unwrap();
    command.arg("--file").arg(manifest);
    command.arg("--kernel").arg(image.kernel).arg("--initrd").arg(image.initrd);
    command.arg("--device-pool").arg(format!("openshift.io/nics={}", devices.join(",")));
    command
}

/// If the test fails, shows what its VM had to say and ends it: VFs that a guest has cannot be removed.
pub(crate) struct Story<'a>(pub(crate) &'a Launcher);

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.story());
            let _down = output(&mut self.0.command("down", &["vm-sriov", "--now"]));
        }
    }
}

/// What an unprivileged VMM has: its identity, its capabilities, and the files of `/dev` that it holds.
fn rights(vmm: i32) -> (String, Vec<String>) {
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let lines = status.lines().filter(|line| line.starts_with("CapEff") || line.starts_with("CapPrm"));
    let files = fs::read_dir(format!("/proc/{vmm}/fd")).unwrap().flatten();
    let files = files.filter_map(|file| fs::read_link(file.path()).ok());
    let mut vfio: Vec<String> =
        files.map(|file| file.display().to_string()).filter(|file| file.starts_with("/dev/vfio")).collect();
    vfio.sort();
    (lines.collect::<Vec<_>>().join(" "), vfio)
}

#[test]
fn a_vm_of_a_manifest_has_a_free_vf_and_gives_it_back() {
    let nic = Nic::with_vfs(4);
    nic.bind_vfio(0);
    nic.bind_vfio(1);
    let before = nic.state();
    let near = pod(&nic, 2, 100, "192.0.2.2/24");
    let far = pod(&nic, 3, 200, "192.0.2.3/24");
    let other = Namespace::new("other");
    let taken = nic.call(0, json!({})).netns(&other).container("other");
    taken.call("ADD").success();

    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let _story = Story(&launcher);
    let key = SshKey::generate(folder.path());
    let refused = up(&launcher, folder.path(), &key, &[nic.vf(0)]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("others have all of its network's devices"), "{message}");

    let started = up(&launcher, folder.path(), &key, &[nic.vf(0), nic.vf(1)]);
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let ready = |times: usize| {
        let shown = launcher.console("vm-sriov");
        (shown.matches("guest ready: vm-sriov").count() >= times).then_some(shown)
    };
    let shown = eventually("the guest is ready", BOOT, || ready(1));
    for expected in ["02:00:00:00:00:01\r\n", "/0000:00:0c.0\r\n", "/drivers/igbvf\r\n"] {
        assert!(shown.contains(expected), "{shown}");
    }
    assert!(pings(&near.0, "192.0.2.1"), "one VLAN");
    assert!(!pings(&far.0, "192.0.2.1"), "VLAN 200 reached the guest in VLAN 100");
    assert_eq!(nic.vf_info(1)["vlan_list"], json!([{"vlan": 100}]));

    let vmm = launcher.vmm("vm-sriov").unwrap();
    let (capabilities, files) = rights(vmm);
    assert_eq!(capabilities, "CapPrm:\t0000000000000000 CapEff:\t0000000000000000");
    // Its group, and the container; what it may ask of them, its seccomp filter says.
    assert_eq!(files, [nic.group_file(1).display().to_string(), "/dev/vfio/vfio".to_owned()]);

    // The VF is in full use when its VMM dies; the next one's guest finds it fresh.
    kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();
    eventually("the next guest is ready", BOOT, || ready(2));
    assert!(pings(&near.0, "192.0.2.1"), "after a restart");

    launcher.run("down", &["vm-sriov"]);
    for call in [&taken, &near.1, &far.1] {
        call.call("DEL").success();
    }
    assert_eq!(nic.state(), before);
}

/// What `up` says when the program `by` runs it with fewer rights; nothing may be left of it.
fn refusal(nic: &Nic, by: &[&str]) -> String {
    let before = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let key = SshKey::generate(folder.path());
    let full = up_command(&launcher, folder.path(), &key, &[nic.vf(0)]);
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(full.get_program()).args(full.get_args());
    let refused = output(&mut command);
    assert!(!refused.status.success());
    assert_eq!(nic.state(), before);
    String::from_utf8_lossy(&refused.stderr).into_owned()
}

#[test]
fn a_limit_on_locked_memory_that_is_too_low_is_told_with_what_to_do() {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    // As in a container: no right to raise limits, and one of 4 MiB.
    let limited = ["sh", "-c", "ulimit -l 4096; exec \"$@\"", "sh"];
    let message = refusal(&nic, &[&["setpriv", "--bounding-set", "-sys_resource"], &limited[..]].concat());
    let expected =
        "256 MiB of guest memory must be locked for its PCI devices, and this process may lock 4 MiB";
    assert!(message.contains(expected) && message.contains("CAP_SYS_RESOURCE"), "{message}");
}

#[test]
fn a_group_that_may_not_be_opened_is_told_with_what_to_do() {
    let nic = Nic::with_vfs(1);
    nic.bind_vfio(0);
    let file = nic.group_file(0);
    // As udev leaves it to a group of users, and the launcher in a container without the right to override that.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o060)).unwrap();
    let message = refusal(&nic, &["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]);
    let expected = format!("cannot open {}; vm-launcher must run as root, or own the file", file.display());
    assert!(message.contains(&expected), "{message}");
}

#[test]
fn a_group_with_a_device_of_the_nodes_is_refused_until_one_guest_has_them_all() {
    let [first, second] = sharing();
    let pci = Path::new("/sys/bus/pci");
    let _first = Bound::to_vfio(pci, &first);
    let addresses = [&first, &second].map(|address| address.parse().unwrap());
    let message = vfio::open(&addresses[..1]).unwrap_err().to_string();
    let expected =
        format!("with {second} (driven by virtio-pci); only whole groups can be handed to a guest");
    assert!(message.contains(&expected), "{message}");
    let message = vfio::open(&addresses).unwrap_err().to_string();
    assert!(message.contains(&format!("{second} is driven by virtio-pci")), "{message}");

    let _second = Bound::to_vfio(pci, &second);
    let message = vfio::open(&addresses[..1]).unwrap_err().to_string();
    assert!(message.contains(&format!("with {second} (driven by vfio-pci)")), "{message}");
    assert_eq!(vfio::open(&addresses).unwrap().devices.len(), 2);
}

/// Two devices of the node that the IOMMU cannot keep apart: they are behind one conventional PCI bridge.
fn sharing() -> [String; 2] {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let groups = Path::new("/sys/kernel/iommu_groups");
    let is_bridge = |device: &String| {
        fs::read_to_string(format!("/sys/bus/pci/devices/{device}/class")).unwrap().starts_with("0x06")
    };
    let of_group = |group: String| -> Vec<String> {
        let devices = names(&groups.join(group).join("devices"));
        let behind_bridge = devices.iter().any(is_bridge);
        devices.into_iter().filter(|device| behind_bridge && !is_bridge(device)).collect()
    };
    let found = names(groups).into_iter().find_map(|group| of_group(group).try_into().ok());
    found.expect("the node has two devices behind a conventional bridge")
}

/// A device that vfio-pci has until this is dropped; then its own driver has it again.
struct Bound<'a> {
    pci: &'a Path,
    address: &'a str,
}

impl<'a> Bound<'a> {
    fn to_vfio(pci: &'a Path, address: &'a str) -> Self {
        rebind(pci, address, "vfio-pci");
        Self { pci, address }
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        rebind(self.pci, self.address, "virtio-pci");
    }
}

fn rebind(pci: &Path, address: &str, driver: &str) {
    let device = pci.join("devices").join(address);
    fs::write(device.join("driver/unbind"), address).unwrap();
    fs::write(device.join("driver_override"), driver).unwrap();
    fs::write(pci.join("drivers_probe"), address).unwrap();
    fs::write(device.join("driver_override"), "\n").unwrap();
}

#[test]
fn a_vf_of_another_driver_is_refused_and_nothing_is_left() {
    let nic = Nic::with_vfs(1);
    let before = nic.state();
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let key = SshKey::generate(folder.path());
    let refused = up(&launcher, folder.path(), &key, &[nic.vf(0)]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    let expected = format!("PCI device {} is driven by igbvf; give it to vfio-pci first", nic.vf(0));
    assert!(!refused.status.success() && message.contains(&expected), "{message}");
    assert_eq!(nic.state(), before);
}
