//! What has to change on this node.

use std::fmt;

use net_types::IfName;
use netlink::{Link, Netlink, PortVlan, PortVlans, VlanRange};

use super::desired::{Bridge, Port};
use crate::bridge::{Vlans, is_port_of_ours};

/// Why a policy must not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Nobody could reach the node any more.
    #[error(
        "the node's default route goes through {0}: as a bridge's port it would carry no traffic of the node \
         (--take-default-route does it all the same)"
    )]
    DefaultRoute(IfName),
    /// A port is not there.
    #[error("interface {0} does not exist on this node")]
    NoPort(IfName),
    /// A port has another master.
    #[error("interface {port} is a port of {master} already")]
    Taken {
        /// The port.
        port: IfName,
        /// Whose.
        master: String,
    },
    /// The name is taken.
    #[error("{0} exists and is no bridge")]
    NoBridge(IfName),
    /// Pods are on it.
    #[error("bridge {bridge} has {ports} ports of pods, {first} for one")]
    InUse {
        /// The bridge.
        bridge: IfName,
        /// How many.
        ports: usize,
        /// One of them.
        first: String,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Create { name: IfName, vlan_filtering: bool },
    Delete(IfName),
    FilterVlans(IfName),
    Stp(IfName, bool),
    Mtu(IfName, u32),
    Attach { port: IfName, bridge: IfName },
    Detach { port: IfName, bridge: IfName },
    AddVlan { port: IfName, vlan: PortVlan },
    DeleteVlans { port: IfName, range: VlanRange },
    Up(IfName),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { name, .. } => write!(f, "create bridge {name}"),
            Self::Delete(name) => write!(f, "delete bridge {name}"),
            Self::FilterVlans(name) => write!(f, "switch on VLAN filtering of {name}"),
            Self::Stp(name, on) => write!(f, "switch STP of {name} {}", if *on { "on" } else { "off" }),
            Self::Mtu(name, mtu) => write!(f, "set MTU of {name} to {mtu}"),
            Self::Attach { port, bridge } => write!(f, "make {port} a port of {bridge}"),
            Self::Detach { port, bridge } => write!(f, "take port {port} from {bridge}"),
            Self::AddVlan { port, vlan } => {
                write!(f, "put {port} into VLAN {}", Vlans::from_list(vec![*vlan]))
            }
            Self::DeleteVlans { port, range: VlanRange { first, last } } if first == last => {
                write!(f, "take {port} out of VLAN {first}")
            }
            Self::DeleteVlans { port, range: VlanRange { first, last } } => {
                write!(f, "take {port} out of VLANs {first}-{last}")
            }
            Self::Up(name) => write!(f, "set {name} up"),
        }
    }
}

/// What is there.
struct Node<'a> {
    host: &'a Netlink,
    links: Vec<Link>,
    vlans: Vec<PortVlans>,
    take_default_route: bool,
}

/// The changes that make the node as it is wanted, in order; none if it is so already.
pub(super) fn plan(
    host: &Netlink,
    bridges: &[Bridge],
    absent: &[IfName],
    take_default_route: bool,
) -> Result<Vec<Change>, PlanError> {
    let node = Node { host, links: host.links()?, vlans: host.all_port_vlans()?, take_default_route };
    let mut changes = Vec::new();
    for bridge in bridges {
        node.bridge(bridge, &mut changes)?;
    }
    for name in absent {
        node.absence(name, &mut changes)?;
    }
    Ok(changes)
}

