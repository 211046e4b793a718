//! Tells one guest its addresses: DHCPv4, DHCPv6 and router advertisements on the guest's own wire.
//!
//! Made for a NIC on the pod network by [`super::pod_nic`], and for one on a bridge by [`super::bridged`]; it answers
//! beside every run of the guest.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use guest_dhcp::{Extra, Guest, GuestError, Pending, Resolver, Responder, Server, ServerError};
use net_types::IfName;
use netns::{NetNs, NetNsError};
use tokio::time::sleep;
use vm_api::manifest::DhcpOptions;

use crate::ready::Ready;

/// How long a guest waits that asks for more than [`Pending::Nothing`] at once: it decides how much it asks, not how much of
/// the supervisor's time that takes.
const FLOOD_PAUSE: Duration = Duration::from_millis(10);

/// What there is to tell one guest, and where.
#[derive(Debug)]
pub(super) struct Teller {
    link: IfName,
    responder: Responder,
}

/// Why a guest is not told its addresses any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellerError {
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("telling the guest its addresses")]
    Server(#[from] ServerError),
    #[error("cannot wait for the guest")]
    Wait(#[source] io::Error),
}

impl Teller {
    /// Tells `guest` on `link` what it asks.
    pub(super) fn new(link: IfName, guest: Guest) -> Result<Self, GuestError> {
        Ok(Self { link, responder: Responder::new(guest)? })
    }

    /// Answers the guest until the link is gone.
    pub(super) fn serve(
        &self,
        netns: &NetNs,
    ) -> Result<impl Future<Output = TellerError> + use<>, TellerError> {
        let server = netns.run(|| Server::open(&self.link, self.responder.clone()))??;
        // A descriptor of its own to wait for: the server is changed while it serves.
        let ready = server.as_fd().try_clone_to_owned().and_then(Ready::new).map_err(TellerError::Wait)?;
        Ok(async move {
            match answer(server, &ready).await {
                Ok(never) => never,
                Err(error) => error,
            }
        })
    }
}

async fn answer<T>(mut server: Server, ready: &Ready<std::os::fd::OwnedFd>) -> Result<T, TellerError> {
    loop {
        match server.serve_pending()? {
            Pending::Perhaps => sleep(FLOOD_PAUSE).await,
            Pending::Nothing => tokio::select! {
                woken = ready.readable() => woken.map_err(TellerError::Wait)?,
                () = sleep(server.timeout()) => {}
            },
        }
    }
}

/// How the guest of `interface` resolves names, as far as that can be told.
pub(super) fn resolver(interface: &str, resolv_conf: &str) -> Resolver {
    let (resolver, skipped) = Resolver::from_resolv_conf(resolv_conf);
    for guest_dhcp::Skipped { line, word, reason } in skipped {
        tracing::warn!(interface, "resolv.conf, line {line}: {word:?} is not told to the guest: {reason}");
    }
    if resolver.servers.is_empty() {
        tracing::warn!(interface, "there is no name server to tell the guest of");
    }
    resolver
}

/// What DHCPv4 tells besides the addresses.
pub(super) fn extra(options: &DhcpOptions) -> Extra {
    let DhcpOptions { boot_file_name, tftp_server_name, ntp_servers, private } = options.clone();
    Extra { boot_file: boot_file_name, tftp_server: tftp_server_name, ntp_servers, private }
}
