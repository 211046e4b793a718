//! From a frame to the frame that answers it.

use std::net::Ipv6Addr;

use net_types::Mac;

use crate::frame::{self, Link, Question};
use crate::guest::{Dhcpv6, Guest, GuestError};
use crate::{advertisement, v4, v6};

/// Where frames to [`advertisement::ALL_NODES`] go (RFC 2464, 7).
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Answers one guest.
#[derive(Debug, Clone)]
pub struct Responder {
    guest: Guest,
}

impl Responder {
    /// A responder that tells what `guest` says.
    ///
    /// # Errors
    /// Names the first value that no guest can be told.
    pub fn new(guest: Guest) -> Result<Self, GuestError> {
        guest.check()?;
        Ok(Self { guest })
    }

    /// The answer to a frame from the guest's wire, as a frame. None if it is not the guest's, asks nothing of us, or
    /// is malformed.
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let Guest { mac, server_mac, v4, v6, .. } = &self.guest;
        match frame::question(frame, *mac)? {
            Question::Dhcpv4 { to, message } => {
                let v4 = v4.as_ref()?;
                let reply = v4::reply(&self.guest, v4, to, message)?;
                let link = Link { from: *server_mac, to: reply.to_mac };
                frame::dhcpv4(link, v4.server, reply.to, &reply.message)
            }
            Question::Dhcpv6 { from, to, message } => {
                let v6 = v6.as_ref()?;
                if !from.is_unicast_link_local() {
                    return None;
                }
                let reply = v6::reply(&self.guest, v6, to, message)?;
                frame::dhcpv6(Link { from: *server_mac, to: *mac }, v6.router, from, &reply)
            }
            Question::Router { from } => {
                let v6 = v6.as_ref()?;
                match from.is_unicast_link_local() {
                    true => self.advertise(v6, *mac, from),
                    // A guest without an address yet.
                    false if from.is_unspecified() => self.advertisement(),
                    false => None,
                }
            }
        }
    }

    /// An advertisement that nobody asked for, as a frame; none if there is no IPv6 to tell of.
    pub fn advertisement(&self) -> Option<Vec<u8>> {
        self.advertise(self.guest.v6.as_ref()?, ALL_NODES_MAC, advertisement::ALL_NODES)
    }

    fn advertise(&self, v6: &Dhcpv6, to_mac: Mac, to: Ipv6Addr) -> Option<Vec<u8>> {
        let link = Link { from: self.guest.server_mac, to: to_mac };
        frame::icmpv6(link, v6.router, to, advertisement::message(&self.guest, v6))
    }
}

#[cfg(test)]
pub(crate) mod tests;
