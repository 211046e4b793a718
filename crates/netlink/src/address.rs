//! Addresses of links.

use std::net::IpAddr;

use futures_util::stream::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};

use crate::{Error, Netlink};

impl Netlink {
    /// The addresses of a link, link-local ones included.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNetwork>, Error> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<_> =
            self.wait("list addresses of link with index", index, request.execute().try_collect())?;
        Ok(messages.iter().filter_map(network).collect())
    }

    /// Gives a link an address.
    pub fn add_address(&self, index: u32, address: IpNetwork) -> Result<(), Error> {
        let request = self.handle.address().add(index, address.ip(), address.prefix());
        self.wait("add address", address, request.execute())
    }

    /// Gives a link an address that is usable at once: no duplicate address detection (`IFA_F_NODAD`). For links that
    /// nobody else can have it on.
    pub fn add_sole_address(&self, index: u32, address: IpNetwork) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address.ip(), address.prefix());
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.wait("add address", address, request.execute())
    }

    /// Takes an address from a link.
    pub fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), Error> {
        let mut request = self.handle.address().add(index, address.ip(), address.prefix());
        let message = request.message_mut().clone();
        self.wait("delete address", address, self.handle.address().del(message).execute())
    }
}

/// `IFA_LOCAL` is the link's own address; on links that are not point-to-point `IFA_ADDRESS` is the same.
pub(crate) fn network(message: &AddressMessage) -> Option<IpNetwork> {
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) => address = address.or(Some(*other)),
            _ => {}
        }
    }
    IpNetwork::new(address?, message.header.prefix_len).ok()
}
