//! DHCPv6 (RFC 8415) towards one client that has its addresses.
//!
//! As in DHCPv4 nothing is remembered: the first association gets all addresses, others are told that there are none.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message, MessageType, OptionCode, Status, StatusCode,
};
use dhcproto::{Decodable as _, Encodable as _};
use net_types::Mac;

use crate::guest::{Dhcpv6, Guest, seconds};

/// DUID-LL with an Ethernet address (RFC 8415, 11.4).
const DUID_LINK_LAYER_ETHERNET: [u8; 4] = [0, 3, 0, 1];
/// "Ask no further": there is no other server on this wire.
const HIGHEST_PREFERENCE: u8 = 255;
/// Where clients send to (`All_DHCP_Relay_Agents_and_Servers`).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Longest DUID, with its type, in bytes (RFC 8415, 11.1).
const MAX_DUID_BYTES: usize = 130;
/// What is told of names at most, so that every answer fits the least MTU of IPv6.
const MAX_SERVERS: usize = 3;
const MAX_SEARCH_BYTES: usize = 512;
/// Associations of one message that are answered; a guest's NIC needs one.
const MAX_ASSOCIATIONS: usize = 4;

/// The options that decide, each as long as it must be. The decoder believes the length of others: it subtracts from it
/// what they must have, and does not skip what they have too much.
fn sound(mut options: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some(([c0, c1, l0, l1], rest)) = options.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let Some((body, next)) = rest.split_at_checked(length) else { break };
        options = next;
        // RFC 8415, 21: what comes before the options inside.
        let fixed = match OptionCode::from(u16::from_be_bytes([*c0, *c1])) {
            OptionCode::ClientId | OptionCode::ServerId | OptionCode::ORO => length,
            OptionCode::RapidCommit if length == 0 => 0,
            OptionCode::IANA | OptionCode::IAPD => 12,
            OptionCode::IATA => 4,
            OptionCode::IAAddr => 24,
            OptionCode::IAPrefix => 25,
            _ => continue,
        };
        let Some((before, inside)) = body.split_at_checked(fixed) else { continue };
        let body = [before, &sound(inside)].concat();
        // No longer than it was.
        let length = u16::try_from(body.len()).unwrap_or_default();
        kept.extend([*c0, *c1]);
        kept.extend(length.to_be_bytes());
        kept.extend(body);
    }
    kept
}

/// The answer to a message that came to `to`; none if it needs none.
pub(crate) fn reply(guest: &Guest, v6: &Dhcpv6, to: Ipv6Addr, message: &[u8]) -> Option<Vec<u8>> {
    // Relays' messages are left out before anything nested in them is looked at.
    let kind = MessageType::from(*message.first()?);
    if to != SERVERS || !is_a_client_s(kind) {
        return None;
    }
    let (head, options) = message.split_at_checked(4)?;
    let request = Message::from_bytes(&[head, &sound(options)].concat()).ok()?;
    let own = server_id(guest.server_mac);
    let server = match request.opts().get(OptionCode::ServerId) {
        Some(DhcpOption::ServerId(id)) => Some(id),
        _ => None,
    };
    // RFC 8415, 16: who means one server says which, and who means any says none.
    let means_one = !matches!(
        kind,
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind | MessageType::InformationRequest
    );
    let is_for_us = if means_one { server == Some(&own) } else { server.is_none() };
    let client = request.opts().get(OptionCode::ClientId);
    if matches!(client, Some(DhcpOption::ClientId(id)) if id.len() > MAX_DUID_BYTES) {
        return None;
    }
    if !is_for_us || (client.is_none() && kind != MessageType::InformationRequest) {
        return None;
    }
    let commits = kind == MessageType::Solicit && request.opts().get(OptionCode::RapidCommit).is_some();
    let advertises = kind == MessageType::Solicit && !commits;
    let reply = if advertises { MessageType::Advertise } else { MessageType::Reply };
    let mut reply = Message::new_with_id(reply, request.xid());
    let options = reply.opts_mut();
    options.insert(DhcpOption::ServerId(own));
    client.into_iter().for_each(|client| options.insert(client.clone()));
    if commits {
        options.insert(DhcpOption::RapidCommit);
    }
    if advertises {
        options.insert(DhcpOption::Preference(HIGHEST_PREFERENCE));
    }
    match kind {
        MessageType::Confirm => options.insert(confirm(v6, request.opts())?),
        MessageType::Release | MessageType::Decline => {
            tracing::debug!("the guest gives {} back: {kind:?}", v6.address.addr());
            options.insert(status(Status::Success, "noted"));
        }
        MessageType::InformationRequest => add_parameters(options, guest, request.opts()),
        _ => {
            add_associations(options, v6, request.opts());
            add_parameters(options, guest, request.opts());
        }
    }
    reply.to_vec().ok()
}

