//! The node's SR-IOV NIC, set up for one test and put back after it. Tests run one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::{CniCall, eventually, output, run, sh};
use serde_json::{Value, json};

/// Where the plugin keeps its journal.
pub(crate) const JOURNAL: &str = "/var/lib/guestwire/sriov";
const LIMIT: Duration = Duration::from_secs(60);

/// The PF with some VFs.
#[derive(Debug)]
pub(crate) struct Nic {
    device: PathBuf,
    /// The PF's interface.
    pub(crate) link: String,
}

impl Nic {
    /// The NIC, up, without VFs and without a journal.
    pub(crate) fn bare() -> Self {
        let devices = fs::read_dir("/sys/bus/pci/devices").unwrap().map(|entry| entry.unwrap().path());
        let mut capable = devices.filter(|device| device.join("sriov_totalvfs").exists());
        let device = capable.next().expect("the node has an SR-IOV NIC");
        let link = name_in(&device.join("net")).expect("the PF has an interface");
        let nic = Self { device, link };
        nic.clear();
        sh(&format!("ip link set {} up", nic.link));
        eventually("the PF has a carrier", LIMIT, || {
            sh(&format!("ip link show {}", nic.link)).contains("LOWER_UP").then_some(())
        });
        nic
    }

    /// The NIC with `count` VFs, each with its network driver and interface.
    pub(crate) fn with_vfs(count: usize) -> Self {
        let nic = Self::bare();
        fs::write(nic.device.join("sriov_numvfs"), count.to_string()).unwrap();
        for index in 0..count {
            eventually("the VF has an interface", LIMIT, || nic.vf_link(index));
        }
        // udev renames interfaces that are new; a test that begins before sees two names.
        run(Command::new("udevadm").args(["settle", "--timeout=60"]));
        for index in 0..count {
            nic.introduce(index);
        }
        nic
    }

    /// Sees to it that the PF's driver knows a VF's address. The VF's tells it when it begins, but the message may be
    /// lost on a busy machine; it says so again when the interface goes down.
    fn introduce(&self, index: usize) {
        eventually("the PF knows the VF's address", LIMIT, || {
            if self.vf_info(index)["address"] != "00:00:00:00:00:00" {
                return Some(());
            }
            let name = self.vf_link(index)?;
            sh(&format!("ip link set {name} up"));
            sh(&format!("ip link set {name} down"));
            None
        });
    }

    fn clear(&self) {
        if let Err(reason) = self.remove_vfs() {
            panic!("{reason}");
        }
        let _absent = fs::remove_dir_all(JOURNAL);
    }

    /// Removes the VFs, by a process of its own: the kernel lets nobody go who removes a VF that a guest has, until the
    /// guest's VMM has ended.
    fn remove_vfs(&self) -> Result<(), String> {
        let file = self.device.join("sriov_numvfs");
        let mut writer = Command::new("sh")
            .args(["-c", "echo 0 > \"$0\""])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        match ended(&mut writer) {
            true => Ok(()),
            false => Err(format!("the VFs are not removed after {LIMIT:?}; in use by: {:?}", vfio_users())),
        }
    }

    /// The PF's PCI address.
    pub(crate) fn address(&self) -> String {
        self.device.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// A VF's PCI address.
    pub(crate) fn vf(&self, index: usize) -> String {
        let target = fs::read_link(self.device.join(format!("virtfn{index}"))).unwrap();
        target.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// The name of a VF's interface, while that is on the host.
    pub(crate) fn vf_link(&self, index: usize) -> Option<String> {
        name_in(&self.device.join(format!("virtfn{index}/net")))
    }

    /// The file of a VF's IOMMU group.
    pub(crate) fn group_file(&self, index: usize) -> PathBuf {
        let group = fs::read_link(format!("/sys/bus/pci/devices/{}/iommu_group", self.vf(index))).unwrap();
        Path::new("/dev/vfio").join(group.file_name().unwrap())
    }

    /// Gives a VF to vfio-pci.
    pub(crate) fn bind_vfio(&self, index: usize) {
        let address = self.vf(index);
        let device = Path::new("/sys/bus/pci/devices").join(&address);
        // The module's probing may still be under way, and unbind appears after it.
        let unbind = device.join("driver/unbind");
        eventually("the network driver is ready", LIMIT, || unbind.exists().then_some(()));
        fs::write(&unbind, &address).unwrap();
        fs::write(device.join("driver_override"), "vfio-pci").unwrap();
        fs::write("/sys/bus/pci/drivers_probe", &address).unwrap();
        fs::write(device.join("driver_override"), "\n").unwrap();
        let driver = fs::read_link(device.join("driver")).unwrap();
        assert!(driver.ends_with("vfio-pci"), "{}", driver.display());
    }

    /// All that the PF's driver and the host know of the VFs, one line each: attributes, and the interfaces' names,
    /// addresses, MTUs and states.
    pub(crate) fn state(&self) -> Vec<String> {
        let shown = sh(&format!("ip -details -json link show dev {}", self.link));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let vfs = shown[0]["vfinfo_list"].as_array().cloned().unwrap_or_default();
        let mut lines: Vec<String> = vfs.iter().map(ToString::to_string).collect();
        for index in 0..vfs.len() {
            let Some(name) = self.vf_link(index) else {
                lines.push(format!("VF {index} has no interface on the host"));
                continue;
            };
            let link = sh(&format!("ip -json link show dev {name}"));
            let link: Value = serde_json::from_str(&link).unwrap();
            let up = link[0]["flags"].as_array().unwrap().contains(&"UP".into());
            lines.push(format!("{name} {} {} up {up}", link[0]["address"], link[0]["mtu"]));
        }
        lines
    }

    /// What the PF's driver says of one VF.
    pub(crate) fn vf_info(&self, index: usize) -> Value {
        let shown = sh(&format!("ip -details -json link show dev {}", self.link));
        let shown: Value = serde_json::from_str(&shown).unwrap();
        shown[0]["vfinfo_list"][index].clone()
    }

    /// A call of the plugin for a VF, with these further keys.
    pub(crate) fn call(&self, index: usize, more: Value) -> CniCall {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "blue", "type": "sriov", "deviceID": self.vf(index),
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        CniCall::new("sriov", config)
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        // A test that panics must not panic again here; the next one starts by clearing too.
        if let Err(reason) = self.remove_vfs() {
            eprintln!("{reason}");
        }
        let _absent = fs::remove_dir_all(JOURNAL);
    }
}

/// Whether a process ends within the limit, with success.
fn ended(process: &mut Child) -> bool {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait().unwrap() {
            return status.success();
        }
        sleep(Duration::from_millis(20));
    }
    false
}

/// The processes that have a VFIO device: process ids and names.
fn vfio_users() -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let has_one = |process: &PathBuf| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_string_lossy().contains("vfio-device"))
    };
    let name = |process: PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        format!("{} {}", process.file_name().unwrap().to_string_lossy(), name.trim())
    };
    processes.filter(has_one).map(name).collect()
}

/// True if `to` answers.
pub(crate) fn pings(from: &e2e::Namespace, to: &str) -> bool {
    output(from.command("ping").args(["-c", "1", "-W", "5", to])).status.success()
}

/// Waits for the carrier of `net1`.
pub(crate) fn has_carrier(pod: &e2e::Namespace) {
    eventually("net1 has a carrier", LIMIT, || {
        pod.sh("ip link show net1").contains("LOWER_UP").then_some(())
    });
}

fn name_in(folder: &Path) -> Option<String> {
    let entry = fs::read_dir(folder).ok()?.flatten().next()?;
    Some(entry.file_name().to_str()?.to_owned())
}
