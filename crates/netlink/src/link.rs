//! Links: make, find, change, delete.

use std::os::fd::{AsFd, AsRawFd};

use futures_util::stream::TryStreamExt as _;
use net_types::{IfName, Mac, VlanId};
use netlink_packet_core::Nla as _;
use netlink_packet_route::link::{
    InfoData, InfoPortData, InfoTun, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netns::NetNs;
use rtnetlink::{LinkDummy, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVlan};

use crate::bridge::{BridgeInfo, PortInfo};
use crate::{Error, Netlink};

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if that is an Ethernet one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// `veth`, `bridge`, `tun` … (`IFLA_INFO_KIND`); empty for hardware.
    pub kind: String,
    /// `IFLA_IFALIAS`; empty if none is set.
    pub alias: String,
    /// The device it is a function of, a PCI address for instance (`IFLA_PARENT_DEV_NAME`, since kernel 5.14); empty for
    /// virtual links.
    pub parent: String,
    /// Index of its master: the bridge it is a port of.
    pub master: Option<u32>,
    /// Index of the link it is tied to (a veth's other end, the link below a VLAN's), in the namespace that [`Link::peer_is_elsewhere`] tells of.
    pub peer: Option<u32>,
    /// True if `peer` is an index of another namespace.
    pub peer_is_elsewhere: bool,
    /// Administratively up.
    pub up: bool,
    /// Operationally up (`IF_OPER_UP`).
    pub running: bool,
    /// Promiscuous by request.
    pub promiscuous: bool,
    /// Receives all multicast by request.
    pub all_multicast: bool,
    /// Transmit queue length in packets.
    pub tx_queue_len: u32,
    /// What it is as a tap.
    pub tap: Option<TapInfo>,
    /// What it is as a bridge.
    pub bridge: Option<BridgeInfo>,
    /// What it is as a bridge's port.
    pub port: Option<PortInfo>,
}

/// A tap's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapInfo {
    /// The user who may open it; none if only root may.
    pub owner: Option<u32>,
    /// The group whose members may open it.
    pub group: Option<u32>,
    /// It stays when nobody has it open.
    pub persistent: bool,
    /// It takes more than one queue.
    pub multi_queue: bool,
}

/// Attributes of a tap (`linux/if_link.h`).
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_GROUP: u16 = 2;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;

/// A veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewVeth<'a> {
    /// Name of the end in the socket's namespace.
    pub name: &'a IfName,
    /// The other end.
    pub peer: Peer<'a>,
    /// MTU of both ends in bytes; none leaves the kernel's 1500.
    pub mtu: Option<u32>,
}

/// The other end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// Its hardware address; none lets the kernel choose.
    pub mac: Option<Mac>,
    /// The namespace it is made in.
    pub namespace: &'a NetNs,
}

