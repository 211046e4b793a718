//! Addresses for one guest: DHCPv4, DHCPv6 and router advertisements on the guest's own wire.
//!
//! A [`Guest`] says what there is to tell. A [`Responder`] turns a frame from the guest into the frame that answers it:
//! a pure function, so it needs no socket to be tested, and a restart loses nothing. A [`Server`] is a thin packet
//! socket around it. The VM's supervisor runs one per NIC, or `masquerade serve` in a pod.
//!
//! Only the guest's own MAC is answered, and only what it needs: no relays, no BOOTP, no other hosts' addresses. A
//! family without addresses stays silent, for that network has its own server. Frames come from a hostile guest:
//! what is malformed gets no answer, each costs a bounded amount of work, and nothing is remembered.
//!
//! Deliberately absent: pools and leases (a guest's addresses are its own), forwarding, and verifying checksums (a
//! guest may leave them to its virtual NIC).

mod advertisement;
mod domain;
mod frame;
mod gateway;
mod guest;
mod resolv_conf;
mod responder;
mod server;
mod v4;
mod v6;

pub use domain::{DomainName, DomainNameError};
pub use gateway::{GatewayError, behind};
pub use guest::{Dhcpv4, Dhcpv6, Extra, Guest, GuestError, KUBEVIRT_LEASE, MAX_FURTHER, Resolver, Router};
pub use resolv_conf::Skipped;
pub use responder::Responder;
pub use server::{Pending, Server, ServerError};
