//! Addresses: from IPAM into the pod, and the gateway's on the bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cni::{Ip, Ipam, Route, Success};
use ipnetwork::IpNetwork;
use netlink::{Events, Link, Netlink, RouteOptions, Settled};
use netns::NetNs;

use super::config::{Config, Gateway};
use super::device::write_setting;
use super::error::BridgeError;
use super::gateway;

/// How long IPv6 duplicate address detection may take; it takes about 1 s (RFC 4862, `RetransTimer`).
const DETECTION_LIMIT: Duration = Duration::from_secs(5);

/// How long the bridge may take to see that the port has its carrier; it takes about 1 ms.
const CARRIER_LIMIT: Duration = Duration::from_secs(1);

/// How long the node may take to know a gateway's address for its own; it takes less than 1 ms.
const OWN_LIMIT: Duration = Duration::from_secs(1);

/// The pod's side of the port.
pub(super) struct PodEnd<'a> {
    pub(super) namespace: &'a NetNs,
    pub(super) netlink: &'a Netlink,
    pub(super) link: &'a Link,
    /// Its place in the result's interfaces.
    pub(super) position: usize,
}

/// Has addresses assigned to the interface at `position` of the result, with the gateways the network wants.
pub(super) fn assign(config: &Config, ipam: &Ipam<'_>, position: usize) -> Result<Success, BridgeError> {
    let mut assigned = ipam.add()?;
    cni::mutated("addresses assigned");
    complete(config.gateway, position, &mut assigned)?;
    Ok(assigned)
}

/// Gives the addresses to the interface at `position`, and the bridge's part to it: gateways nobody named, default routes.
pub(super) fn complete(bridge: Gateway, position: usize, assigned: &mut Success) -> Result<(), BridgeError> {
    if assigned.ips.is_empty() {
        return Err(BridgeError::NoAddresses);
    }
    for ip in &mut assigned.ips {
        ip.interface = Some(position);
        if bridge > Gateway::No && ip.gateway.is_none() {
            let first = first_host(ip.address).ok_or(BridgeError::NoRoomForGateway(ip.address))?;
            ip.gateway = Some(first);
        }
    }
    if bridge == Gateway::DefaultRoute {
        let families: Vec<_> = assigned.ips.iter().filter_map(|ip| ip.gateway).collect();
        for gateway in families {
            add_default_route(assigned, gateway);
        }
    }
    Ok(())
}

/// Configures pod and bridge with what was `assigned`; tells the link that the gateway's addresses are on.
pub(super) fn configure(
    config: &Config,
    assigned: &Success,
    host: &Netlink,
    bridge: &Link,
    pod: &PodEnd<'_>,
) -> Result<Option<Link>, BridgeError> {
    configure_pod(config, assigned, host, pod)?;
    if config.gateway == Gateway::No {
        return Ok(None);
    }
    let link = gateway::ensure(host, config, bridge)?;
    configure_gateway(config, &assigned.ips, host, &link)?;
    Ok(Some(link))
}

/// The first address of a subnet after its own: what the reference plugin takes for a gateway. None if there is no other.
fn first_host(subnet: IpNetwork) -> Option<IpAddr> {
    let next = match subnet {
        IpNetwork::V4(v4) => IpAddr::from(u32::from(v4.network()).checked_add(1)?.to_be_bytes()),
        IpNetwork::V6(v6) => IpAddr::from(u128::from(v6.network()).checked_add(1)?.to_be_bytes()),
    };
    Some(next).filter(|next| subnet.contains(*next))
}

fn add_default_route(result: &mut Success, gateway: IpAddr) {
    let unspecified: IpAddr = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A prefix of no bits is one in either family.
    let Ok(any) = IpNetwork::new(unspecified, 0) else { return };
    if !result.routes.iter().any(|route| route.dst == any) {
        let route = Route {
            dst: any,
            gw: Some(gateway),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        };
        result.routes.push(route);
    }
}

fn configure_pod(
    config: &Config,
    result: &Success,
    host: &Netlink,
    pod: &PodEnd<'_>,
) -> Result<(), BridgeError> {
    let index = pod.link.index;
    let has_v6 = result.ips.iter().any(|ip| ip.address.is_ipv6());
    let settings = settings(&pod.link.name, has_v6, config.detect_duplicates);
    let written =
        pod.namespace.run(|| settings.iter().try_for_each(|(path, value)| write_setting(path, value)));
    written.map_err(BridgeError::Netns)??;
    let events = Events::of_links()?;
    for ip in &result.ips {
        if config.detect_duplicates {
            pod.netlink.add_address(index, ip.address)?;
        } else {
            pod.netlink.add_sole_address(index, ip.address)?;
        }
        cni::mutated("address");
    }
    pod.netlink.set_up(index)?;
    cni::mutated("pod end up");
    if config.detect_duplicates && has_v6 {
        match Netlink::settle_addresses(pod.namespace, index, DETECTION_LIMIT)? {
            Settled::Usable => {}
            Settled::Duplicate => return Err(BridgeError::DuplicateAddress),
            Settled::TimedOut => return Err(BridgeError::Undetected(DETECTION_LIMIT)),
        }
    }
    for route in &result.routes {
        let Route { dst, gw: _, mtu, advmss, priority, table, scope } = *route;
        let options = RouteOptions { table, priority, mtu, advmss, scope };
        let route = netlink::Route { destination: dst, gateway: result.next_hop(route), options };
        pod.netlink.add_route(index, &route)?;
        cni::mutated("route");
    }
    announce(&events, host, pod)
}

