//! Bridges, their ports and the VLANs of a port.

use futures_util::stream::TryStreamExt as _;
use net_types::{IfName, Mac, VlanId};
use netlink_packet_core::{NLM_F_DUMP, NLMSG_DONE, NetlinkBuffer};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeStpState, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort,
    LinkAttribute, LinkExtentMask, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkBridgeVlan, LinkMessageBuilder};

use crate::{Error, Netlink, question};

/// A bridge's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgeInfo {
    /// It keeps VLANs apart.
    pub vlan_filtering: bool,
    /// VLAN that a new port gets, untagged; none if the bridge gives none.
    pub default_pvid: Option<VlanId>,
    /// It takes part in the spanning tree protocol.
    pub stp: bool,
    /// It sends multicast only to ports that want it.
    pub multicast_snooping: bool,
}

/// A bridge port's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortInfo {
    /// Frames may leave by the port they came in by.
    pub hairpin: bool,
    /// No frames to other isolated ports.
    pub isolated: bool,
    /// Source addresses are learned.
    pub learning: bool,
    /// Reserved addresses, by their last digit, whose frames are passed on like any other (`group_fwd_mask`).
    pub forwarded_groups: u16,
}

/// All reserved addresses, 01:80:c2:00:00:00 to 0f, but that of pause frames, which a bridge drops in any case.
pub const ALL_GROUPS: u16 = 0xfffd;

/// A setting of a bridge port that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortFlag {
    /// See [`PortInfo::hairpin`].
    Hairpin,
    /// See [`PortInfo::isolated`].
    Isolated,
    /// See [`PortInfo::learning`].
    Learning,
}

/// A bridge to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewBridge<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its hardware address; none lets it follow its ports.
    pub mac: Option<Mac>,
    /// Its MTU in bytes; none lets it follow its ports.
    pub mtu: Option<u32>,
    /// See [`BridgeInfo::vlan_filtering`].
    pub vlan_filtering: bool,
    /// Multicast goes only where somebody joined; the bridge itself joins 224.0.0.106 and ff02::6a for that.
    pub multicast_snooping: bool,
}

/// VLANs from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlanRange {
    /// The lowest.
    pub first: VlanId,
    /// The highest.
    pub last: VlanId,
}

impl From<VlanId> for VlanRange {
    fn from(vlan: VlanId) -> Self {
        Self { first: vlan, last: vlan }
    }
}

/// VLANs of a port, with what they mean there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    /// Which.
    pub range: VlanRange,
    /// Untagged frames that come in belong to it.
    pub pvid: bool,
    /// Its frames go out untagged.
    pub untagged: bool,
}

impl PortVlan {
    /// The VLAN of an access port: untagged both ways.
    pub fn access(vlan: VlanId) -> Self {
        Self { range: vlan.into(), pvid: true, untagged: true }
    }

    /// VLANs of a trunk: tagged both ways.
    pub fn tagged(range: VlanRange) -> Self {
        Self { range, pvid: false, untagged: false }
    }

    fn flags(self) -> BridgeVlanInfoFlags {
        let mut flags = BridgeVlanInfoFlags::empty();
        flags.set(BridgeVlanInfoFlags::Pvid, self.pvid);
        flags.set(BridgeVlanInfoFlags::Untagged, self.untagged);
        flags
    }
}

/// A port of a bridge, or a bridge as one of itself, and its VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortVlans {
    /// Its index.
    pub index: u32,
    /// Which.
    pub vlans: Vec<PortVlan>,
}

impl Netlink {
    /// Makes a bridge, down.
    pub fn create_bridge(&self, bridge: &NewBridge<'_>) -> Result<(), Error> {
        let NewBridge { name, mac, mtu, vlan_filtering, multicast_snooping } = *bridge;
        let mut link =
            LinkMessageBuilder::<LinkBridge>::new(name.as_str()).mcast_snooping(multicast_snooping);
        // A kernel without VLAN filtering refuses even to be told that there is none.
        if vlan_filtering {
            link = link.vlan_filtering(true);
        }
        if let Some(mac) = mac {
            link = link.address(mac.octets().to_vec());
        }
        if let Some(mtu) = mtu {
            link = link.mtu(mtu);
        }
        let added = self.wait("add bridge", name, self.handle.link().add(link.build()).execute());
        if vlan_filtering { added.map_err(Error::without_vlan_filtering) } else { added }
    }

    /// Makes a bridge keep VLANs apart, or not.
    pub fn set_vlan_filtering(&self, name: &IfName, on: bool) -> Result<(), Error> {
        let bridge = LinkMessageBuilder::<LinkBridge>::new(name.as_str()).vlan_filtering(on).build();
        self.wait("set VLAN filtering of bridge", name, self.handle.link().change(bridge).execute())
            .map_err(Error::without_vlan_filtering)
    }

    /// Switches a setting of a bridge port.
    pub fn set_port_flag(&self, index: u32, flag: PortFlag, on: bool) -> Result<(), Error> {
        let port = LinkBridgePort::new(index).append_info_data(match flag {
            PortFlag::Hairpin => InfoBridgePort::HairpinMode(on),
            PortFlag::Isolated => InfoBridgePort::Isolated(on),
            PortFlag::Learning => InfoBridgePort::Learning(on),
        });
        self.wait("set bridge port with index", index, self.handle.link().set_port(port.build()).execute())
    }

    /// Sets the reserved addresses, a bit for each, whose frames the port passes on like any other.
    pub fn set_forwarded_groups(&self, index: u32, mask: u16) -> Result<(), Error> {
        let port = LinkBridgePort::new(index).append_info_data(InfoBridgePort::GroupFwdMask(mask));
        self.wait("set bridge port with index", index, self.handle.link().set_port(port.build()).execute())
    }

