//! `masquerade serve`: tells the guest behind one bridge its addresses, for pods that have no supervisor of ours.
//!
//! Everything is read once, at the start: addresses and MTU from the bridge that ADD made, names from the pod's
//! `resolv.conf`. It runs until SIGTERM or SIGINT, or until the bridge is gone.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use guest_dhcp::{Extra, GatewayError, Guest, GuestError, Resolver, Responder, Server, ServerError};
use net_types::{IfName, Mac};
use netlink::Netlink;
use netns::{NetNs, NetNsError};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::pod;

/// What `masquerade serve` takes.
#[derive(Debug, Parser)]
#[command(name = "masquerade serve", bin_name = "masquerade serve", version = telemetry::VERSION)]
#[command(about = "Tells a guest its addresses by DHCPv4, DHCPv6 and router advertisements")]
pub struct Options {
    /// The bridge to the guest, as masquerade made it.
    #[arg(long, default_value = "k6t-eth0")]
    bridge: IfName,
    /// The network namespace of the pod, if it is not this process's own.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// The guest's MAC address; left out, that of the pod interface, which KubeVirt gives its guests.
    #[arg(long, value_name = "MAC")]
    guest_mac: Option<Mac>,
    /// The guest's host name.
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
    /// Where name servers and search domains are read from.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// How long the guest may use its addresses without asking again, in seconds. The default is KubeVirt's, 999 days.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_313_600, value_parser = clap::value_parser!(u32).range(60..))]
    lease: u32,
    /// tftpServerName of dhcpOptions (option 66).
    #[arg(long, value_name = "NAME")]
    tftp_server: Option<String>,
    /// bootFileName of dhcpOptions (option 67).
    #[arg(long, value_name = "NAME")]
    boot_file: Option<String>,
    /// ntpServers of dhcpOptions (option 42); may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    ntp_server: Vec<Ipv4Addr>,
    /// privateOptions of dhcpOptions, 224 to 254; may be given several times.
    #[arg(long, value_name = "CODE=VALUE", value_parser = private_option)]
    private_option: Vec<(u8, String)>,
    /// How log lines on standard error are written.
    #[arg(long, value_enum, default_value_t)]
    log_format: telemetry::LogFormat,
}

/// Why a guest cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The pod's namespace is not there.
    #[error("the pod's network namespace cannot be used")]
    Netns(#[from] NetNsError),
    /// Netlink refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// No bridge, or not one of ours.
    #[error("{0} is not a bridge that masquerade made")]
    NotOurs(IfName),
    /// There is no pod interface to take the guest's address from.
    #[error("the pod interface of {0} is not there; name the guest's address with --guest-mac")]
    NoGuestMac(IfName),
    /// The bridge's addresses are not those ADD gives.
    #[error("{bridge} is no guest's gateway")]
    NotAGateway {
        /// The bridge.
        bridge: IfName,
        /// Which address is wrong.
        source: GatewayError,
    },
    /// `resolv.conf` cannot be read.
    #[error("cannot read {}", path.display())]
    ResolvConf {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something no guest can be told.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The socket failed.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] nix::Error),
}

impl Options {
    /// How to write the log.
    pub fn log_format(&self) -> telemetry::LogFormat {
        self.log_format
    }
}

/// Serves until told to stop.
///
/// # Errors
/// If the bridge is not one that ADD made, if something cannot be told, or when the bridge goes.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let namespace = match &options.netns {
        Some(path) => NetNs::open(path)?,
        None => NetNs::current()?,
    };
    let stop = stop_signals()?;
    let guest = guest(options, &Netlink::open_in(&namespace)?)?;
    let (v4, v6) = (guest.v4.as_ref().map(|v4| v4.address), guest.v6.as_ref().map(|v6| v6.address));
    tracing::info!(bridge = %options.bridge, guest = %guest.mac, ?v4, ?v6, "serving");
    let responder = Responder::new(guest)?;
    let mut server = namespace.run(|| Server::open(&options.bridge, responder))??;
    Ok(server.run_until(stop.as_fd())?)
}

/// Readable when it is time to go.
fn stop_signals() -> Result<SignalFd, ServeError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(ServeError::Signals)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(ServeError::Signals)
}

fn guest(options: &Options, netlink: &Netlink) -> Result<Guest, ServeError> {
    let name = &options.bridge;
    let not_ours = || ServeError::NotOurs(name.clone());
    let bridge = netlink.link_by_name(name.as_str())?.ok_or_else(not_ours)?;
    let pod = pod::interface_of(&bridge.alias).ok_or_else(not_ours)?;
    let mac = match options.guest_mac {
        Some(mac) => mac,
        None => {
            let pod = netlink.link_by_name(pod)?.and_then(|pod| pod.mac);
            pod.ok_or_else(|| ServeError::NoGuestMac(name.clone()))?
        }
    };
    let addresses: Vec<_> = netlink
        .addresses(bridge.index)?
        .iter()
        .filter_map(|own| ipnet::IpNet::new(own.ip(), own.prefix()).ok())
        .collect();
    let extra = Extra {
        boot_file: options.boot_file.clone(),
        tftp_server: options.tftp_server.clone(),
        ntp_servers: options.ntp_server.clone(),
        private: options.private_option.clone(),
    };
    let (v4, v6) = guest_dhcp::behind(&addresses, Duration::from_secs(options.lease.into()), extra)
        .map_err(|source| ServeError::NotAGateway { bridge: name.clone(), source })?;
    Ok(Guest {
        mac,
        server_mac: bridge.mac.ok_or_else(not_ours)?,
        // No option carries more; no tap does either.
        mtu: u16::try_from(bridge.mtu).ok(),
        host_name: options.host_name.clone(),
        resolver: resolver(options)?,
        v4,
        v6,
    })
}

fn resolver(options: &Options) -> Result<Resolver, ServeError> {
    let path = &options.resolv_conf;
    let text =
        fs::read_to_string(path).map_err(|source| ServeError::ResolvConf { path: path.clone(), source })?;
    let (resolver, skipped) = Resolver::from_resolv_conf(&text);
    for guest_dhcp::Skipped { line, word, reason } in skipped {
        tracing::warn!("{}, line {line}: {word:?} is not told to the guest: {reason}", path.display());
    }
    Ok(resolver)
}

fn private_option(text: &str) -> Result<(u8, String), String> {
    let (code, value) = text.split_once('=').ok_or("not CODE=VALUE")?;
    let code = code.parse().ok().filter(|code| (224..=254).contains(code));
    let code = code.ok_or("the code is not one of 224 to 254")?;
    Ok((code, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_options_are_read() {
        let options =
            Options::try_parse_from(["serve", "--private-option", "240=a=b", "--private-option", "224="]);
        assert_eq!(options.unwrap().private_option, [(240, "a=b".to_owned()), (224, String::new())]);
        for text in ["240", "223=x", "255=x", "x=y"] {
            assert!(Options::try_parse_from(["serve", "--private-option", text]).is_err(), "{text}");
        }
    }
}
