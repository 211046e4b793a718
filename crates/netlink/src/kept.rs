//! What a link has, to be written down and given back: its addresses and routes as the kernel tells of them, nothing
//! left out (as `ip address save` and `ip route save` do).
//!
//! Left to the kernel is what it makes by itself: routes to a link's own subnets, link-local addresses of its own,
//! temporary addresses, and what it learns from redirects and router advertisements.

use std::fmt::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use ipnetwork::IpNetwork;
use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, Parseable,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::{Error, Netlink, Route, address, route};

/// An address of a link with all that it was given with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptAddress(AddressMessage);

/// A route with all that it was given with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeptRoute(RouteMessage);

/// A text that no kept address or route is written as.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// Not hexadecimal digits, two for each byte.
    #[error("{0:?} is not bytes in hexadecimal")]
    Text(String),
    /// Not a message of the kernel's.
    #[error("the bytes are not what the kernel tells of an address or route")]
    Message(#[source] DecodeError),
}

impl Netlink {
    /// The addresses of a link, but for those that the kernel gives it by itself.
    pub fn keep_addresses(&self, index: u32) -> Result<Vec<KeptAddress>, Error> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<_> =
            self.wait("list addresses of link with index", index, request.execute().try_collect())?;
        Ok(messages.into_iter().filter_map(kept_address).collect())
    }

    /// Gives a link an address that it had; usable at once, without duplicate address detection.
    pub fn give_back_address(&self, index: u32, address: &KeptAddress) -> Result<(), Error> {
        let KeptAddress(message) = address;
        let Some(network) = address.network() else { return Ok(()) };
        let mut request = self.handle.address().add(index, network.ip(), network.prefix());
        request.message_mut().clone_from(message);
        request.message_mut().header.index = index;
        self.wait("add address", network, request.execute())
    }

    /// The routes that go through a link, in all tables but the local one, but for those that the kernel makes by itself.
    /// Those without a gateway come first, since the others' gateways may be reached by them.
    pub fn keep_routes(&self, index: u32) -> Result<Vec<KeptRoute>, Error> {
        let mut routes = Vec::new();
        for filter in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let messages = self.route_messages(filter, index)?;
            routes.extend(messages.into_iter().filter_map(|message| kept_route(message, index)));
        }
        routes.sort_by_key(|KeptRoute(message)| {
            route::ways(message).iter().any(|(_, gateway)| gateway.is_some())
        });
        Ok(routes)
    }

    /// Makes a route that was kept, as the last of those that IPv4 has to one destination by one metric. IPv6 has one, of
    /// several ways.
    pub fn give_back_route(&self, route: &KeptRoute) -> Result<(), Error> {
        let KeptRoute(message) = route;
        if message.header.address_family == AddressFamily::Inet {
            self.wait("add", route, append(self.handle.clone(), message.clone()))
        } else {
            self.wait("add", route, self.handle.route().add(message.clone()).execute())
        }
    }
}

impl KeptAddress {
    /// Address and prefix length.
    pub fn network(&self) -> Option<IpNetwork> {
        address::network(&self.0)
    }
}

impl KeptRoute {
    /// Its ways through the link with index `index`, if it leads to hosts.
    pub fn through(&self, index: u32) -> Vec<Route> {
        route::routes_through(&self.0, index)
    }
}

impl fmt::Display for KeptRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("route")?;
        route::ways(&self.0).iter().filter_map(|(link, _)| *link).take(1).try_for_each(|link| {
            self.through(link).iter().take(1).try_for_each(|route| write!(f, " to {}", route.destination))
        })
    }
}

/// As `ip route append` does: only the very same route is in its way.
async fn append(mut handle: Handle, route: RouteMessage) -> Result<(), rtnetlink::Error> {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

fn kept_address(mut message: AddressMessage) -> Option<KeptAddress> {
    let mut flags = AddressFlags::empty();
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Protocol(AddressProtocol::LinkLocal) => return None,
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // RFC 4941: made anew from the one it belongs to. In IPv4 the same bit says that another of the subnet came first.
    let is_v6 = matches!(address::network(&message), Some(IpNetwork::V6(_)));
    if is_v6 && flags.contains(AddressFlags::Secondary) {
        return None;
    }
    flags -= AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Secondary;
    flags |= AddressFlags::Nodad;
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Flags(_)));
    message.attributes.push(AddressAttribute::Flags(flags));
    message.header.flags = AddressHeaderFlags::Nodad;
    Some(KeptAddress(message))
}

fn kept_route(mut message: RouteMessage, index: u32) -> Option<KeptRoute> {
    let learned = [RouteProtocol::Kernel, RouteProtocol::IcmpRedirect, RouteProtocol::Ra];
    let is_through = route::ways(&message).iter().any(|(link, _)| *link == Some(index));
    let is_local = route::table(&message) == u32::from(libc::RT_TABLE_LOCAL);
    if !is_through || is_local || learned.contains(&message.header.protocol) {
        return None;
    }
    // What the kernel says of a route's state it does not take back. A next-hop object goes with the link; what it stood
    // for is in the route too.
    let is_state = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::CacheInfo(_)
                | RouteAttribute::Expires(_)
                | RouteAttribute::MulticastExpires(_)
                | RouteAttribute::NhId(_)
        )
    };
    message.attributes.retain(|attribute| !is_state(attribute));
    for attribute in &mut message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            hops.iter_mut().for_each(|hop| hop.flags &= RouteNextHopFlags::Onlink);
        }
    }
    message.header.flags &= RouteFlags::Onlink | RouteFlags::Pervasive;
    Some(KeptRoute(message))
}

fn to_text(message: &impl Emitable) -> String {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn to_bytes(text: &str) -> Result<Vec<u8>, KeptError> {
    let wrong = || KeptError::Text(text.to_owned());
    if !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    digits.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<_>>().ok_or_else(wrong)
}

macro_rules! written_in_hexadecimal {
    ($kept:ident, $message:ident) => {
        impl From<$kept> for String {
            fn from($kept(message): $kept) -> Self {
                to_text(&message)
            }
        }

        impl FromStr for $kept {
            type Err = KeptError;

            fn from_str(text: &str) -> Result<Self, KeptError> {
                <$message as Parseable<_>>::parse(&*to_bytes(text)?).map(Self).map_err(KeptError::Message)
            }
        }

        impl TryFrom<String> for $kept {
            type Error = KeptError;

            fn try_from(text: String) -> Result<Self, KeptError> {
                text.parse()
            }
        }
    };
}

written_in_hexadecimal!(KeptAddress, AddressMessage);
written_in_hexadecimal!(KeptRoute, RouteMessage);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_back_and_nothing_else_is() {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(198, 51, 100, 0), 24)
            .gateway(Ipv4Addr::new(192, 0, 2, 1))
            .output_interface(7)
            .priority(77)
            .build();
        let route = KeptRoute(message);
        let text = String::from(route.clone());
        assert_eq!(text.parse::<KeptRoute>().unwrap(), route);
        assert_eq!(route.to_string(), "route to 198.51.100.0/24");
        for wrong in ["", "0", "zz", "+1", "0a0b", "é", &text[..30]] {
            assert!(wrong.parse::<KeptRoute>().is_err(), "{wrong}");
            assert!(wrong.parse::<KeptAddress>().is_err(), "{wrong}");
        }
    }
}
