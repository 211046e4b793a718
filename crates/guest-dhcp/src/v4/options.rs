//! Which options an answer carries: what the protocol requires, then what the client asked for, in its order, as long
//! as there is room (RFC 2132, RFC 3396, RFC 3442).

use std::net::{IpAddr, Ipv4Addr};

use dhcproto::Encodable as _;
use dhcproto::v4::borrowed::Message as Request;
use dhcproto::v4::{DhcpOption, DhcpOptions, MessageType, OptionCode, UnknownOption};
use ipnet::Ipv4Net;

use crate::guest::{Dhcpv4, Guest, seconds};

/// The message every client must take, in bytes with IP and UDP headers (RFC 2131, 2), and those headers.
const LEAST_MAX_BYTES: u16 = 576;
const HEADER_BYTES: u16 = 28;
/// What stands before the options, with the magic cookie, and the end mark after them.
const FIXED_BYTES: usize = 240;
const END_BYTES: usize = 1;
/// Ethernet's MTU: more than that arrives in pieces, or not at all.
const ETHERNET_MTU: u16 = 1500;

/// What a client gets that does not say what it wants.
const DEFAULTS: [OptionCode; 8] = [
    OptionCode::SubnetMask,
    OptionCode::ClasslessStaticRoute,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::InterfaceMtu,
    OptionCode::Hostname,
    OptionCode::DomainName,
    OptionCode::DomainSearch,
];

/// What a client's options say.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: MessageType,
    /// The address it wants.
    pub(super) address: Option<Ipv4Addr>,
    /// The server it means.
    pub(super) server: Option<Ipv4Addr>,
    /// How it calls itself, which an answer repeats (RFC 6842).
    client: Option<Vec<u8>>,
    /// What it wants to know.
    parameters: Option<Vec<OptionCode>>,
    /// The longest message it takes, with headers.
    max_bytes: u16,
}

impl Asked {
    /// None if it is BOOTP, or not even that.
    pub(super) fn read(request: &Request<'_>) -> Option<Self> {
        let address = |code| {
            let bytes: Option<[u8; 4]> = option(request, code)?.try_into().ok();
            bytes.map(Ipv4Addr::from)
        };
        let kind = option(request, OptionCode::MessageType)?;
        let &[kind] = kind.as_slice() else { return None };
        let max_bytes = option(request, OptionCode::MaxMessageSize)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(LEAST_MAX_BYTES, u16::from_be_bytes);
        Some(Self {
            kind: kind.into(),
            address: address(OptionCode::RequestedIpAddress),
            server: address(OptionCode::ServerIdentifier),
            client: option(request, OptionCode::ClientIdentifier).filter(|id| id.len() <= 255),
            parameters: option(request, OptionCode::ParameterRequestList)
                .map(|codes| codes.into_iter().take(255).map(OptionCode::from).collect()),
            max_bytes: max_bytes.clamp(LEAST_MAX_BYTES, ETHERNET_MTU),
        })
    }
}

/// The options of an answer, and what room is left.
pub(super) struct Answer {
    options: DhcpOptions,
    room: usize,
}

impl Answer {
    /// With what every answer carries.
    pub(super) fn new(kind: MessageType, server: Ipv4Addr, asked: &Asked, mtu: Option<u16>) -> Self {
        // The guest's link may carry less than the guest would take.
        let packet = asked.max_bytes.min(mtu.unwrap_or(ETHERNET_MTU)).max(LEAST_MAX_BYTES);
        let room = usize::from(packet - HEADER_BYTES) - FIXED_BYTES - END_BYTES;
        let mut answer = Self { options: DhcpOptions::new(), room };
        answer.require(DhcpOption::MessageType(kind));
        answer.require(DhcpOption::ServerIdentifier(server));
        if let Some(client) = &asked.client {
            answer.require(DhcpOption::ClientIdentifier(client.clone()));
        }
        answer
    }

    /// Adds an option that the protocol requires.
    pub(super) fn require(&mut self, option: DhcpOption) {
        self.room = self.room.saturating_sub(length(&option));
        self.options.insert(option);
    }

    /// Adds what the client wants to know and we do.
    pub(super) fn add_parameters(&mut self, guest: &Guest, v4: &Dhcpv4, asked: &Asked) {
        let wanted = asked.parameters.as_deref().unwrap_or(&DEFAULTS);
        for code in wanted.iter().filter_map(|code| parameter(guest, v4, *code)) {
            if !self.options.contains(OptionCode::from(&code)) {
                self.add(code);
            }
        }
    }

