//! Router advertisements (RFC 4861, RFC 8106): the only way a guest learns an IPv6 default route. DHCPv6 has none.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::Ipv6Net;

use crate::domain::DomainName;
use crate::guest::{Dhcpv6, Guest, Router};

const ROUTER_ADVERTISEMENT: u8 = 134;
/// Option types.
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const RECURSIVE_DNS_SERVER: u8 = 25;
const DNS_SEARCH_LIST: u8 = 31;
/// Addresses by DHCPv6 (M), and other configuration too (O).
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;
/// The prefix is on the wire (L). Not autonomous (A): the guest's address is the one we forward to.
const ON_LINK: u8 = 0x80;
const HOP_LIMIT: u8 = 64;
/// How long a guest may rely on it without hearing again: the longest the RFC allows, so that a server that is started
/// anew is not missed. In seconds.
const LIFETIME: u16 = 9000;
/// Between unasked ones. The RFC's longest is 1800 s; a guest that changed its mind hears sooner.
pub(crate) const INTERVAL: Duration = Duration::from_secs(600);
/// No advertisement is longer than the least MTU of IPv6 less the packet's header, in bytes.
const MAX_BYTES: usize = 1280 - 40;
/// More name servers than that no resolver asks (resolv.conf(5), MAXNS).
const MAX_SERVERS: usize = 3;
/// Options count their length in these.
const UNIT: usize = 8;

/// Everybody on the wire.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The message; its checksum is for the frame to write.
pub(crate) fn message(guest: &Guest, v6: &Dhcpv6) -> Vec<u8> {
    let lifetime = if v6.role == Router::NoGateway { 0 } else { LIFETIME };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, MANAGED | OTHER];
    message.extend(lifetime.to_be_bytes());
    // Reachable time and retransmission timer are the guest's own affair.
    message.extend([0; 8]);
    if v6.role != Router::Elsewhere {
        option(&mut message, SOURCE_LINK_LAYER_ADDRESS, &guest.server_mac.octets());
    }
    if let Some(mtu) = guest.mtu {
        option(&mut message, MTU, &[&[0, 0][..], &u32::from(mtu).to_be_bytes()].concat());
    }
    for prefix in v6.addresses().map(|address| address.trunc()).collect::<BTreeSet<_>>() {
        option(&mut message, PREFIX_INFORMATION, &prefix_information(prefix));
    }
    let lifetime = u32::from(LIFETIME).to_be_bytes();
    let servers: Vec<u8> =
        guest.resolver.v6_servers().take(MAX_SERVERS).flat_map(|server| server.octets()).collect();
    if !servers.is_empty() {
        option(&mut message, RECURSIVE_DNS_SERVER, &[&[0, 0][..], &lifetime, &servers].concat());
    }
    let room = MAX_BYTES.saturating_sub(message.len() + UNIT);
    let search: Vec<u8> = guest.resolver.search_within(room).flat_map(DomainName::wire).collect();
    if !search.is_empty() {
        option(&mut message, DNS_SEARCH_LIST, &[&[0, 0][..], &lifetime, &search].concat());
    }
    message
}

/// For ever, as far as the prefix goes: it leaves with the guest's link.
fn prefix_information(prefix: Ipv6Net) -> Vec<u8> {
    let mut body = vec![prefix.prefix_len(), ON_LINK];
    body.extend([0xff; 8]);
    body.extend([0; 4]);
    body.extend(prefix.network().octets());
    body
}

/// Type, length in units, and the body, filled up with zeros.
fn option(message: &mut Vec<u8>, kind: u8, body: &[u8]) {
    let units = (2 + body.len()).div_ceil(UNIT);
    // The bodies above are shorter than an advertisement, which has fewer than 255 units.
    let Ok(length) = u8::try_from(units) else { return };
    let end = message.len() + units * UNIT;
    message.extend([kind, length]);
    message.extend(body);
    message.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::tests::guest;

    #[test]
    fn a_guest_learns_its_default_route_its_mtu_and_its_resolver() {
        let guest = guest();
        let message = message(&guest, guest.v6.as_ref().unwrap());
        assert_eq!(message.len() % UNIT, 0);
        assert_eq!(message[..8], [134, 0, 0, 0, 64, 0xc0, 0x23, 0x28]);
        let kinds: Vec<_> = options(&message).map(|option| option[0]).collect();
        assert_eq!(kinds, [1, 5, 3, 25, 31]);
    }

    fn options(message: &[u8]) -> impl Iterator<Item = &[u8]> {
        let mut rest = &message[16..];
        std::iter::from_fn(move || {
            let (option, next) = rest.split_at(usize::from(*rest.get(1)?) * UNIT);
            rest = next;
            Some(option)
        })
    }

    #[test]
    fn a_long_search_list_is_cut_not_the_advertisement_lost() {
        let mut guest = guest();
        let name = vec!["a".repeat(60); 4].join(".");
        guest.resolver.search = (0..32).map(|number| format!("n{number}.{name}").parse().unwrap()).collect();
        let v6 = guest.v6.clone().unwrap();
        let message = message(&guest, &v6);
        assert!(message.len() <= MAX_BYTES, "{}", message.len());
        assert!(message.windows(3).any(|bytes| bytes == [2, b'n', b'1']), "some domains are told");
    }

    #[test]
    fn each_prefix_of_several_addresses_is_on_the_wire() {
        let mut guest = guest();
        let v6 = guest.v6.as_mut().unwrap();
        v6.further = ["fd10:0:2::3/120", "2001:db8::7/64"].map(|net| net.parse().unwrap()).to_vec();
        let message = message(&guest, guest.v6.as_ref().unwrap());
        let prefixes: Vec<_> = options(&message)
            .filter(|option| option[0] == PREFIX_INFORMATION)
            .map(|option| {
                (option[2], Ipv6Addr::from(<[u8; 16]>::try_from(&option[16..]).unwrap()).to_string())
            })
            .collect();
        assert_eq!(prefixes, [(64, "2001:db8::".to_owned()), (120, "fd10:0:2::".to_owned())]);
    }

    #[test]
    fn the_most_that_can_be_told_fits_one_packet() {
        let mut guest = guest();
        let v6 = guest.v6.as_mut().unwrap();
        v6.further =
            (1..=crate::MAX_FURTHER).map(|net| format!("2001:db8:{net}::7/64").parse().unwrap()).collect();
        guest.check().unwrap();
        let message = message(&guest, guest.v6.as_ref().unwrap());
        assert!(message.len() <= MAX_BYTES, "{}", message.len());
        assert_eq!(options(&message).filter(|option| option[0] == DNS_SEARCH_LIST).count(), 1);
        let v6 = guest.v6.as_mut().unwrap();
        v6.further.push("2001:db8::7/64".parse().unwrap());
        assert_eq!(guest.check(), Err(crate::GuestError::Further(16)));
    }

    #[test]
    fn who_is_no_router_says_so() {
        let mut guest = guest();
        guest.v6.as_mut().unwrap().role = Router::NoGateway;
        let message = message(&guest, guest.v6.as_ref().unwrap());
        assert_eq!(message[6..8], [0, 0]);
    }

    #[test]
    fn a_gateway_elsewhere_is_to_be_asked_for_its_own_link_layer_address() {
        let mut guest = guest();
        guest.v6.as_mut().unwrap().role = Router::Elsewhere;
        let message = message(&guest, guest.v6.as_ref().unwrap());
        assert_eq!(message[6..8], LIFETIME.to_be_bytes());
        assert_ne!(message[16], SOURCE_LINK_LAYER_ADDRESS);
    }
}
