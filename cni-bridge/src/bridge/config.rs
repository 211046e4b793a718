//! The configuration of `cnv-bridge`: what it means, checked. How it is written is in [`written`].

mod written;

use std::net::IpAddr;

use cni::Dns;
use net_types::{IfName, Mac, VlanId};
use netlink::VlanRange;

use crate::spoof::Guard;

/// What a network asks of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The bridge to attach to.
    pub(crate) bridge: IfName,
    /// Switch VLAN filtering on if the bridge lacks it and the network needs it (`enableVlanFiltering`, ours).
    pub(crate) enable_vlan_filtering: bool,
    /// The access VLAN, or the native one next to a trunk; none leaves the port as the bridge makes it.
    pub(crate) vlan: Option<VlanId>,
    /// VLANs that come and go tagged.
    pub(crate) trunk: Vec<VlanRange>,
    /// A port of the bridge that shall be in the network's VLANs as long as a pod is (`uplink`, ours).
    pub(crate) uplink: Option<IfName>,
    /// The port also stays in the bridge's default VLAN.
    pub(crate) preserve_default_vlan: bool,
    /// Only the pod's own address may send.
    pub(crate) mac_spoof_check: bool,
    /// Which IP addresses the pod may send from.
    pub(crate) source_check: SourceCheck,
    /// MTU in bytes; none means the bridge's.
    pub(crate) mtu: Option<u32>,
    /// The pod interface's address; none lets the kernel choose.
    pub(crate) mac: Option<Mac>,
    /// Frames may leave by the port they came in by.
    pub(crate) hairpin: bool,
    /// No frames to other isolated ports.
    pub(crate) isolated: bool,
    /// The bridge takes all frames.
    pub(crate) promiscuous: bool,
    /// What the bridge is to the pod's addresses.
    pub(crate) gateway: Gateway,
    /// Replace an address of the bridge that is in the way of the gateway's.
    pub(crate) force_address: bool,
    /// Wait for IPv6 duplicate address detection instead of skipping it.
    pub(crate) detect_duplicates: bool,
    /// Leave the pod's interface down.
    pub(crate) keep_pod_end_down: bool,
    /// An IPAM plugin assigns addresses.
    pub(crate) has_ipam: bool,
    /// What the pod sends out of its networks leaves by the node's address.
    pub(crate) masquerade: bool,
    /// Replaces what IPAM says of name resolution, unless empty.
    pub(crate) dns: Dns,
}

/// `isGateway` and `isDefaultGateway`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gateway {
    /// A switch and nothing more.
    No,
    /// It has an address in each of the pod's subnets.
    Address,
    /// And the pod's default routes go by way of it.
    DefaultRoute,
}

/// `ipspoofchk` (ours).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SourceCheck {
    /// Any.
    Off,
    /// Those that IPAM assigns.
    Assigned,
    /// These.
    Listed(Vec<IpAddr>),
}

impl Config {
    /// The port's packets are checked for what they claim to be.
    pub(crate) fn has_spoof_check(&self) -> bool {
        self.mac_spoof_check || self.source_check != SourceCheck::Off
    }

    /// What the port may claim to be if its interface has that address and IPAM assigned those.
    pub(crate) fn guard(&self, mac: Mac, assigned: &[IpAddr]) -> Guard {
        let sources = match &self.source_check {
            SourceCheck::Off => None,
            SourceCheck::Assigned => Some(assigned.to_vec()),
            SourceCheck::Listed(list) => Some(list.clone()),
        };
        Guard::new(self.mac_spoof_check.then_some(mac), sources)
    }

    /// A bridge that is missing is made only where it is a network's own gateway or subnet, not one that is meant to
    /// lead somewhere.
    pub(crate) fn makes_bridge(&self) -> bool {
        self.has_ipam || self.gateway > Gateway::No
    }

    /// Making and removing a port is more than its own business: others' calls must wait.
    pub(crate) fn needs_lock(&self) -> bool {
        self.makes_bridge() || self.uplink.is_some()
    }

    /// The network needs a bridge that keeps VLANs apart.
    pub(crate) fn needs_vlan_filtering(&self) -> bool {
        self.vlan.is_some() || !self.trunk.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self {
            bridge: "br1".parse().unwrap(),
            enable_vlan_filtering: false,
            vlan: None,
            trunk: Vec::new(),
            uplink: None,
            preserve_default_vlan: true,
            mac_spoof_check: false,
            source_check: SourceCheck::Off,
            mtu: None,
            mac: None,
            hairpin: false,
            isolated: false,
            promiscuous: false,
            gateway: Gateway::No,
            force_address: false,
            detect_duplicates: false,
            keep_pod_end_down: false,
            has_ipam: false,
            masquerade: false,
            dns: Dns::default(),
        }
    }
}

#[cfg(test)]
mod tests;
