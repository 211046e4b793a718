//! CHECK and STATUS.

use std::fs;

use net_types::{IfName, Mac};

use super::config::Config;
use super::error::VmTapError;
use super::pod::{Pod, Wired};
use crate::compare::{difference, expect, index, state};

/// Compares the tap and what leads to it with what ADD made; fails with the first difference.
pub(super) fn check(config: &Config, pod: &Pod) -> Result<(), VmTapError> {
    let Some(Wired { names, nic, mac }) = pod.wired()? else {
        return Err(difference("the pod interface", "not turned into a tap", "turned into one").into());
    };
    let bridge = present(pod, &names.bridge)?;
    let tap = present(pod, &names.tap)?;
    let dummy = present(pod, &names.pod)?;
    expect(&format!("name of {}", names.pod), nic.name.as_str(), names.nic.as_str())?;
    expect(&format!("kind of {}", names.pod), dummy.kind.as_str(), "dummy")?;
    expect(&format!("address of {}", names.pod), dummy.mac.unwrap_or(Mac::ZERO), mac)?;
    for port in [&nic, &tap] {
        expect(&format!("master of {}", port.name), index(port.master), index(Some(bridge.index)))?;
        expect(&format!("MTU of {}", port.name), port.mtu, dummy.mtu)?;
    }
    for link in [&nic, &bridge, &tap] {
        expect(&format!("state of {}", link.name), state(link.up), state(true))?;
    }
    let learning = nic.port.is_some_and(|port| port.learning);
    expect(&format!("learning on {}", nic.name), learning, false)?;
    Ok(expect(&format!("owner of {}", names.tap), user(tap.tap_owner), user(config.owner))?)
}

fn present(pod: &Pod, name: &IfName) -> Result<netlink::Link, VmTapError> {
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
