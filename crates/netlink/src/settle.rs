//! Waiting for IPv6 addresses to become usable.

use std::time::Duration;

use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::{AddressHeaderFlags, AddressMessage};
use netns::NetNs;
use rtnetlink::MulticastGroup;

use crate::{Error, Netlink};

/// How a wait for duplicate address detection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Every address is usable.
    Usable,
    /// Somebody else has one of them.
    Duplicate,
    /// The time was up first.
    TimedOut,
}

impl Netlink {
    /// Waits until duplicate address detection is done for all addresses of a link in `namespace`, woken by the
    /// kernel's notifications.
    pub fn settle_addresses(namespace: &NetNs, index: u32, limit: Duration) -> Result<Settled, Error> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Open)?;
        let inside = runtime.enter();
        let (connection, handle, mut notifications) = namespace
            .run(|| rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv6Ifaddr]))?
            .map_err(Error::Open)?;
        drop(inside);
        runtime.spawn(connection);
        let settled = async {
            loop {
                let request = handle.address().get().set_link_index_filter(index);
                let addresses: Vec<_> = request.execute().try_collect().await?;
                if let Some(settled) = state(&addresses) {
                    return Ok(settled);
                }
                // What changed is in the next dump; that something did is enough.
                notifications.next().await;
            }
        };
        let outcome = runtime.block_on(async { tokio::time::timeout(limit, settled).await });
        outcome.unwrap_or(Ok(Settled::TimedOut)).map_err(|error: rtnetlink::Error| {
            Error::request("wait for addresses of link with index", index.to_string(), error)
        })
    }
}

fn state(addresses: &[AddressMessage]) -> Option<Settled> {
    let any = |flag| addresses.iter().any(|address| address.header.flags.contains(flag));
    if any(AddressHeaderFlags::Dadfailed) {
        Some(Settled::Duplicate)
    } else if any(AddressHeaderFlags::Tentative) {
        None
    } else {
        Some(Settled::Usable)
    }
}
