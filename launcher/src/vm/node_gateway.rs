//! The node itself as a guest's IPv6 gateway: by which link-local address the guest finds it.
//!
//! Asked when a chain was run, in the node's network namespace. An advertisement names a router by such an address only.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cni::Success;
use ipnetwork::IpNetwork;
use netlink::{Error, Events, Netlink};

/// How long a bridge may take to get its link-local address: it comes with the carrier, and that with the first port.
const LIMIT: Duration = Duration::from_secs(10);

/// The link-local address of the interface of the node's, among those of the chain's result, that has the address `gateway`.
pub(crate) fn link_local(success: &Success, gateway: Ipv6Addr) -> Result<Option<Ipv6Addr>, Error> {
    let events = Events::of_addresses()?;
    let node = Netlink::open()?;
    for interface in success.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let Some(link) = node.link_by_name(&interface.name)? else { continue };
        let addresses =
            || Ok::<_, Error>(node.addresses(link.index)?.into_iter().map(|own: IpNetwork| own.ip()));
        if addresses()?.any(|own| own == IpAddr::from(gateway)) {
            return events.until(LIMIT, || Ok(addresses()?.find_map(of_link)));
        }
    }
    Ok(None)
}

fn of_link(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(own) if own.is_unicast_link_local() => Some(own),
        _ => None,
    }
}