impl Node<'_> {
    fn link(&self, name: &IfName) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name.as_str())
    }

    fn bridge(&self, bridge: &Bridge, changes: &mut Vec<Change>) -> Result<(), PlanError> {
        let Bridge { name, mtu, stp, ports } = bridge;
        let vlan_filtering = ports.iter().any(|port| port.vlans.is_some());
        let found = self.link(name);
        match found.map(|link| (link, link.bridge)) {
            None => {
                changes.push(Change::Create { name: name.clone(), vlan_filtering });
                if *stp {
                    changes.push(Change::Stp(name.clone(), true));
                }
                // Set after it is made, or the kernel takes it for a mere start and lets it follow the ports'.
                changes.extend(mtu.map(|mtu| Change::Mtu(name.clone(), mtu)));
            }
            Some((_, None)) => return Err(PlanError::NoBridge(name.clone())),
            Some((link, Some(info))) => {
                if vlan_filtering && !info.vlan_filtering {
                    changes.push(Change::FilterVlans(name.clone()));
                }
                if info.stp != *stp {
                    changes.push(Change::Stp(name.clone(), *stp));
                }
                changes.extend(mtu.filter(|mtu| *mtu != link.mtu).map(|mtu| Change::Mtu(name.clone(), mtu)));
            }
        }
        for port in ports {
            self.port(port, bridge, found, changes)?;
        }
        if let Some(link) = found {
            self.detach_others(link, bridge, changes);
        }
        if found.is_none_or(|link| !link.up) {
            changes.push(Change::Up(name.clone()));
        }
        Ok(())
    }

    fn port(
        &self,
        port: &Port,
        bridge: &Bridge,
        found: Option<&Link>,
        changes: &mut Vec<Change>,
    ) -> Result<(), PlanError> {
        let Port { name, vlans } = port;
        let link = self.link(name).ok_or_else(|| PlanError::NoPort(name.clone()))?;
        let attached = link.master.is_some() && link.master == found.map(|found| found.index);
        if !attached {
            if let Some(master) = link.master {
                let master = self.links.iter().find(|link| link.index == master);
                let master = master.map(|link| link.name.clone()).unwrap_or_default();
                return Err(PlanError::Taken { port: name.clone(), master });
            }
            self.spare_default_route(link, name)?;
            changes.push(Change::Attach { port: name.clone(), bridge: bridge.name.clone() });
        }
        if let Some(wanted) = vlans {
            // What a bridge gives a port that joins it, unless told otherwise.
            let default = found
                .and_then(|found| found.bridge)
                .map_or(Some(net_types::VlanId::DEFAULT), |info| info.default_pvid);
            let present = match self.vlans.iter().find(|port| port.index == link.index).filter(|_| attached) {
                Some(port) => Vlans::from_list(port.vlans.clone()),
                None => Vlans::from_list(default.map(PortVlan::access).into_iter().collect()),
            };
            let delete = |PortVlan { range, .. }: PortVlan| Change::DeleteVlans { port: name.clone(), range };
            changes.extend(present.without(wanted).ranges().into_iter().map(delete));
            let add = |vlan| Change::AddVlan { port: name.clone(), vlan };
            changes.extend(wanted.differing_from(&present).ranges().into_iter().map(add));
        }
        if !link.up {
            changes.push(Change::Up(name.clone()));
        }
        Ok(())
    }

    /// Hardware that a former policy put there. Ports of pods and guests are not a policy's business.
    fn detach_others(&self, found: &Link, bridge: &Bridge, changes: &mut Vec<Change>) {
        for link in self.links.iter().filter(|link| link.master == Some(found.index)) {
            let listed = bridge.ports.iter().any(|port| port.name.as_str() == link.name);
            if let (false, "" | "bond" | "vlan", Ok(port)) = (listed, link.kind.as_str(), link.name.parse()) {
                changes.push(Change::Detach { port, bridge: bridge.name.clone() });
            }
        }
    }

    fn absence(&self, name: &IfName, changes: &mut Vec<Change>) -> Result<(), PlanError> {
        let Some(link) = self.link(name) else { return Ok(()) };
        if link.bridge.is_none() {
            return Err(PlanError::NoBridge(name.clone()));
        }
        self.spare_default_route(link, name)?;
        let ports: Vec<_> = self
            .links
            .iter()
            .filter(|port| port.master == Some(link.index) && is_port_of_ours(port))
            .collect();
        if let Some(first) = ports.first() {
            return Err(PlanError::InUse {
                bridge: name.clone(),
                ports: ports.len(),
                first: first.name.clone(),
            });
        }
        changes.push(Change::Delete(name.clone()));
        Ok(())
    }

    fn spare_default_route(&self, link: &Link, name: &IfName) -> Result<(), PlanError> {
        let is_default = |route: &netlink::Route| route.destination.prefix() == 0;
        if !self.take_default_route && self.host.routes(link.index)?.iter().any(is_default) {
            return Err(PlanError::DefaultRoute(name.clone()));
        }
        Ok(())
    }
}
