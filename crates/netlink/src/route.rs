//! Routes of the main table, and addresses of the local one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::TryStreamExt as _;
use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use rtnetlink::RouteMessageBuilder;

use crate::{Error, Netlink};

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNetwork,
    /// By which neighbour; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// The routes through a link, those of its own subnets included.
    pub fn routes(&self, index: u32) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for filter in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let is_v6 = filter.header.address_family == AddressFamily::Inet6;
            let messages = self.handle.route().get(filter).execute().try_collect();
            let messages: Vec<_> = self.wait("list routes of link with index", index, messages)?;
            routes.extend(messages.iter().filter_map(|message| route(message, index, is_v6)));
        }
        Ok(routes)
    }

    /// Adds a route through a link.
    pub fn add_route(&self, index: u32, route: &Route) -> Result<(), Error> {
        let message = match (route.destination, route.gateway) {
            (IpNetwork::V4(destination), gateway) => {
                let builder = RouteMessageBuilder::<Ipv4Addr>::new()
                    .output_interface(index)
                    .destination_prefix(destination.ip(), destination.prefix());
                match gateway {
                    Some(IpAddr::V4(gateway)) => builder.gateway(gateway).build(),
                    Some(IpAddr::V6(gateway)) => builder.via(gateway).build(),
                    None => builder.scope(RouteScope::Link).build(),
                }
            }
            (IpNetwork::V6(destination), gateway) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                    .output_interface(index)
                    .destination_prefix(destination.ip(), destination.prefix());
                match gateway {
                    Some(IpAddr::V6(gateway)) => builder.gateway(gateway).build(),
                    // No kernel routes IPv6 by an IPv4 neighbour; leaving it out would install another route.
                    Some(gateway @ IpAddr::V4(_)) => {
                        return Err(Error::MixedFamilies { destination: route.destination, gateway });
                    }
                    None => builder.build(),
                }
            }
        };
        self.wait("add route to", route.destination, self.handle.route().add(message).execute())
    }

    /// Takes packets for `address` that come in by a link as this host's own (`ip -6 route add local … table local`),
    /// without giving the link the address. Of the lowest preference: an address of the host stays where it is.
    pub fn add_local_route(&self, index: u32, address: Ipv6Addr) -> Result<(), Error> {
        let message = RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(index)
            .destination_prefix(address, 128)
            .table_id(libc::RT_TABLE_LOCAL.into())
            .kind(RouteType::Local)
            .priority(u32::MAX)
            .build();
        self.wait("add local route to", address, self.handle.route().add(message).execute())
    }

    /// True if [`Netlink::add_local_route`] was done for the link.
    pub fn has_local_route(&self, index: u32, address: Ipv6Addr) -> Result<bool, Error> {
        let filter = RouteMessageBuilder::<Ipv6Addr>::new().table_id(libc::RT_TABLE_LOCAL.into()).build();
        let messages = self.handle.route().get(filter).execute().try_collect();
        let messages: Vec<_> = self.wait("list local routes of link with index", index, messages)?;
        let wanted = [RouteAttribute::Oif(index), RouteAttribute::Destination(RouteAddress::Inet6(address))];
        Ok(messages.iter().any(|message| {
            message.header.kind == RouteType::Local
                && wanted.iter().all(|attribute| message.attributes.contains(attribute))
        }))
    }
}

fn route(message: &RouteMessage, index: u32, is_v6: bool) -> Option<Route> {
    let through = message.attributes.contains(&RouteAttribute::Oif(index));
    let main = message.header.table == RouteHeader::RT_TABLE_MAIN;
    if !through || !main || message.header.kind != RouteType::Unicast {
        return None;
    }
    let any: IpAddr = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let mut destination = any;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Route { destination, gateway })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
