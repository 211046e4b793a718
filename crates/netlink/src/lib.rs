//! Typed route-netlink: one function per verb, blocking.
//!
//! A [`Netlink`] is a socket of the network namespace the thread was in when it was opened ([`Netlink::open_in`]
//! picks one), and stays there. Every verb is one request and its acknowledgement; nothing is cached. What the
//! kernel reports comes back as plain values ([`Link`], [`PortVlan`] …), what it refuses as an [`Error`] that
//! names the verb, the object and the errno.
//!
//! [`Events`] is for those who wait until something is so. Callers decide order and undo. Deliberately absent:
//! nftables, and of traffic control all but [`Netlink::add_redirect`].

mod address;
mod bridge;
mod error;
mod events;
mod kept;
mod link;
mod port_vlans;
mod question;
mod redirect;
mod route;
mod settle;
mod sriov;

use std::future::Future;

use netns::NetNs;
use rtnetlink::Handle;

pub use bridge::{
    ALL_GROUPS, BridgeInfo, NewBridge, PortFlag, PortInfo, PortVlan, PortVlans, VlanRange, has_ports,
};
pub use error::Error;
pub use events::Events;
pub use kept::{KeptAddress, KeptError, KeptRoute};
pub use link::{Link, NewVeth, Peer, TapInfo};
pub use port_vlans::{port_vlans, search_port_vlans};
pub use route::{Route, RouteOptions};
pub use settle::Settled;
pub use sriov::{Vf, VfLinkState, VfRate, VfVlan, VlanProtocol, virtual_functions};

/// An open route-netlink socket.
#[derive(Debug)]
pub struct Netlink {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Open)?;
        let inside = runtime.enter();
        // Nothing is subscribed to, so the channel of unsolicited messages is not needed.
        let (connection, handle, _unsolicited) = rtnetlink::new_connection().map_err(Error::Open)?;
        drop(inside);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    /// A socket in `namespace`.
    pub fn open_in(namespace: &NetNs) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Waits for `request`, naming it if it fails.
    fn wait<T>(
        &self,
        verb: &'static str,
        object: impl ToString,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, Error> {
        self.runtime.block_on(request).map_err(|error| Error::request(verb, object.to_string(), error))
    }
}
