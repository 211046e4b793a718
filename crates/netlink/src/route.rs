//! Routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteScope, RouteType, RouteVia,
};
use rtnetlink::RouteMessageBuilder;

use crate::{Error, Netlink};

/// A unicast route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpNetwork,
    /// By which neighbour; none if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// What most routes leave to the kernel.
    pub options: RouteOptions,
}

/// What a route may say besides; none is as the kernel has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RouteOptions {
    /// The table it is in, if not the main one.
    pub table: Option<u32>,
    /// Its metric: the lowest is preferred.
    pub priority: Option<u32>,
    /// Path MTU in bytes.
    pub mtu: Option<u32>,
    /// Largest segment that TCP tells its peers of, in bytes.
    pub advmss: Option<u32>,
    /// How far the destination is (`RT_SCOPE_*`); IPv6 knows none.
    pub scope: Option<u8>,
}

impl Netlink {
    /// The routes through a link in all tables but the local one, those of its own subnets included. Of one that has several
    /// ways, those through the link.
    pub fn routes(&self, index: u32) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for filter in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let messages = self.route_messages(filter, index)?;
            routes.extend(messages.iter().flat_map(|message| routes_through(message, index)));
        }
        Ok(routes)
    }

    /// What the kernel tells of its routes, for a question about the link with index `index`.
    pub(crate) fn route_messages(
        &self,
        filter: RouteMessage,
        index: u32,
    ) -> Result<Vec<RouteMessage>, Error> {
        let messages = self.handle.route().get(filter).execute().try_collect();
        self.wait("list routes of link with index", index, messages)
    }

    /// Adds a route through a link. Another one to the same destination is no obstacle: over IPv4 the new one goes first,
    /// over IPv6 both are taken in turn.
    pub fn add_route(&self, index: u32, route: &Route) -> Result<(), Error> {
        let Route { destination, gateway, options } = *route;
        let mut message = match (destination, gateway) {
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
            (IpNetwork::V6(v6), gateway) => {
                let builder = RouteMessageBuilder::<Ipv6Addr>::new()
                    .output_interface(index)
                    .destination_prefix(v6.ip(), v6.prefix());
                match gateway {
                    Some(IpAddr::V6(gateway)) => builder.gateway(gateway).build(),
                    // No kernel routes IPv6 by an IPv4 neighbour; leaving it out would install another route.
                    Some(gateway @ IpAddr::V4(_)) => {
                        return Err(Error::MixedFamilies { destination, gateway });
                    }
                    None => builder.build(),
                }
            }
        };
        options.write(&mut message);
        self.wait("add route to", destination, insert(self.handle.clone(), message))
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

    /// True if the host takes packets for `address`, which the link has, as its own. It does so a moment after the address
    /// was added; until then it looks for a neighbour that has it, for 3 s, and tells senders that there is none.
    pub fn is_local(&self, index: u32, address: Ipv6Addr) -> Result<bool, Error> {
        let question = RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(index)
            .destination_prefix(address, 128)
            .build();
        let mut answers = self.handle.route().get(question).execute();
        match self.wait("look up the route to", address, answers.try_next()) {
            Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Local)),
            Err(error) if error.errno() == Some(libc::ENETUNREACH) => Ok(false),
            Err(error) => Err(error),
        }
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

/// As `ip route prepend`: the packet crate would insist on being the first to add one.
async fn insert(mut handle: rtnetlink::Handle, route: RouteMessage) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
            _ => {}
        }
    }
    Ok(())
}

impl RouteOptions {
    fn write(self, message: &mut RouteMessage) {
        let Self { table, priority, mtu, advmss, scope } = self;
        if let Some(table) = table {
            message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
            message.attributes.push(RouteAttribute::Table(table));
        }
        message.attributes.extend(priority.map(RouteAttribute::Priority));
        let metrics: Vec<_> =
            mtu.map(RouteMetric::Mtu).into_iter().chain(advmss.map(RouteMetric::Advmss)).collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        if let Some(scope) = scope {
            message.header.scope = scope.into();
        }
    }
}

/// The table a route is in.
pub(crate) fn table(message: &RouteMessage) -> u32 {
    let named = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(number) => Some(*number),
        _ => None,
    });
    named.unwrap_or_else(|| message.header.table.into())
}

/// The ways of a route through a link; none if it does not lead to hosts elsewhere.
pub(crate) fn routes_through(message: &RouteMessage, index: u32) -> Vec<Route> {
    let is_v6 = message.header.address_family == AddressFamily::Inet6;
    let table = table(message);
    let mut options = RouteOptions { scope: Some(message.header.scope.into()), ..RouteOptions::default() };
    let mut destination = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let Some(address) = ip(address) else { return Vec::new() };
                destination = address;
            }
            RouteAttribute::Priority(priority) => options.priority = Some(*priority),
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => options.mtu = Some(*mtu),
                        RouteMetric::Advmss(advmss) => options.advmss = Some(*advmss),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    options.table = (table != u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(table);
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length);
    let Ok(destination) = destination else { return Vec::new() };
    if message.header.kind != RouteType::Unicast || table == u32::from(libc::RT_TABLE_LOCAL) {
        return Vec::new();
    }
    let ways = ways(message).into_iter().filter(|(link, _)| *link == Some(index));
    ways.map(|(_, gateway)| Route { destination, gateway, options }).collect()
}

/// By which links and neighbours a route goes.
pub(crate) fn ways(message: &RouteMessage) -> Vec<(Option<u32>, Option<IpAddr>)> {
    let gateway = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(address) => ip(address),
            RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
            _ => None,
        })
    };
    let mut ways = Vec::new();
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                ways.extend(hops.iter().map(|hop| (Some(hop.interface_index), gateway(&hop.attributes))));
            }
            _ => {}
        }
    }
    if ways.is_empty() {
        ways.push((link, gateway(&message.attributes)));
    }
    ways
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
