//! A NIC on a bridge whose network gave it addresses: its guest is told them.
//!
//! The pod has them no more, and nobody else on that wire knows whose they are. The server is on the tap, the guest's own
//! wire: it hears the guest alone, answers it alone, and is heard by nobody behind the pod's interface, whichever way
//! `vm-tap` joined the two. A NIC without addresses has no server, since its network may have one of its own.
//!
//! What the guest then uses is observed, like any other guest's.

use guest_dhcp::{Guest, GuestError};
use net_types::IfName;
use netlink::Netlink;
use netns::NetNs;
use vm_api::manifest::Binding;

use super::teller::{Teller, extra, resolver};
use crate::vm::plan::PlannedNic;
use crate::vm::record::{Record, ToGuest, Wired};

/// Why a guest on a bridge cannot be told its addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgedError {
    #[error("interface {interface}")]
    Netlink { interface: String, source: netlink::Error },
    #[error("interface {interface}: the pod has no tap {tap}")]
    NoTap { interface: String, tap: IfName },
    #[error("interface {interface}: what its network gave it for its guest")]
    Guest { interface: String, source: GuestError },
}

/// What tells the guests of those NICs in `record` that have addresses. To be called outside the event loop: it waits for
/// the kernel.
pub(super) fn tellers(record: &Record, netns: &NetNs) -> Result<Vec<Teller>, BridgedError> {
    let nics = record.plan.nics.iter().zip(&record.nics);
    nics.filter_map(|(nic, wired)| match (&nic.binding, &wired.to_guest) {
        (Binding::Bridge(_), ToGuest::Tap { tap, mtu }) if !wired.given.is_empty() => {
            Some(teller(nic, wired, tap, u16::from(*mtu), &record.plan.hostname, netns))
        }
        _ => None,
    })
    .collect()
}

fn teller(
    nic: &PlannedNic,
    wired: &Wired,
    tap: &IfName,
    mtu: u16,
    host_name: &str,
    netns: &NetNs,
) -> Result<Teller, BridgedError> {
    let interface = || nic.name.clone();
    let link = Netlink::open_in(netns)
        .and_then(|netlink| netlink.link_by_name(tap.as_str()))
        .map_err(|source| BridgedError::Netlink { interface: interface(), source })?;
    let server_mac = link
        .and_then(|link| link.mac)
        .ok_or_else(|| BridgedError::NoTap { interface: interface(), tap: tap.clone() })?;
    for untold in wired.given.untold() {
        tracing::warn!(interface = nic.name, "the guest is not told {untold}");
    }
    let guest = Guest {
        mac: wired.mac,
        server_mac,
        mtu: Some(mtu),
        host_name: Some(host_name.to_owned()),
        resolver: resolver(&nic.name, &wired.resolv_conf),
        v4: wired.given.v4(extra(&nic.dhcp)),
        v6: wired.given.v6(server_mac),
    };
    Teller::new(tap.clone(), guest).map_err(|source| BridgedError::Guest { interface: interface(), source })
}