/// Settings of the pod's interface, and their values.
fn settings(name: &str, has_v6: bool, detect_duplicates: bool) -> Vec<(String, &'static str)> {
    let v4 = |setting: &str| format!("/proc/sys/net/ipv4/conf/{name}/{setting}");
    let v6 = |setting: &str| format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
    // For `announce`.
    let mut settings =
        vec![(v4("arp_notify"), "1"), (v6("ndisc_notify"), "1"), (v6("keep_addr_on_down"), "1")];
    if has_v6 {
        // Runtimes switch IPv6 off in pods that have no IPv6 address yet.
        settings
            .extend([("/proc/sys/net/ipv6/conf/lo/disable_ipv6".to_owned(), "0"), (v6("disable_ipv6"), "0")]);
    }
    if detect_duplicates {
        settings.extend([(v6("enhanced_dad"), "1"), (v6("accept_dad"), "1")]);
    }
    settings
}

/// Has the kernel tell the neighbours whose the addresses are, so that those who knew them by another's hardware address
/// learn of the new one at once. What it sent when the interface was set up was too early: the bridge forwards nothing
/// from a port before it has seen its carrier.
fn announce(events: &Events, host: &Netlink, pod: &PodEnd<'_>) -> Result<(), BridgeError> {
    let (Some(host_end), Some(mac)) = (pod.link.peer, pod.link.mac) else { return Ok(()) };
    let running = || Ok::<_, BridgeError>(host.link_by_index(host_end)?.filter(|link| link.running));
    if events.until(CARRIER_LIMIT, running)?.is_none() {
        tracing::warn!("the host end of {} has no carrier: its addresses are not announced", pod.link.name);
        return Ok(());
    }
    // "Another" address is announced, be it the same.
    pod.netlink.set_mac(pod.link.index, mac)?;
    cni::mutated("addresses announced");
    Ok(())
}

/// The node answers to the gateways' addresses by `link`, and forwards.
fn configure_gateway(config: &Config, ips: &[Ip], host: &Netlink, link: &Link) -> Result<(), BridgeError> {
    let gateways: Vec<_> = ips.iter().filter_map(address).collect();
    let events = Events::of_routes()?;
    for wanted in &gateways {
        ensure_address(config, host, link, *wanted, &gateways)?;
        let forwarding = match wanted.ip() {
            IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_forward",
            IpAddr::V6(_) => "/proc/sys/net/ipv6/conf/all/forwarding",
        };
        write_setting(forwarding, "1")?;
    }
    for gateway in &gateways {
        let IpAddr::V6(own) = gateway.ip() else { continue };
        let is_known = || Ok::<_, BridgeError>(host.is_local(link.index, own)?.then_some(()));
        if events.until(OWN_LIMIT, is_known)?.is_none() {
            tracing::warn!("{own} is on {}, but the node does not take it for its own yet", link.name);
        }
    }
    Ok(())
}

/// The gateway's address as the bridge has it: in the subnet, or alone if it is of the other family.
pub(super) fn address(ip: &Ip) -> Option<IpNetwork> {
    let gateway = ip.gateway?;
    let in_subnet = gateway.is_ipv6() == ip.address.is_ipv6();
    if in_subnet { IpNetwork::new(gateway, ip.address.prefix()).ok() } else { Some(gateway.into()) }
}

/// Gives the bridge an address, and takes away what is in its way if the network says so; not what is among `all` the
/// pod's gateways.
fn ensure_address(
    config: &Config,
    host: &Netlink,
    bridge: &Link,
    wanted: IpNetwork,
    all: &[IpNetwork],
) -> Result<(), BridgeError> {
    for found in host.addresses(bridge.index)? {
        if found == wanted {
            return Ok(());
        }
        if all.contains(&found) || !is_in_the_way(found, wanted) {
            continue;
        }
        if !config.force_address {
            return Err(BridgeError::OtherAddress { bridge: bridge.name.clone(), found, wanted });
        }
        match host.delete_address(bridge.index, found) {
            // Another ADD was faster.
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
        cni::mutated("other address removed");
    }
    match host.add_sole_address(bridge.index, wanted) {
        Err(error) if error.already_exists() => {}
        other => other?,
    }
    cni::mutated("gateway's address");
    Ok(())
}

/// A bridge has the IPv4 addresses of one network, and IPv6 ones whose subnets do not overlap.
fn is_in_the_way(found: IpNetwork, wanted: IpNetwork) -> bool {
    match (found, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(_), IpNetwork::V6(_)) => found.contains(wanted.ip()) || wanted.contains(found.ip()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_nobody_named_is_the_first_address() {
        for (address, gateway) in [
            ("10.1.2.3/24", "10.1.2.1"),
            ("fd00::5/64", "fd00::1"),
            ("10.9.9.9/8", "10.0.0.1"),
            ("10.0.0.4/31", "10.0.0.5"),
        ] {
            assert_eq!(
                first_host(address.parse().unwrap()).map(|ip| ip.to_string()).as_deref(),
                Some(gateway)
            );
        }
    }

    #[test]
    fn a_subnet_of_one_address_has_no_gateway() {
        for address in [
            "10.0.0.5/32",
            "255.255.255.255/32",
            "fd00::5/128",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
        ] {
            assert_eq!(first_host(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn subnets_overlap_or_do_not() {
        let table = [
            ("10.0.0.1/24", "192.168.0.1/24", true),
            ("fd00::1/64", "fd01::1/64", false),
            ("fd00::1/64", "fd00::9/64", true),
            ("fd00::1/48", "fd00:0:0:5::1/64", true),
            ("10.0.0.1/24", "fd00::1/64", false),
        ];
        for (found, wanted, expected) in table {
            assert_eq!(
                is_in_the_way(found.parse().unwrap(), wanted.parse().unwrap()),
                expected,
                "{found} {wanted}"
            );
        }
    }
}
