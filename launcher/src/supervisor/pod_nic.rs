//! A NIC on the pod network: its guest is told its addresses, and its status shows the pod's.
//!
//! Behind `masquerade` a guest has private addresses that mean nothing to anybody else, so what its NIC is known by are
//! the pod's own, read from the pod's interface whenever they change. The guest's are told by DHCPv4, DHCPv6 and router
//! advertisements on the bridge, to its MAC alone ([`super::teller`]).
//!
//! [`PodNic::find`] looks at what the plugin made, once, before the event loop starts; [`PodNic::watch`] runs beside every
//! run of the guest.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use guest_dhcp::{GatewayError, Guest, GuestError, KUBEVIRT_LEASE};
use ipnet::IpNet;
use ipnetwork::IpNetwork;
use net_types::{IfName, IfNameError};
use netlink::{Events, Netlink};
use netns::{NetNs, NetNsError};
use tokio::sync::mpsc;
use tokio::time::sleep;
use vm_api::manifest::Binding;

use super::teller::{Teller, extra, resolver};
use crate::ready::Ready;
use crate::vm::plan::PlannedNic;
use crate::vm::record::{Record, Wired};

/// Addresses of the pod are looked at again at most this often.
const ADDRESS_PACE: Duration = Duration::from_millis(200);

/// One such NIC.
#[derive(Debug)]
pub(super) struct PodNic {
    /// Its place among the VM's NICs.
    index: usize,
    netns: PathBuf,
    pod_interface: IfName,
    /// What tells its guest.
    pub(super) teller: Teller,
}

/// Why a guest on the pod network cannot be told its addresses, or its pod's are not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodNicError {
    #[error("interface {interface}")]
    Name { interface: String, source: IfNameError },
    #[error("interface {interface}")]
    Netlink { interface: String, source: netlink::Error },
    #[error("interface {interface}: the pod has no link {link}")]
    NoLink { interface: String, link: IfName },
    #[error("interface {interface}: {bridge} is no guest's gateway")]
    NotAGateway { interface: String, bridge: IfName, source: GatewayError },
    #[error("interface {interface}: what its guest is to be told")]
    Guest { interface: String, source: GuestError },
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("cannot wait for changes of the pod's addresses")]
    Wait(#[source] io::Error),
    #[error("cannot read the pod's addresses")]
    Addresses(#[source] netlink::Error),
}

impl PodNic {
    /// The NICs on the pod network in `record`, with what the plugin made of them in `netns`. To be called outside the
    /// event loop: it waits for the kernel.
    pub(super) fn find(record: &Record, netns: &NetNs) -> Result<Vec<Self>, PodNicError> {
        let nics = record.plan.nics.iter().zip(&record.nics).enumerate();
        nics.filter_map(|(index, (nic, wired))| match &nic.binding {
            Binding::Masquerade(_) => Some(Self::look_at(index, nic, wired, &record.plan.hostname, netns)),
            Binding::Bridge(_) | Binding::Sriov(_) | Binding::VhostUser(_) => None,
        })
        .collect()
    }

    fn look_at(
        index: usize,
        nic: &PlannedNic,
        wired: &Wired,
        host_name: &str,
        netns: &NetNs,
    ) -> Result<Self, PodNicError> {
        let interface = || nic.name.clone();
        let bridge =
            nic.names().map_err(|source| PodNicError::Name { interface: interface(), source })?.bridge;
        let failed = |source| PodNicError::Netlink { interface: interface(), source };
        let netlink = Netlink::open_in(netns).map_err(failed)?;
        let no_link = || PodNicError::NoLink { interface: interface(), link: bridge.clone() };
        let link = netlink.link_by_name(bridge.as_str()).map_err(failed)?.ok_or_else(no_link)?;
        let addresses = netlink.addresses(link.index).map_err(failed)?;
        let addresses: Vec<_> =
            addresses.iter().filter_map(|own| IpNet::new(own.ip(), own.prefix()).ok()).collect();
        let (v4, v6) =
            guest_dhcp::behind(&addresses, KUBEVIRT_LEASE, extra(&nic.dhcp)).map_err(|source| {
                PodNicError::NotAGateway { interface: interface(), bridge: bridge.clone(), source }
            })?;
        let guest = Guest {
            mac: wired.mac,
            server_mac: link.mac.ok_or_else(no_link)?,
            // No option carries more; no tap does either.
            mtu: u16::try_from(link.mtu).ok(),
            host_name: Some(host_name.to_owned()),
            resolver: resolver(&nic.name, &wired.resolv_conf),
            v4,
            v6,
        };
        let teller = Teller::new(bridge, guest)
            .map_err(|source| PodNicError::Guest { interface: interface(), source })?;
        let netns = netns.path().to_owned();
        Ok(Self { index, netns, pod_interface: wired.pod_interface.clone(), teller })
    }

    /// Sends the pod's addresses, with the NIC's index, now and whenever they change.
    pub(super) fn watch(
        &self,
        netns: &NetNs,
        changes: mpsc::Sender<(usize, Vec<IpAddr>)>,
    ) -> Result<impl Future<Output = PodNicError> + use<>, PodNicError> {
        let events = netns.run(Events::of_addresses)?.map_err(PodNicError::Addresses)?;
        let events = Ready::new(events).map_err(PodNicError::Wait)?;
        let (index, path, link) = (self.index, self.netns.clone(), self.pod_interface.clone());
        Ok(async move {
            let mut known = None;
            loop {
                let (path, link) = (path.clone(), link.clone());
                // Netlink sockets of this project wait by themselves, which the event loop must not.
                let read = tokio::task::spawn_blocking(move || pod_addresses(&path, &link)).await;
                let now = match read.map_err(|error| PodNicError::Wait(error.into())) {
                    Ok(Ok(now)) => now,
                    Ok(Err(error)) | Err(error) => return error,
                };
                if known.as_ref() != Some(&now) {
                    known = Some(now.clone());
                    if changes.send((index, now)).await.is_err() {
                        // Nobody wants to know any more.
                        std::future::pending::<()>().await;
                    }
                }
                sleep(ADDRESS_PACE).await;
                let woken = events.readable().await.and_then(|()| events.get().drain());
                if let Err(error) = woken {
                    return PodNicError::Wait(error);
                }
            }
        })
    }
}

/// The addresses of the pod that others reach: IPv4 first.
fn pod_addresses(netns: &std::path::Path, link: &IfName) -> Result<Vec<IpAddr>, PodNicError> {
    let netlink = Netlink::open_in(&NetNs::open(netns)?).map_err(PodNicError::Addresses)?;
    let Some(link) = netlink.link_by_name(link.as_str()).map_err(PodNicError::Addresses)? else {
        return Ok(Vec::new());
    };
    let addresses = netlink.addresses(link.index).map_err(PodNicError::Addresses)?;
    let mut addresses: Vec<_> = addresses.iter().map(IpNetwork::ip).filter(is_global).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}
