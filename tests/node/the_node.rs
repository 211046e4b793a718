//! The node VM is a node: what the other promises stand on is there.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::{Namespace, Sandbox, output, sh};

/// The SR-IOV NIC's folder in /sys.
fn physical_function() -> PathBuf {
    let devices = fs::read_dir("/sys/bus/pci/devices").unwrap().map(|entry| entry.unwrap().path());
    let capable: Vec<PathBuf> = devices.filter(|device| device.join("sriov_totalvfs").exists()).collect();
    assert_eq!(capable.len(), 1, "one NIC with SR-IOV is expected: {capable:?}");
    capable.into_iter().next().unwrap()
}

#[test]
fn its_sr_iov_nic_gives_seven_virtual_functions() {
    let nic = physical_function();
    assert_eq!(fs::read_to_string(nic.join("sriov_totalvfs")).unwrap().trim(), "7");
    fs::write(nic.join("sriov_numvfs"), "7").unwrap();
    for number in 0..7 {
        let function = fs::canonicalize(nic.join(format!("virtfn{number}"))).unwrap();
        assert!(function.join("iommu_group").exists(), "VF {number} has an IOMMU group");
    }
    fs::write(nic.join("sriov_numvfs"), "0").unwrap();
}

#[test]
fn its_kernel_has_the_devices_guests_are_made_of() {
    for device in ["/dev/kvm", "/dev/vfio/vfio", "/dev/vhost-net", "/dev/net/tun"] {
        assert!(Path::new(device).exists(), "{device} is missing");
    }
}

#[test]
fn its_bridges_keep_vlans_apart() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 up type bridge vlan_filtering 1 vlan_default_pvid 0");
    let hosts = [("192.0.2.1", 100), ("192.0.2.2", 100), ("192.0.2.3", 200)].map(|(address, vlan)| {
        let host = Namespace::new("host");
        let port = format!("p{}", address.replace("192.0.2.", ""));
        sh(&format!("ip link add {port} type veth peer name eth0 netns {}", host.name()));
        sh(&format!("ip link set {port} up master br1"));
        sh(&format!("bridge vlan add dev {port} vid {vlan} pvid untagged"));
        host.sh(&format!("ip address add {address}/24 dev eth0"));
        host.sh("ip link set eth0 up");
        host
    });
    hosts[0].sh("ping -c 1 -W 10 192.0.2.2");
    let stray = output(hosts[0].command("ping").args(["-c", "1", "-W", "1", "192.0.2.3"]));
    assert_eq!(stray.status.code(), Some(1), "VLAN 200 answered VLAN 100");
}
