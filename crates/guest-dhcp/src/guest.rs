//! What there is to tell a guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use net_types::Mac;

use crate::domain::DomainName;

/// The lease that KubeVirt gives, 999 days: whoever moves a guest's address tells the guest, not its lease.
pub const KUBEVIRT_LEASE: Duration = Duration::from_secs(999 * 86_400);

/// One NIC of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The guest's address: whoever else asks gets no answer.
    pub mac: Mac,
    /// Whom answers come from: the bridge's or tap's address.
    pub server_mac: Mac,
    /// MTU in bytes; none if the guest shall keep its own.
    pub mtu: Option<u16>,
    /// The guest's host name, a single label or a whole name.
    pub host_name: Option<String>,
    /// How the guest resolves names.
    pub resolver: Resolver,
    /// IPv4; none leaves the guest to whoever else serves its network.
    pub v4: Option<Dhcpv4>,
    /// IPv6; none leaves the guest to whoever else serves its network.
    pub v6: Option<Dhcpv6>,
}

/// Name servers and domains, both in order of preference.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolver {
    /// Name servers of either family; a guest is told those of each family by that family's protocol.
    pub servers: Vec<IpAddr>,
    /// Domains to search; the first is also the guest's own.
    pub search: Vec<DomainName>,
}

impl Resolver {
    /// The domains, from the first, that take up to `room` bytes uncompressed. A long list is cut, not left out.
    pub(crate) fn search_within(&self, mut room: usize) -> impl Iterator<Item = &DomainName> {
        self.search.iter().take_while(move |domain| {
            let fits = room.checked_sub(domain.wire().len());
            room = fits.unwrap_or(0);
            fits.is_some()
        })
    }

    /// The name servers that IPv6 reaches.
    pub(crate) fn v6_servers(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        self.servers.iter().filter_map(|server| match server {
            IpAddr::V6(server) => Some(*server),
            IpAddr::V4(_) => None,
        })
    }
}

/// What DHCPv4 says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcpv4 {
    /// The guest's address, with the subnet's prefix length.
    pub address: Ipv4Net,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Who this server says it is. On a wire where the host has no address, any that no host has will do.
    pub server: Ipv4Addr,
    /// Further routes: destination, and gateway or 0.0.0.0 for a destination on the wire.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// How long the address may be used without asking again; rounded down to seconds, at most 136 years.
    pub lease: Duration,
    /// What a VM's manifest adds (`dhcpOptions`).
    pub extra: Extra,
}

/// `dhcpOptions` of a KubeVirt interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extra {
    /// `bootFileName` (option 67).
    pub boot_file: Option<String>,
    /// `tftpServerName` (option 66).
    pub tftp_server: Option<String>,
    /// `ntpServers` (option 42).
    pub ntp_servers: Vec<Ipv4Addr>,
    /// `privateOptions`: codes 224 to 254, each with its value.
    pub private: Vec<(u8, String)>,
}

/// What DHCPv6 and router advertisements say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dhcpv6 {
    /// The guest's address, with the length of the prefix that is on the wire.
    pub address: Ipv6Net,
    /// What it has besides, at most [`MAX_FURTHER`].
    pub further: Vec<Ipv6Net>,
    /// The link-local address answers come from. A guest takes it as its router's.
    pub router: Ipv6Addr,
    /// Who has that address.
    pub role: Router,
    /// As [`Dhcpv4::lease`].
    pub lease: Duration,
}

/// Most further addresses that DHCPv6 tells of: all of them, and their prefixes, are in one packet.
pub const MAX_FURTHER: usize = 15;

impl Dhcpv6 {
    /// All addresses, the guest's first.
    pub(crate) fn addresses(&self) -> impl DoubleEndedIterator<Item = Ipv6Net> + '_ {
        [self.address].into_iter().chain(self.further.iter().copied())
    }
}

/// Who the router is that a guest hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Router {
    /// The host, which is the guest's gateway.
    Host,
    /// The host, which is no gateway.
    NoGateway,
    /// The guest's gateway, a host of its own on the wire: the guest finds it there by itself.
    Elsewhere,
}

/// Why a [`Guest`] cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// An address that is no host's.
    #[error("{0} is no address a guest can have")]
    Address(IpAddr),
    /// Answers must come from a link-local address.
    #[error("the router's address {0} is not link-local")]
    Router(Ipv6Addr),
    /// Not an option of one's own.
    #[error("private option {0}; allowed: 224 to 254")]
    PrivateOption(u8),
    /// An option carries at most 255 bytes here.
    #[error("{what} has {length} bytes; allowed: 1 to 255")]
    Length {
        /// Which text.
        what: &'static str,
        /// Its length.
        length: usize,
    },
    /// More than one packet tells of.
    #[error("{0} further IPv6 addresses; allowed: 0 to {MAX_FURTHER}")]
    Further(usize),
    /// Less than either protocol allows.
    #[error("an MTU of {0} bytes; allowed: 68 or more, with IPv6 1280 or more")]
    Mtu(u16),
    /// Not one host's.
    #[error("{0} is no unicast MAC address")]
    Mac(Mac),
}

impl Guest {
    /// Checks what the types leave open.
    pub(crate) fn check(&self) -> Result<(), GuestError> {
        let Self { mac, server_mac, mtu, host_name, resolver: _, v4, v6 } = self;
        for mac in [mac, server_mac] {
            if !mac.is_unicast() {
                return Err(GuestError::Mac(*mac));
            }
        }
        let least = if v6.is_some() { 1280 } else { 68 };
        if let Some(mtu) = mtu.filter(|mtu| *mtu < least) {
            return Err(GuestError::Mtu(mtu));
        }
        text("the host name", host_name.as_deref())?;
        if let Some(v4) = v4 {
            check_v4(v4)?;
        }
        v6.as_ref().map_or(Ok(()), check_v6)
    }
}

fn check_v6(v6: &Dhcpv6) -> Result<(), GuestError> {
    for address in v6.addresses().map(|net| net.addr()) {
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(GuestError::Address(address.into()));
        }
    }
    if v6.further.len() > MAX_FURTHER {
        return Err(GuestError::Further(v6.further.len()));
    }
    if !v6.router.is_unicast_link_local() {
        return Err(GuestError::Router(v6.router));
    }
    Ok(())
}

fn check_v4(v4: &Dhcpv4) -> Result<(), GuestError> {
    for address in [v4.address.addr(), v4.server] {
        if address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast()
        {
            return Err(GuestError::Address(address.into()));
        }
    }
    let Extra { boot_file, tftp_server, ntp_servers: _, private } = &v4.extra;
    text("bootFileName", boot_file.as_deref())?;
    text("tftpServerName", tftp_server.as_deref())?;
    for (code, value) in private {
        if !(224..=254).contains(code) {
            return Err(GuestError::PrivateOption(*code));
        }
        text("a private option", Some(value))?;
    }
    Ok(())
}

fn text(what: &'static str, text: Option<&str>) -> Result<(), GuestError> {
    match text.map(str::len) {
        Some(length) if !(1..=255).contains(&length) => Err(GuestError::Length { what, length }),
        _ => Ok(()),
    }
}

/// A time as both protocols write it; all ones would mean "for ever".
pub(crate) fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}
