//! What the pod interface was before it was turned into a tap: ADD writes it down first, DEL puts it back.
//!
//! It is a file outside the pod's namespace ([`Journal`]): the kernel keeps no routes of a link that is down, and an alias
//! has no room for them.

use std::fs;
use std::io;
use std::path::Path;

use cni::{Attachment, ContainerId, Request};
use ipnetwork::IpNetwork;
use net_types::IfName;
use netlink::{KeptAddress, KeptRoute, Link};
use serde::{Deserialize, Serialize};

use super::error::VmTapError;
use super::pod::Pod;
use crate::journal::Journal;

const DIRECTORY: &str = "/run/guestwire/vm-tap";

/// The pod interface as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Before {
    pub(super) up: bool,
    pub(super) settings: Settings,
    pub(super) addresses: Vec<KeptAddress>,
    pub(super) routes: Vec<KeptRoute>,
}

/// The settings of a link that keep the pod off the guest's wire, as the kernel writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Settings {
    /// None on a kernel without IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disable_ipv6: Option<String>,
    pub(super) arp_ignore: String,
}

/// The file of one attachment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    network: &'a str,
    attachment: &'a Attachment,
}

impl<'a> Record<'a> {
    pub(super) fn of(request: &'a Request) -> Result<Self, VmTapError> {
        Ok(Self { network: &request.network, attachment: request.attachment()? })
    }

    pub(super) fn keep(self, before: &Before) -> Result<(), VmTapError> {
        Ok(journal().keep(self.network, self.attachment, before)?)
    }

    pub(super) fn read(self) -> Result<Option<Before>, VmTapError> {
        Ok(journal().read(self.attachment)?)
    }

    pub(super) fn forget(self) -> Result<(), VmTapError> {
        Ok(journal().forget(self.attachment)?)
    }
}

/// Fails if nothing could be written down now.
pub(super) fn try_out() -> Result<(), VmTapError> {
    Ok(journal().try_out()?)
}

/// Removes the files of the network's attachments that are not valid.
pub(super) fn gc(network: &str, valid: &[(ContainerId, String)]) -> Result<(), VmTapError> {
    Ok(journal().gc(network, valid)?)
}

fn journal() -> Journal<'static> {
    Journal::in_directory(Path::new(DIRECTORY))
}

impl Before {
    /// Looks at the pod interface.
    pub(super) fn look(pod: &Pod, names: &IfName, nic: &Link) -> Result<Self, VmTapError> {
        Ok(Self {
            up: nic.up,
            settings: Settings::read(pod, names)?,
            addresses: pod.netlink.keep_addresses(nic.index)?,
            routes: pod.netlink.keep_routes(nic.index)?,
        })
    }

    /// The addresses that a guest could have.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNetwork> + '_ {
        let networks = self.addresses.iter().filter_map(KeptAddress::network);
        networks.filter(|network| !matches!(network, IpNetwork::V6(v6) if v6.ip().is_unicast_link_local()))
    }

    /// True if there is something of IPv6 that goes when the interface does not speak it any more.
    pub(super) fn has_ipv6(&self, nic: u32) -> bool {
        let mut destinations = self.routes.iter().flat_map(|route| route.through(nic));
        self.networks().any(|network| network.is_ipv6())
            || destinations.any(|route| route.destination.is_ipv6())
    }
}

impl Settings {
    /// What keeps a link silent: no IPv6 of its own, no ARP answers for the pod's other addresses.
    pub(super) fn silent() -> Self {
        Self { disable_ipv6: Some("1".to_owned()), arp_ignore: "1".to_owned() }
    }

    /// What links have that nobody changed.
    pub(super) fn default() -> Self {
        Self { disable_ipv6: Some("0".to_owned()), arp_ignore: "0".to_owned() }
    }

    pub(super) fn read(pod: &Pod, link: &IfName) -> Result<Self, VmTapError> {
        let value = |path: String| {
            let text = pod.namespace.run(|| fs::read_to_string(&path)).map_err(VmTapError::Netns)?;
            text.map(|text| text.trim_end().to_owned()).map_err(|source| VmTapError::Setting { path, source })
        };
        let disable_ipv6 = match value(disable_ipv6(link)) {
            Err(VmTapError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        Ok(Self { disable_ipv6, arp_ignore: value(arp_ignore(link))? })
    }

    pub(super) fn write(&self, pod: &Pod, link: &IfName) -> Result<(), VmTapError> {
        let Self { disable_ipv6: no_ipv6, arp_ignore: no_arp } = self;
        let write =
            |path: &str, value: &str| pod.namespace.run(|| fs::write(path, value)).map_err(VmTapError::Netns);
        if let Some(value) = no_ipv6 {
            let path = disable_ipv6(link);
            match write(&path, value)? {
                // A kernel without IPv6 says none.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(VmTapError::Setting { path, source }),
                Ok(()) => {}
            }
        }
        let path = arp_ignore(link);
        write(&path, no_arp)?.map_err(|source| VmTapError::Setting { path, source })
    }
}

fn disable_ipv6(link: &IfName) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6")
}

fn arp_ignore(link: &IfName) -> String {
    format!("/proc/sys/net/ipv4/conf/{link}/arp_ignore")
}
