//! DHCPv4 (RFC 2131) towards one client with one address.
//!
//! There is nothing to remember: whether a request is right follows from the request. A client that asks to keep an
//! address from elsewhere is told so at once (DHCPNAK); without that, a moved Windows guest sits on a stale address.

mod options;

use std::net::Ipv4Addr;

use dhcproto::Encodable as _;
use dhcproto::v4::borrowed::Message as Request;
use dhcproto::v4::{DhcpOption, HType, Message, MessageType, Opcode};
use net_types::Mac;

use crate::guest::{Dhcpv4, Guest};
use options::{Answer, Asked};

/// Least length of a message in bytes: BOOTP's, which some clients insist on (RFC 1542, 2.1).
const BOOTP_BYTES: usize = 300;
/// Hardware addresses of Ethernet have this length.
const MAC_BYTES: u8 = 6;

/// A message, and whom it goes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) to: Ipv4Addr,
    pub(crate) to_mac: Mac,
    pub(crate) message: Vec<u8>,
}

/// What the client is up to.
enum Verdict {
    /// "You may have this address."
    Offer,
    /// "You have this address."
    Ack,
    /// "You have an address of your own; here is the rest."
    Inform,
    /// "You cannot have that address here."
    Nak,
}

/// Answers a message that came to `to`; none if it needs no answer, or is nobody's or somebody else's.
pub(crate) fn reply(guest: &Guest, v4: &Dhcpv4, to: Ipv4Addr, message: &[u8]) -> Option<Reply> {
    if to != Ipv4Addr::BROADCAST && to != v4.server {
        return None;
    }
    let request = Request::new(message).ok()?;
    let is_the_guest_s = request.opcode() == Opcode::BootRequest
        && request.htype() == HType::Eth
        && request.hlen() == MAC_BYTES
        && request.chaddr() == guest.mac.octets()
        // There is no relay between us and the guest.
        && request.giaddr().is_unspecified()
        && request.hops() == 0;
    if !is_the_guest_s {
        return None;
    }
    let asked = Asked::read(&request)?;
    let verdict = verdict(v4, &request, &asked)?;
    answer(guest, v4, &request, &asked, &verdict)
}

fn verdict(v4: &Dhcpv4, request: &Request<'_>, asked: &Asked) -> Option<Verdict> {
    let own = v4.address.addr();
    match asked.kind {
        MessageType::Discover => Some(Verdict::Offer),
        MessageType::Request => {
            if asked.server.is_some_and(|server| server != v4.server) {
                // It took another server's offer.
                return None;
            }
            // A client that renews has the address already and does not ask for it.
            let wanted = asked.address.unwrap_or(request.ciaddr());
            if wanted.is_unspecified() {
                return None;
            }
            Some(if wanted == own { Verdict::Ack } else { Verdict::Nak })
        }
        MessageType::Inform if !request.ciaddr().is_unspecified() => Some(Verdict::Inform),
        MessageType::Decline => {
            tracing::warn!("the guest says that {own} is in use by somebody else on its wire");
            None
        }
        MessageType::Release => {
            tracing::debug!("the guest gives {own} back");
            None
        }
        _ => None,
    }
}

fn answer(
    guest: &Guest,
    v4: &Dhcpv4,
    request: &Request<'_>,
    asked: &Asked,
    verdict: &Verdict,
) -> Option<Reply> {
    let (kind, own) = match verdict {
        Verdict::Offer => (MessageType::Offer, v4.address.addr()),
        Verdict::Ack => (MessageType::Ack, v4.address.addr()),
        Verdict::Inform => (MessageType::Ack, Ipv4Addr::UNSPECIFIED),
        Verdict::Nak => (MessageType::Nak, Ipv4Addr::UNSPECIFIED),
    };
    let ciaddr = if matches!(verdict, Verdict::Ack | Verdict::Inform) {
        request.ciaddr()
    } else {
        Ipv4Addr::UNSPECIFIED
    };
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(request.xid(), ciaddr, own, none, none, &guest.mac.octets());
    message.set_opcode(Opcode::BootReply).set_flags(request.flags());
    let mut answer = Answer::new(kind, v4.server, asked, guest.mtu);
    match verdict {
        Verdict::Nak => answer.require(DhcpOption::Message("this address is not of this network".to_owned())),
        Verdict::Inform => answer.add_parameters(guest, v4, asked),
        Verdict::Offer | Verdict::Ack => {
            answer.require(DhcpOption::AddressLeaseTime(crate::guest::seconds(v4.lease)));
            answer.add_parameters(guest, v4, asked);
        }
    }
    message.set_opts(answer.into_options());
    let (to, to_mac) = destination(guest, request, verdict, own);
    let mut message = message.to_vec().ok()?;
    message.resize(message.len().max(BOOTP_BYTES), 0);
    Some(Reply { to, to_mac, message })
}

/// RFC 2131, 4.1: by the address the client has, else to everybody if it says it must, else to the one it gets.
fn destination(guest: &Guest, request: &Request<'_>, verdict: &Verdict, own: Ipv4Addr) -> (Ipv4Addr, Mac) {
    let everybody = (Ipv4Addr::BROADCAST, Mac::BROADCAST);
    match verdict {
        Verdict::Nak => everybody,
        _ if !request.ciaddr().is_unspecified() => (request.ciaddr(), guest.mac),
        _ if request.flags().broadcast() => everybody,
        _ => (own, guest.mac),
    }
}

#[cfg(test)]
pub(crate) mod tests;