    /// Adds VLANs to a port.
    pub fn add_port_vlan(&self, index: u32, vlan: PortVlan) -> Result<(), Error> {
        self.wait(
            "add VLAN to port with index",
            index,
            self.handle.link().set(vlan_builder(index, vlan).build()).execute(),
        )
    }

    /// Puts a bridge itself into VLANs, as whose port it then sends and receives.
    pub fn add_own_vlan(&self, bridge: u32, vlan: PortVlan) -> Result<(), Error> {
        let message = vlan_builder(bridge, vlan).bridge_self().build();
        self.wait("add VLAN to bridge with index", bridge, self.handle.link().set(message).execute())
    }

    /// Takes a bridge itself out of VLANs; those it is not in are fine.
    pub fn delete_own_vlans(&self, bridge: u32, range: VlanRange) -> Result<(), Error> {
        let message = vlan_builder(bridge, PortVlan::tagged(range)).bridge_self().build();
        let request = self.handle.link().del_with_message(message);
        self.wait("delete VLANs of bridge with index", bridge, request.execute())
    }

    /// Takes VLANs from a port; those it does not have are fine.
    pub fn delete_port_vlans(&self, index: u32, range: VlanRange) -> Result<(), Error> {
        let message = vlan_builder(index, PortVlan::tagged(range)).build();
        let request = self.handle.link().del_with_message(message);
        self.wait("delete VLANs of port with index", index, request.execute())
    }

    /// Switches a bridge's part in the spanning tree protocol.
    pub fn set_stp(&self, name: &IfName, on: bool) -> Result<(), Error> {
        let state = if on { BridgeStpState::KernelStp } else { BridgeStpState::Disabled };
        let bridge = LinkMessageBuilder::<LinkBridge>::new(name.as_str()).stp_state(state).build();
        self.wait("set STP of bridge", name, self.handle.link().change(bridge).execute())
    }

    /// The VLANs of all ports of all bridges.
    pub fn all_port_vlans(&self) -> Result<Vec<PortVlans>, Error> {
        let masks = vec![LinkExtentMask::BrvlanCompressed];
        let request = self.handle.link().get().set_filter_mask(AddressFamily::Bridge, masks);
        let ports: Vec<_> = self.wait("list VLANs of", "ports", request.execute().try_collect())?;
        Ok(ports.into_iter().map(port_vlans).collect())
    }
}

/// True if the bridge with index `bridge` in the calling thread's namespace has a port. The kernel is asked for its ports, and
/// only the beginning of the answer is taken, so that the cost does not grow with their number.
pub fn has_ports(bridge: u32) -> Result<bool, Error> {
    let verb = "list ports of link with index";
    let object = || bridge.to_string();
    let failed = |source| Error::Refused { verb, object: object(), source };
    let mut ports = LinkMessage::default();
    ports.attributes.push(LinkAttribute::Controller(bridge));
    let answer = question::ask(ports, NLM_F_DUMP).map_err(failed)?;
    let first = NetlinkBuffer::new_checked(&answer).map_err(|source| Error::Malformed {
        verb,
        object: object(),
        source,
    })?;
    question::refusal(&first).map_err(failed)?;
    Ok(first.message_type() != NLMSG_DONE)
}

fn vlan_builder(index: u32, vlan: PortVlan) -> LinkMessageBuilder<LinkBridgeVlan> {
    let VlanRange { first, last } = vlan.range;
    let builder = LinkBridgeVlan::new(index);
    if first == last {
        builder.vlan(first.get(), vlan.flags())
    } else {
        builder.vlan_range_start(first.get(), vlan.flags()).vlan_range_end(last.get(), vlan.flags())
    }
}

fn port_vlans(port: LinkMessage) -> PortVlans {
    let index = port.header.index;
    let mut infos = Vec::new();
    for attribute in port.attributes {
        if let LinkAttribute::AfSpecBridge(specs) = attribute {
            infos.extend(specs);
        }
    }
    let mut first = None;
    let mut vlans = Vec::new();
    for info in infos {
        let AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) = info else { continue };
        let Ok(vlan) = VlanId::try_from(vid) else { continue };
        if flags.contains(BridgeVlanInfoFlags::RangeBegin) {
            first = Some(vlan);
            continue;
        }
        vlans.push(PortVlan {
            range: VlanRange { first: first.take().unwrap_or(vlan), last: vlan },
            pvid: flags.contains(BridgeVlanInfoFlags::Pvid),
            untagged: flags.contains(BridgeVlanInfoFlags::Untagged),
        });
    }
    PortVlans { index, vlans }
}

impl From<Vec<InfoBridge>> for BridgeInfo {
    fn from(infos: Vec<InfoBridge>) -> Self {
        let mut bridge = Self::default();
        for info in infos {
            match info {
                InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = on,
                InfoBridge::VlanDefaultPvid(vid) => bridge.default_pvid = VlanId::try_from(vid).ok(),
                InfoBridge::MulticastSnooping(on) => bridge.multicast_snooping = on,
                InfoBridge::StpState(state) => bridge.stp = u32::from(state) != 0,
                _ => {}
            }
        }
        bridge
    }
}

impl From<Vec<InfoBridgePort>> for PortInfo {
    fn from(infos: Vec<InfoBridgePort>) -> Self {
        let mut port = Self::default();
        for info in infos {
            match info {
                InfoBridgePort::HairpinMode(on) => port.hairpin = on,
                InfoBridgePort::Isolated(on) => port.isolated = on,
                InfoBridgePort::Learning(on) => port.learning = on,
                InfoBridgePort::GroupFwdMask(mask) => port.forwarded_groups = mask,
                _ => {}
            }
        }
        port
    }
}
