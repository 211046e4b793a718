//! ADD.
//!
//! Order matters for a crash: the alias that tells DEL what to put back is written first, and the dummy that keeps
//! the addresses is complete before the pod interface loses them.

use std::fs;

use cni::{Interface, Success};
use ipnetwork::IpNetwork;
use net_types::{IfName, Mac};
use netlink::{Link, NewBridge, PortFlag};
use tap::NewTap;

use super::config::Config;
use super::detach;
use super::error::VmTapError;
use super::names::Names;
use super::pod::{self, Mode, Pod};
use super::tc;

/// Makes the tap and adds it to what the chain has so far.
pub(super) fn add(config: &Config, pod: &Pod, mut result: Success) -> Result<Success, VmTapError> {
    let (names, nic) = pod.interface()?;
    let new = match config.mode {
        Mode::Bridge => vec![&names.bridge, &names.tap],
        Mode::Tc => vec![&names.tap],
    };
    for name in new.iter().copied().chain([&names.nic, &names.dummy]) {
        if pod.netlink.link_by_name(name.as_str())?.is_some() {
            return Err(VmTapError::NameTaken(name.clone()));
        }
    }
    let mac = nic.mac.ok_or_else(|| VmTapError::Vanished(names.pod.clone()))?;
    let built = match config.mode {
        Mode::Bridge => keep_identity(pod, &names, &nic, mac).and_then(|()| wire(config, pod, &names, &nic)),
        Mode::Tc => tc::add(config, pod, &names, &nic, mac),
    };
    if let Err(error) = built {
        if let Err(undo) = detach::del(pod) {
            tracing::error!("after a failed ADD, {} is not as it was: {undo}", names.pod);
        }
        return Err(error);
    }
    for name in new {
        let link = pod.link(name)?;
        result.interfaces.push(Interface {
            name: link.name,
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(link.mtu),
            sandbox: pod.sandbox.clone(),
            ..Interface::default()
        });
    }
    Ok(result)
}

/// The dummy takes name, address, MTU and IP addresses of the pod interface.
fn keep_identity(pod: &Pod, names: &Names, nic: &Link, mac: Mac) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    netlink.set_alias(nic.index, &pod::alias(&names.pod, mac, Mode::Bridge))?;
    cni::mutated("alias");
    netlink.create_dummy(&names.dummy, mac, nic.mtu)?;
    cni::mutated("dummy");
    let dummy = pod.link(&names.dummy)?;
    let addresses = own_addresses(pod, nic.index)?;
    for address in &addresses {
        netlink.add_sole_address(dummy.index, *address)?;
        cni::mutated("address kept");
    }
    netlink.set_down(nic.index)?;
    cni::mutated("pod interface down");
    for address in addresses {
        match netlink.delete_address(nic.index, address) {
            // Going down took the IPv6 ones.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
        cni::mutated("address taken");
    }
    netlink.set_name(nic.index, &names.nic)?;
    cni::mutated("pod interface renamed");
    netlink.set_name(dummy.index, &names.pod)?;
    cni::mutated("dummy renamed");
    Ok(())
}

/// Addresses somebody gave the interface, not those the kernel makes by itself.
pub(super) fn own_addresses(pod: &Pod, index: u32) -> Result<Vec<IpNetwork>, VmTapError> {
    let mut addresses = pod.netlink.addresses(index)?;
    addresses.retain(|address| !matches!(address, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local()));
    Ok(addresses)
}

/// Node ── NIC ── bridge ── tap.
fn wire(config: &Config, pod: &Pod, names: &Names, nic: &Link) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    let bridge = NewBridge {
        name: &names.bridge,
        mac: Some(random_mac()?),
        mtu: Some(nic.mtu),
        vlan_filtering: false,
        // There is one guest, and the bridge must not speak on its wire.
        multicast_snooping: false,
    };
    netlink.create_bridge(&bridge)?;
    cni::mutated("bridge");
    let bridge = pod.link(&names.bridge)?;
    // The guest has the address that was the NIC's, so the NIC must not answer to it.
    if let Some(mac) = bridge.mac {
        netlink.set_mac(nic.index, mac)?;
        cni::mutated("address of the NIC");
    }
    make_tap(config, pod, &names.tap)?;
    cni::mutated("tap");
    let tap = pod.link(&names.tap)?;
    netlink.set_mtu(tap.index, nic.mtu)?;
    cni::mutated("MTU of the tap");
    for name in [&names.nic, &names.bridge, &names.tap] {
        keep_silent(pod, name)?;
    }
    for port in [nic.index, tap.index] {
        netlink.set_master(port, Some(bridge.index))?;
        cni::mutated("bridge port");
    }
    // Only the guest is behind the tap: what comes from the node goes there without being learned.
    netlink.set_port_flag(nic.index, PortFlag::Learning, false)?;
    cni::mutated("learning off");
    for index in [bridge.index, tap.index, nic.index] {
        netlink.set_up(index)?;
        cni::mutated("link up");
    }
    Ok(())
}

pub(super) fn make_tap(config: &Config, pod: &Pod, name: &IfName) -> Result<(), VmTapError> {
    let Config { mode: _, owner, group, queues } = *config;
    let tap = NewTap { name: name.clone(), owner, group, multi_queue: queues > 1 };
    pod.namespace
        .run(|| tap::create(&tap))
        .map_err(VmTapError::Netns)?
        .map_err(|source| VmTapError::Tap { name: name.clone(), source })
}

/// The pod itself says nothing on the guest's wire: no IPv6 of its own, no ARP answers for its other addresses.
pub(super) fn keep_silent(pod: &Pod, link: &IfName) -> Result<(), VmTapError> {
    let settings = [
        (format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), true),
        (format!("/proc/sys/net/ipv4/conf/{link}/arp_ignore"), false),
    ];
    for (path, may_be_missing) in settings {
        match pod.namespace.run(|| fs::write(&path, "1")).map_err(VmTapError::Netns)? {
            // A kernel without IPv6 says none.
            Err(error) if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(VmTapError::Setting { path, source }),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// A locally administered unicast address.
fn random_mac() -> Result<Mac, VmTapError> {
    use std::io::Read as _;

    let mut octets = [0; 6];
    let path = "/dev/urandom";
    fs::File::open(path)
        .and_then(|mut source| source.read_exact(&mut octets))
        .map_err(|source| VmTapError::Setting { path: path.to_owned(), source })?;
    octets[0] = octets[0] & 0xfc | 0x02;
    Ok(Mac(octets))
}
