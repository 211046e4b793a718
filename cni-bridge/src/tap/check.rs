//! CHECK and STATUS.

use std::fs;

use net_types::{IfName, Mac};
use netlink::Link;

use super::attach::own_addresses;
use super::before::{self, Before, Record, Settings};
use super::config::Config;
use super::error::VmTapError;
use super::pod::{Mode, Pod, Wired};
use super::tc;
use crate::compare::{difference, expect, index, state};

/// Compares the tap and what leads to it with what ADD made; fails with the first difference.
pub(super) fn check(config: &Config, pod: &Pod, record: Record<'_>) -> Result<(), VmTapError> {
    let Some(wired) = pod.wired()? else {
        return Err(difference("the pod interface", "not turned into a tap", "turned into one").into());
    };
    let before = record.read()?;
    let tap = present(pod, &wired.names.tap)?;
    let pod_interface = present(pod, &wired.names.pod)?;
    expect(&format!("mode of {}", wired.names.tap), wired.mode, config.mode)?;
    let (mac, found) = (wired.mac, pod_interface.mac.unwrap_or(Mac::ZERO));
    expect(&format!("address of {}", wired.names.pod), found, mac)?;
    for link in [&wired.nic, &tap] {
        expect(&format!("MTU of {}", link.name), link.mtu, pod_interface.mtu)?;
        expect(&format!("state of {}", link.name), state(link.up), state(true))?;
    }
    check_tap(config, &tap)?;
    check_silence(pod, &wired.names.tap)?;
    match wired.mode {
        Mode::Bridge => check_bridge(pod, &wired, &tap, &pod_interface)?,
        Mode::Tc => tc::check(pod, &wired.nic, &tap)?,
    }
    // Without the file an earlier release made it.
    before.map_or(Ok(()), |before| check_kept(pod, &wired, &pod_interface, &before))
}

fn check_tap(config: &Config, tap: &Link) -> Result<(), VmTapError> {
    let Config { mode: _, owner, group, queues } = *config;
    let name = &tap.name;
    let found = tap.tap.ok_or_else(|| difference(format!("kind of {name}"), &tap.kind, "tun"))?;
    let netlink::TapInfo { owner: found_owner, group: found_group, persistent, multi_queue } = found;
    expect(&format!("owner of {name}"), id("user", found_owner), id("user", owner))?;
    expect(&format!("group of {name}"), id("group", found_group), id("group", group))?;
    let several = |more: bool| if more { "more than one" } else { "one" };
    expect(&format!("queues of {name}"), several(multi_queue), several(queues > 1))?;
    Ok(expect(&format!("persistence of {name}"), persistent, true)?)
}

fn check_bridge(pod: &Pod, wired: &Wired, tap: &Link, dummy: &Link) -> Result<(), VmTapError> {
    let Wired { names, nic, mac: _, mode: _ } = wired;
    let bridge = present(pod, &names.bridge)?;
    expect(&format!("name of {}", names.pod), nic.name.as_str(), names.nic.as_str())?;
    expect(&format!("kind of {}", names.pod), dummy.kind.as_str(), "dummy")?;
    expect(&format!("kind of {}", names.bridge), bridge.kind.as_str(), "bridge")?;
    for port in [nic, tap] {
        expect(&format!("master of {}", port.name), index(port.master), index(Some(bridge.index)))?;
    }
    expect(&format!("state of {}", bridge.name), state(bridge.up), state(true))?;
    expect(&format!("MTU of {}", bridge.name), bridge.mtu, dummy.mtu)?;
    let snooping = bridge.bridge.is_some_and(|bridge| bridge.multicast_snooping);
    expect(&format!("multicast snooping of {}", bridge.name), snooping, false)?;
    let [found, wanted] = [nic, &bridge].map(|link| link.mac.unwrap_or(Mac::ZERO));
    expect(&format!("address of {}", nic.name), found, wanted)?;
    let learning = nic.port.is_some_and(|port| port.learning);
    expect(&format!("learning on {}", nic.name), learning, false)?;
    for name in [&names.nic, &names.bridge] {
        check_silence(pod, name)?;
    }
    // Else the pod, not the guest, would answer for it.
    match own_addresses(pod, nic.index)?.first() {
        Some(address) => {
            Err(difference(format!("address {address} of {}", nic.name), "present", "absent").into())
        }
        None => Ok(()),
    }
}

/// The pod says nothing on the guest's wire by this link.
fn check_silence(pod: &Pod, link: &IfName) -> Result<(), VmTapError> {
    let Settings { disable_ipv6, arp_ignore } = Settings::read(pod, link)?;
    if let Some(found) = disable_ipv6 {
        expect(&format!("disable_ipv6 of {link}"), found.as_str(), "1")?;
    }
    Ok(expect(&format!("arp_ignore of {link}"), arp_ignore.as_str(), "1")?)
}

/// Who asks the pod what the interface was, or tells the guest, finds all its addresses.
fn check_kept(pod: &Pod, wired: &Wired, shown: &Link, before: &Before) -> Result<(), VmTapError> {
    let found = own_addresses(pod, shown.index)?;
    for address in before.networks() {
        if !found.contains(&address) {
            return Err(
                difference(format!("address {address} of {}", shown.name), "absent", "present").into()
            );
        }
    }
    if wired.mode == Mode::Tc && !before.has_ipv6(wired.nic.index) {
        check_silence(pod, &wired.names.pod)?;
    }
    Ok(())
}

fn present(pod: &Pod, name: &IfName) -> Result<Link, VmTapError> {
    let link = pod.netlink.link_by_name(name.as_str())?;
    link.ok_or_else(|| difference(name, "absent", "present").into())
}

fn id(kind: &str, id: Option<u32>) -> String {
    id.map_or_else(|| "nobody".to_owned(), |id| format!("{kind} {id}"))
}

/// An ADD could work now: there are taps in this kernel, we may make one, and can write down what the interface was.
pub(super) fn status() -> Result<(), VmTapError> {
    let device = "/dev/net/tun";
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    opened.map_err(|source| VmTapError::Setting { path: device.to_owned(), source })?;
    before::try_out()
}
