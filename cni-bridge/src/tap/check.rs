//! CHECK and STATUS.

use std::fs;

use net_types::{IfName, Mac};
use netlink::Link;

use super::config::Config;
use super::error::VmTapError;
use super::pod::{Mode, Pod, Wired};
use super::tc;
use crate::compare::{difference, expect, index, state};

/// Compares the tap and what leads to it with what ADD made; fails with the first difference.
pub(super) fn check(config: &Config, pod: &Pod) -> Result<(), VmTapError> {
    let Some(wired) = pod.wired()? else {
        return Err(difference("the pod interface", "not turned into a tap", "turned into one").into());
    };
    let tap = present(pod, &wired.names.tap)?;
    let pod_interface = present(pod, &wired.names.pod)?;
    expect(&format!("mode of {}", wired.names.tap), wired.mode, config.mode)?;
    let (mac, found) = (wired.mac, pod_interface.mac.unwrap_or(Mac::ZERO));
    expect(&format!("address of {}", wired.names.pod), found, mac)?;
    for link in [&wired.nic, &tap] {
        expect(&format!("MTU of {}", link.name), link.mtu, pod_interface.mtu)?;
        expect(&format!("state of {}", link.name), state(link.up), state(true))?;
    }
    match wired.mode {
        Mode::Bridge => check_bridge(pod, &wired, &tap, &pod_interface)?,
        Mode::Tc => tc::check(pod, &wired.nic, &tap)?,
    }
    Ok(expect(&format!("owner of {}", wired.names.tap), user(tap.tap_owner), user(config.owner))?)
}

fn check_bridge(pod: &Pod, wired: &Wired, tap: &Link, dummy: &Link) -> Result<(), VmTapError> {
    let Wired { names, nic, mac: _, mode: _ } = wired;
    let bridge = present(pod, &names.bridge)?;
    expect(&format!("name of {}", names.pod), nic.name.as_str(), names.nic.as_str())?;
    expect(&format!("kind of {}", names.pod), dummy.kind.as_str(), "dummy")?;
    for port in [nic, tap] {
        expect(&format!("master of {}", port.name), index(port.master), index(Some(bridge.index)))?;
    }
    expect(&format!("state of {}", bridge.name), state(bridge.up), state(true))?;
    let learning = nic.port.is_some_and(|port| port.learning);
    Ok(expect(&format!("learning on {}", nic.name), learning, false)?)
}

fn present(pod: &Pod, name: &IfName) -> Result<Link, VmTapError> {
    let link = pod.netlink.link_by_name(name.as_str())?;
    link.ok_or_else(|| difference(name, "absent", "present").into())
}

fn user(id: Option<u32>) -> String {
    id.map_or_else(|| "nobody".to_owned(), |id| format!("user {id}"))
}

/// An ADD could work now: there are taps in this kernel, and we may make one.
pub(super) fn status() -> Result<(), VmTapError> {
    let device = "/dev/net/tun";
    let opened = fs::OpenOptions::new().read(true).write(true).open(device);
    opened.map(drop).map_err(|source| VmTapError::Setting { path: device.to_owned(), source })
}