impl Netlink {
    /// The link of that name.
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name);
        found(self.wait("get link", name, request.execute().try_next()))
    }

    /// The link of that index.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_index(index);
        found(self.wait("get link with index", index, request.execute().try_next()))
    }

    /// All links. Its cost grows with their number: not for ADD or DEL.
    pub fn links(&self) -> Result<Vec<Link>, Error> {
        let messages: Vec<_> =
            self.wait("list", "links", self.handle.link().get().execute().try_collect())?;
        Ok(messages.into_iter().map(Link::from).collect())
    }

    /// Makes a veth pair, each end in its namespace from the start.
    pub fn create_veth(&self, veth: &NewVeth<'_>) -> Result<(), Error> {
        let NewVeth { name, peer: Peer { name: peer_name, mac, namespace }, mtu } = *veth;
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer_name.as_str())
            .setns_by_fd(namespace.as_fd().as_raw_fd());
        let mut link = LinkVeth::new(name.as_str(), peer_name.as_str());
        if let Some(mac) = mac {
            peer = peer.address(mac.octets().to_vec());
        }
        if let Some(mtu) = mtu {
            peer = peer.mtu(mtu);
            link = link.mtu(mtu);
        }
        let link = link.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
        self.wait("add veth pair", format!("{name}, {peer_name}"), self.handle.link().add(link).execute())
    }

    /// Makes a dummy link, down.
    pub fn create_dummy(&self, name: &IfName, mac: Mac, mtu: u32) -> Result<(), Error> {
        let link = LinkDummy::new(name.as_str()).address(mac.octets().to_vec()).mtu(mtu).build();
        self.wait("add dummy link", name, self.handle.link().add(link).execute())
    }

    /// Makes a link in a VLAN of the link with index `lower`, down.
    pub fn create_vlan(&self, name: &IfName, lower: u32, vlan: VlanId) -> Result<(), Error> {
        let link = LinkVlan::new(name.as_str(), lower, vlan.get()).build();
        self.wait("add VLAN link", name, self.handle.link().add(link).execute())
    }

    /// Deletes a link.
    pub fn delete_link(&self, index: u32) -> Result<(), Error> {
        self.wait("delete link with index", index, self.handle.link().del(index).execute())
    }

    /// Sets a link up.
    pub fn set_up(&self, index: u32) -> Result<(), Error> {
        self.change("set up link with index", index, |link| link.up())
    }

    /// Sets a link down.
    pub fn set_down(&self, index: u32) -> Result<(), Error> {
        self.change("set down link with index", index, |link| link.down())
    }

    /// Names a link anew; some kernels want it down for that.
    pub fn set_name(&self, index: u32, name: &IfName) -> Result<(), Error> {
        self.change("rename link with index", index, |link| link.name(name.as_str()))
    }

    /// Gives a link an alternative name, by which it is found as by its own.
    pub fn add_alt_name(&self, index: u32, name: &str) -> Result<(), Error> {
        let request = self.handle.link().property_add(index).alt_ifname(&[name]);
        self.wait("add alternative name of link with index", index, request.execute())
    }

    /// Takes an alternative name from a link; one it does not have is an error.
    pub fn delete_alt_name(&self, index: u32, name: &str) -> Result<(), Error> {
        let request = self.handle.link().property_del(index).alt_ifname(&[name]);
        self.wait("delete alternative name of link with index", index, request.execute())
    }

    /// Moves a link to another namespace, where it is called `name`. It is down afterwards.
    pub fn move_link(&self, index: u32, namespace: &NetNs, name: &IfName) -> Result<(), Error> {
        self.change("move link with index", index, |link| {
            link.name(name.as_str()).setns_by_fd(namespace.as_fd().as_raw_fd())
        })
    }

    /// Writes a link's alias, at most 255 bytes.
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<(), Error> {
        self.change("set alias of link with index", index, |link| link.alias(alias))
    }

    /// Gives a link another hardware address.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<(), Error> {
        self.change("set address of link with index", index, |link| link.address(mac.octets().to_vec()))
    }

    /// Sets a link's MTU in bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        self.change("set MTU of link with index", index, |link| link.mtu(mtu))
    }

    /// Makes a link a port of the bridge with index `master`, or of none.
    pub fn set_master(&self, index: u32, master: Option<u32>) -> Result<(), Error> {
        self.change("set master of link with index", index, |link| match master {
            Some(master) => link.controller(master),
            None => link.nocontroller(),
        })
    }

    /// Switches promiscuous mode.
    pub fn set_promiscuous(&self, index: u32, on: bool) -> Result<(), Error> {
        self.change("set promiscuous mode of link with index", index, |link| link.promiscuous(on))
    }

    /// Switches reception of all multicast.
    pub fn set_all_multicast(&self, index: u32, on: bool) -> Result<(), Error> {
        self.change("set all-multicast mode of link with index", index, |link| link.allmulticast(on))
    }

    /// Sets a link's transmit queue length in packets.
    pub fn set_tx_queue_len(&self, index: u32, length: u32) -> Result<(), Error> {
        self.change("set queue length of link with index", index, |link| link.txqueuelen(length))
    }

    fn change(
        &self,
        verb: &'static str,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), Error> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.wait(verb, index, self.handle.link().change(message).execute())
    }
}

/// "No such link" is an answer to a look-up, not a failure of it.
fn found(answer: Result<Option<LinkMessage>, Error>) -> Result<Option<Link>, Error> {
    match answer {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            kind: String::new(),
            alias: String::new(),
            parent: String::new(),
            master: None,
            peer: None,
            peer_is_elsewhere: false,
            up: flags.contains(LinkFlags::Up),
            running: false,
            promiscuous: flags.contains(LinkFlags::Promisc),
            all_multicast: flags.contains(LinkFlags::Allmulti),
            tx_queue_len: 0,
            tap: None,
            bridge: None,
            port: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(address) => link.mac = Mac::try_from(address.as_slice()).ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::ParentDevName(parent) => link.parent = parent,
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(_) => link.peer_is_elsewhere = true,
                LinkAttribute::OperState(state) => link.running = state == State::Up,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
                LinkAttribute::LinkInfo(infos) => link.read_infos(infos),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn read_infos(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::Data(InfoData::Tun(tun)) => self.tap = Some(TapInfo::from(tun)),
                LinkInfo::Data(InfoData::Bridge(bridge)) => self.bridge = Some(BridgeInfo::from(bridge)),
                LinkInfo::PortData(InfoPortData::BridgePort(port)) => {
                    self.port = Some(PortInfo::from(port));
                }
                _ => {}
            }
        }
    }
}

impl From<Vec<InfoTun>> for TapInfo {
    fn from(infos: Vec<InfoTun>) -> Self {
        let mut tap = Self::default();
        for info in infos {
            // The packet crate leaves them undecoded.
            let mut value = vec![0; info.value_len()];
            info.emit_value(&mut value);
            match (info.kind(), value.as_slice()) {
                (IFLA_TUN_OWNER, id) => tap.owner = id.try_into().ok().map(u32::from_ne_bytes),
                (IFLA_TUN_GROUP, id) => tap.group = id.try_into().ok().map(u32::from_ne_bytes),
                (IFLA_TUN_PERSIST, &[on]) => tap.persistent = on != 0,
                (IFLA_TUN_MULTI_QUEUE, &[on]) => tap.multi_queue = on != 0,
                _ => {}
            }
        }
        tap
    }
}