/// A server's identity is its NIC's, which a restart does not change.
fn server_id(mac: Mac) -> Vec<u8> {
    [&DUID_LINK_LAYER_ETHERNET[..], &mac.octets()].concat()
}

fn is_a_client_s(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::Solicit
            | MessageType::Request
            | MessageType::Confirm
            | MessageType::Renew
            | MessageType::Rebind
            | MessageType::Release
            | MessageType::Decline
            | MessageType::InformationRequest
    )
}

/// Whether the addresses a client remembers are of this wire; none if it names none (RFC 8415, 18.3.3).
fn confirm(v6: &Dhcpv6, asked: &DhcpOptions) -> Option<DhcpOption> {
    let addresses: Vec<_> = associations(asked).flat_map(addresses).collect();
    if addresses.is_empty() {
        return None;
    }
    Some(match addresses.iter().all(|address| v6.addresses().any(|own| own.contains(address))) {
        true => status(Status::Success, "of this network"),
        false => status(Status::NotOnLink, "not of this network"),
    })
}

fn add_associations(options: &mut DhcpOptions, v6: &Dhcpv6, asked: &DhcpOptions) {
    let own: Vec<_> = v6.addresses().map(|net| net.addr()).collect();
    for (index, association) in associations(asked).enumerate() {
        let mut granted = DhcpOptions::new();
        // What the client has from elsewhere it cannot use here: no lifetime is left to it.
        for stale in addresses(association).filter(|stale| !own.contains(stale)).take(MAX_ASSOCIATIONS) {
            granted.insert(address(stale, 0));
        }
        // Last: the codec puts an option in front of its like, and clients read the first.
        if index == 0 {
            for own in own.iter().rev() {
                granted.insert(address(*own, seconds(v6.lease)));
            }
        } else {
            granted.insert(status(Status::NoAddrsAvail, "there are no more addresses"));
        }
        let lease = seconds(v6.lease);
        let (t1, t2) = if index == 0 { (lease / 2, lease / 5 * 4) } else { (0, 0) };
        options.insert(DhcpOption::IANA(IANA { id: association.id, t1, t2, opts: granted }));
    }
    let refused = |what| [status(what, "not here")].into_iter().collect();
    let others = asked.iter().filter_map(|option| match option {
        DhcpOption::IATA(IATA { id, .. }) => {
            Some(DhcpOption::IATA(IATA { id: *id, opts: refused(Status::NoAddrsAvail) }))
        }
        DhcpOption::IAPD(IAPD { id, .. }) => {
            Some(DhcpOption::IAPD(IAPD { id: *id, t1: 0, t2: 0, opts: refused(Status::NoPrefixAvail) }))
        }
        _ => None,
    });
    others.take(MAX_ASSOCIATIONS).for_each(|option| options.insert(option));
}

fn associations(asked: &DhcpOptions) -> impl Iterator<Item = &IANA> {
    let all = asked.iter().filter_map(|option| match option {
        DhcpOption::IANA(association) => Some(association),
        _ => None,
    });
    all.take(MAX_ASSOCIATIONS)
}

fn addresses(association: &IANA) -> impl Iterator<Item = Ipv6Addr> + '_ {
    association.opts.iter().filter_map(|option| match option {
        DhcpOption::IAAddr(address) => Some(address.addr),
        _ => None,
    })
}

fn address(addr: Ipv6Addr, lifetime: u32) -> DhcpOption {
    let opts = DhcpOptions::new();
    DhcpOption::IAAddr(IAAddr { addr, preferred_life: lifetime, valid_life: lifetime, opts })
}

/// What the client asked for; everything if it does not say.
fn add_parameters(options: &mut DhcpOptions, guest: &Guest, asked: &DhcpOptions) {
    let wants = |code| match asked.get(OptionCode::ORO) {
        Some(DhcpOption::ORO(list)) => list.opts.contains(&code),
        _ => true,
    };
    let servers: Vec<_> = guest.resolver.v6_servers().take(MAX_SERVERS).collect();
    if !servers.is_empty() && wants(OptionCode::DomainNameServers) {
        options.insert(DhcpOption::DomainNameServers(servers));
    }
    let search: Vec<_> =
        guest.resolver.search_within(MAX_SEARCH_BYTES).map(|domain| domain.name().clone()).collect();
    if !search.is_empty() && wants(OptionCode::DomainSearchList) {
        options.insert(DhcpOption::DomainSearchList(search));
    }
}

fn status(status: Status, message: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: message.to_owned() })
}

#[cfg(test)]
mod tests;
