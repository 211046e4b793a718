//! `tc` mode: what comes in by the pod interface leaves by the tap, and the other way round.
//!
//! The pod interface stays as it is, with name, hardware address and IP addresses; the pod itself hears nothing by it
//! any more, and without IPv6 addresses or routes to keep it does not speak IPv6 there either.

use net_types::Mac;
use netlink::Link;

use super::attach::make_tap;
use super::before::{Before, Settings};
use super::config::Config;
use super::error::VmTapError;
use super::names::Names;
use super::pod::{Mode, Pod, alias};
use crate::compare::{expect, index};

/// An interface has one ingress queueing discipline; somebody else's is left alone.
pub(super) fn refuse_ingress(pod: &Pod, names: &Names, nic: &Link) -> Result<(), VmTapError> {
    if pod.netlink.has_ingress(nic.index)? {
        return Err(VmTapError::HasIngress(names.pod.clone()));
    }
    Ok(())
}

/// Makes the tap and redirects.
pub(super) fn add(
    config: &Config,
    pod: &Pod,
    names: &Names,
    nic: &Link,
    mac: Mac,
    before: &Before,
) -> Result<(), VmTapError> {
    let netlink = &pod.netlink;
    netlink.set_alias(nic.index, &alias(&names.pod, mac, Mode::Tc))?;
    cni::mutated("alias");
    make_tap(config, pod, &names.tap)?;
    cni::mutated("tap");
    let tap = pod.link(&names.tap)?;
    netlink.set_mtu(tap.index, nic.mtu)?;
    cni::mutated("MTU of the tap");
    Settings::silent().write(pod, &names.tap)?;
    // Switching IPv6 off takes its addresses and routes, and then nobody could tell the guest.
    if !before.has_ipv6(nic.index) {
        Settings::silent().write(pod, &names.pod)?;
        cni::mutated("silence");
    }
    for (from, to) in [(tap.index, nic.index), (nic.index, tap.index)] {
        netlink.add_redirect(from, to)?;
        cni::mutated("redirection");
    }
    for index in [tap.index, nic.index] {
        netlink.set_up(index)?;
        cni::mutated("link up");
    }
    Ok(())
}

/// Ends the redirection of the pod interface; the tap's goes with the tap.
pub(super) fn end(pod: &Pod, nic: &Link) -> Result<(), VmTapError> {
    // Only ours can be there: ADD refuses an interface that has one.
    if pod.netlink.has_ingress(nic.index)? {
        pod.netlink.delete_redirect(nic.index)?;
        cni::mutated("redirection ended");
    }
    Ok(())
}

/// Compares with what [`add`] made.
pub(super) fn check(pod: &Pod, nic: &Link, tap: &Link) -> Result<(), VmTapError> {
    for (from, to) in [(tap, nic), (nic, tap)] {
        let found = index(pod.netlink.redirect(from.index)?);
        expect(&format!("redirection of {}", from.name), found, index(Some(to.index)))?;
    }
    Ok(())
}