    fn add(&mut self, mut option: DhcpOption) {
        // The longest list that fits is better than none.
        while length(&option) > self.room
            && let DhcpOption::DomainSearch(names) = &mut option
            && names.len() > 1
        {
            names.pop();
        }
        if length(&option) <= self.room {
            self.require(option);
        } else {
            tracing::debug!("no room left for option {:?}", OptionCode::from(&option));
        }
    }

    pub(super) fn into_options(self) -> DhcpOptions {
        self.options
    }
}

/// Bytes on the wire, in as many pieces as it takes.
fn length(option: &DhcpOption) -> usize {
    // What cannot be written has no room.
    option.to_vec().map_or(usize::MAX, |bytes| bytes.len())
}

/// The bytes of an option, all pieces joined.
fn option(request: &Request<'_>, code: OptionCode) -> Option<Vec<u8>> {
    request.opts().find(|option| option.code() == code).map(|option| option.data().to_vec())
}

/// What we know under a code.
fn parameter(guest: &Guest, v4: &Dhcpv4, code: OptionCode) -> Option<DhcpOption> {
    let Guest { mac: _, server_mac: _, mtu, host_name, resolver, v4: _, v6: _ } = guest;
    let lease = seconds(v4.lease);
    match code {
        OptionCode::SubnetMask => Some(DhcpOption::SubnetMask(v4.address.netmask())),
        OptionCode::BroadcastAddr => Some(DhcpOption::BroadcastAddr(v4.address.broadcast())),
        OptionCode::Router => v4.gateway.map(|gateway| DhcpOption::Router(vec![gateway])),
        OptionCode::ClasslessStaticRoute => some(routes(v4)).map(DhcpOption::ClasslessStaticRoute),
        OptionCode::DomainNameServer => some(servers(&resolver.servers)).map(DhcpOption::DomainNameServer),
        OptionCode::Hostname => host_name.clone().map(DhcpOption::Hostname),
        OptionCode::DomainName => {
            resolver.search.first().map(|domain| DhcpOption::DomainName(domain.to_string()))
        }
        OptionCode::DomainSearch => {
            let names = resolver.search.iter().map(|domain| domain.name().clone()).collect();
            some(names).map(DhcpOption::DomainSearch)
        }
        OptionCode::InterfaceMtu => mtu.map(DhcpOption::InterfaceMtu),
        OptionCode::Renewal => Some(DhcpOption::Renewal(lease / 2)),
        OptionCode::Rebinding => Some(DhcpOption::Rebinding(lease / 8 * 7)),
        OptionCode::NtpServers => some(v4.extra.ntp_servers.clone()).map(DhcpOption::NtpServers),
        OptionCode::TFTPServerName => {
            v4.extra.tftp_server.clone().map(|name| DhcpOption::TFTPServerName(name.into_bytes()))
        }
        OptionCode::BootfileName => {
            v4.extra.boot_file.clone().map(|name| DhcpOption::BootfileName(name.into_bytes()))
        }
        other => private(v4, other),
    }
}

fn private(v4: &Dhcpv4, code: OptionCode) -> Option<DhcpOption> {
    let (_, value) = v4.extra.private.iter().find(|(own, _)| OptionCode::from(*own) == code)?;
    Some(DhcpOption::Unknown(UnknownOption::new(code, value.clone().into_bytes())))
}

/// A client that takes this option ignores [`OptionCode::Router`], so the default route is in it too (RFC 3442). Not
/// sent unless there is more to say than the default route.
fn routes(v4: &Dhcpv4) -> Vec<(Ipv4Net, Ipv4Addr)> {
    if v4.routes.is_empty() {
        return Vec::new();
    }
    let default = v4.gateway.map(|gateway| (Ipv4Net::default(), gateway));
    v4.routes.iter().copied().chain(default).collect()
}

fn servers(all: &[IpAddr]) -> Vec<Ipv4Addr> {
    let v4 = all.iter().filter_map(|server| match server {
        IpAddr::V4(server) => Some(*server),
        IpAddr::V6(_) => None,
    });
    v4.collect()
}

/// An empty list is nothing to tell.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    if list.is_empty() { None } else { Some(list) }
}
