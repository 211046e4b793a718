//! What a network gave a pod's interface that is its guest's now: addresses and routes, as the chain's result tells them.
//!
//! Read when the chain was run, kept in the VM's record, and told to the guest by the supervisor. A guest can be told
//! one IPv4 address and routes, by DHCPv4; IPv6 addresses, by DHCPv6; and an IPv6 gateway, by a router advertisement if its
//! link-local address is known: it is the gateway's very address, or that of the node's interface that is the gateway. What is
//! more than that [`Given::untold`] names.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{Ip, Route, Success};
use guest_dhcp::{Dhcpv4, Dhcpv6, Extra, KUBEVIRT_LEASE, MAX_FURTHER, Router};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use net_types::Mac;
use serde::{Deserialize, Serialize};

/// `RT_TABLE_MAIN` (`linux/rtnetlink.h`).
const MAIN_TABLE: u32 = 254;
/// Who our DHCP server says it is on a wire where the host has no address: one that is never routed (RFC 3927). The server
/// hears by its socket on the tap what a guest sends there.
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 75, 10);

/// Addresses and routes of one NIC.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Given {
    addresses: Vec<IpNet>,
    /// The preferred first.
    routes: Vec<Way>,
    /// The link-local address of the IPv6 gateway, if that is the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    router: Option<Ipv6Addr>,
}

/// One route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Way {
    to: IpNet,
    /// None if the destination is on the wire.
    via: Option<IpAddr>,
}

/// What a guest cannot be told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Untold {
    /// A further IPv4 address, or more IPv6 ones than a packet tells of.
    Address(IpNet),
    /// An IPv6 route.
    Route(IpNet),
    /// The IPv6 default route, by the gateway's global address.
    Gateway(Ipv6Addr),
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address @ IpNet::V4(_)) => write!(f, "{address}: DHCPv4 gives one address"),
            Self::Address(address @ IpNet::V6(_)) => {
                write!(f, "{address}: there are more than {MAX_FURTHER} besides the first")
            }
            Self::Route(to) => {
                write!(f, "the route to {to}: neither DHCPv6 nor an advertisement has a place for it")
            }
            Self::Gateway(via) => write!(
                f,
                "the default route via {via}: an advertisement is for a link-local gateway; let the gateway advertise itself"
            ),
        }
    }
}

impl Given {
    /// What `success` tells of the pod's interface.
    pub(crate) fn of(success: &Success) -> Self {
        let addresses = success.ips.iter().filter(|ip| is_the_pods(success, ip));
        let addresses = addresses
            .filter_map(|ip| IpNet::new(ip.address.ip(), ip.address.prefix()).ok())
            .filter(|net| !matches!(net, IpNet::V6(own) if own.addr().is_unicast_link_local()));
        let in_main = |route: &&Route| route.table.is_none_or(|table| table == MAIN_TABLE || table == 0);
        let mut routes: Vec<_> = success.routes.iter().filter(in_main).collect();
        routes.sort_by_key(|route| route.priority.unwrap_or_default());
        let way = |route: &Route| {
            let to = IpNet::new(route.dst.ip(), route.dst.prefix()).ok()?.trunc();
            Some(Way { to, via: success.next_hop(route) })
        };
        let routes = routes.into_iter().filter_map(way).collect();
        Self { addresses: addresses.collect(), routes, router: None }
    }

    /// The same, with the link-local address of the IPv6 gateway as `router` knows it; not asked if there is none, or it is
    /// known by one already.
    pub(crate) fn with_router<E>(
        mut self,
        router: impl FnOnce(Ipv6Addr) -> Result<Option<Ipv6Addr>, E>,
    ) -> Result<Self, E> {
        if let Some(gateway) = self.v6_gateway().filter(|gateway| !gateway.is_unicast_link_local()) {
            self.router = router(gateway)?;
        }
        Ok(self)
    }

    /// True if there is nothing to tell a guest of, who is then left to whoever else serves its network.
    pub(crate) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The addresses, without prefix lengths.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(IpNet::addr)
    }

    /// What DHCPv4 tells, and `extra` besides; none without an IPv4 address.
    pub(crate) fn v4(&self, extra: Extra) -> Option<Dhcpv4> {
        let address = self.addresses.iter().find_map(|net| match net {
            IpNet::V4(own) => Some(*own),
            IpNet::V6(_) => None,
        })?;
        let mut ways = BTreeMap::new();
        for Way { to, via } in &self.routes {
            let (IpNet::V4(to), Some(via)) = (to, v4_hop(*via)) else { continue };
            // The first is the preferred; that to its own subnet a guest makes by itself.
            if *to != address.trunc() || via.is_some() {
                ways.entry(*to).or_insert(via);
            }
        }
        let gateway = ways.get(&Ipv4Net::default()).copied().flatten();
        if gateway.is_some() {
            ways.remove(&Ipv4Net::default());
        }
        let on_wire: Vec<_> = ways.iter().filter(|(_, via)| via.is_none()).map(|(to, _)| *to).collect();
        // What is off the subnet is reached by way of neighbours, and who they are must be told first.
        let is_known = |hop: &Ipv4Addr| address.contains(hop) || on_wire.iter().any(|to| to.contains(hop));
        let mut neighbours: Vec<_> =
            ways.values().copied().flatten().chain(gateway).filter(|hop| !is_known(hop)).collect();
        neighbours.sort_unstable();
        neighbours.dedup();
        let on_wire = on_wire.iter().copied().chain(neighbours.into_iter().map(Ipv4Net::from));
        let behind = ways.iter().filter_map(|(to, via)| Some((*to, (*via)?)));
        let routes = on_wire.map(|to| (to, Ipv4Addr::UNSPECIFIED)).chain(behind).collect();
        Some(Dhcpv4 { address, gateway, server: SERVER, routes, lease: KUBEVIRT_LEASE, extra })
    }

    /// What DHCPv6 and router advertisements tell, from a host whose link has address `host`; none without an IPv6 address.
    pub(crate) fn v6(&self, host: Mac) -> Option<Dhcpv6> {
        let mut addresses = self.v6_addresses();
        let address = addresses.next()?;
        let further = addresses.take(MAX_FURTHER).collect();
        let (router, role) = match self.v6_gateway() {
            Some(gateway) if gateway.is_unicast_link_local() => (gateway, Router::Elsewhere),
            _ => match self.router {
                Some(router) => (router, Router::Elsewhere),
                None => (link_local(host), Router::NoGateway),
            },
        };
        Some(Dhcpv6 { address, further, router, role, lease: KUBEVIRT_LEASE })
    }

    fn v6_addresses(&self) -> impl Iterator<Item = Ipv6Net> + '_ {
        self.addresses.iter().filter_map(|net| match net {
            IpNet::V6(own) => Some(*own),
            IpNet::V4(_) => None,
        })
    }

    /// What the guest has to be configured with by other means, if it needs it.
    pub(crate) fn untold(&self) -> Vec<Untold> {
        let v4 = self.addresses.iter().copied().filter(|net| net.addr().is_ipv4()).skip(1);
        let v6 = self.v6_addresses().skip(1 + MAX_FURTHER).map(IpNet::from);
        let own: Vec<_> = self.addresses.iter().map(IpNet::trunc).collect();
        let routes = self.routes.iter().filter(|way| way.to.addr().is_ipv6() && self.has_v6());
        let gateway = self.v6_gateway();
        let routes = routes.filter_map(|Way { to, via }| match via {
            Some(IpAddr::V6(via)) if to.prefix_len() == 0 && gateway == Some(*via) => {
                (!via.is_unicast_link_local() && self.router.is_none()).then_some(Untold::Gateway(*via))
            }
            None if own.contains(to) => None,
            _ => Some(Untold::Route(*to)),
        });
        v4.chain(v6).map(Untold::Address).chain(routes).collect()
    }

    /// By whom the preferred default route goes.
    fn v6_gateway(&self) -> Option<Ipv6Addr> {
        let mut defaults =
            self.routes.iter().filter(|way| way.to.addr().is_ipv6() && way.to.prefix_len() == 0);
        match defaults.next()?.via? {
            IpAddr::V6(via) => Some(via),
            IpAddr::V4(_) => None,
        }
    }

    fn has_v6(&self) -> bool {
        self.v6_addresses().next().is_some()
    }
}

/// An address that is not said to be of an interface of the node's.
fn is_the_pods(success: &Success, ip: &Ip) -> bool {
    let interface = ip.interface.and_then(|index| success.interfaces.get(index));
    interface.is_none_or(|interface| !interface.sandbox.is_empty())
}

/// None if the next hop is of the other family, which DHCPv4 cannot tell.
fn v4_hop(via: Option<IpAddr>) -> Option<Option<Ipv4Addr>> {
    match via {
        None => Some(None),
        Some(IpAddr::V4(via)) => Some(Some(via)),
        Some(IpAddr::V6(_)) => None,
    }
}

/// The address that a link with `mac` gives itself (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.octets();
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 0x02, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A result that names the pod's interface second.
    fn given(ips: Value, routes: Value) -> Given {
        let result = json!({
            "interfaces": [{"name": "br1"}, {"name": "net1", "sandbox": "/run/netns/x"}], "ips": ips, "routes": routes,
        });
        Given::of(&Success::read(result.to_string().as_bytes()).unwrap())
    }

    fn told(given: &Given) -> (String, Option<String>, Vec<String>) {
        let Dhcpv4 { address, gateway, routes, .. } = given.v4(Extra::default()).unwrap();
        let routes = routes.iter().map(|(to, via)| format!("{to} {via}")).collect();
        (address.to_string(), gateway.map(|gateway| gateway.to_string()), routes)
    }

    #[test]
    fn a_guest_gets_the_very_address_with_gateway_and_routes() {
        let given = given(
            json!([
                {"interface": 0, "address": "192.0.2.1/24"},
                {"interface": 1, "address": "192.0.2.7/24", "gateway": "192.0.2.1"},
            ]),
            json!([
                {"dst": "10.9.0.0/16", "gw": "192.0.2.9"}, {"dst": "0.0.0.0/0"}, {"dst": "203.0.113.0/24", "scope": 253},
                {"dst": "198.51.100.0/24", "gw": "0.0.0.0"}, {"dst": "10.8.0.0/16", "gw": "192.0.2.9", "table": 100},
                {"dst": "192.0.2.0/24", "scope": 253},
            ]),
        );
        let routes = ["198.51.100.0/24 0.0.0.0", "203.0.113.0/24 0.0.0.0", "10.9.0.0/16 192.0.2.9"];
        assert_eq!(
            told(&given),
            ("192.0.2.7/24".into(), Some("192.0.2.1".into()), routes.map(String::from).to_vec())
        );
        assert_eq!((given.v6(Mac([2, 0, 0, 0, 0, 1])), given.untold()), (None, Vec::new()));
    }

    #[test]
    fn a_gateway_off_the_subnet_is_told_as_a_neighbour_first() {
        let given = given(
            json!([{"address": "192.0.2.7/32"}]),
            json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "10.0.0.0/8", "gw": "169.254.1.1"}]),
        );
        let routes = ["169.254.1.1/32 0.0.0.0", "10.0.0.0/8 169.254.1.1"].map(String::from);
        assert_eq!(told(&given), ("192.0.2.7/32".into(), Some("169.254.1.1".into()), routes.to_vec()));
    }

    #[test]
    fn of_two_routes_to_one_place_the_preferred_is_told() {
        let routes = json!([
            {"dst": "0.0.0.0/0", "gw": "192.0.2.1", "priority": 100}, {"dst": "0.0.0.0/0", "gw": "192.0.2.2", "priority": 50},
        ]);
        let given = given(json!([{"address": "192.0.2.7/24"}]), routes);
        assert_eq!(told(&given), ("192.0.2.7/24".into(), Some("192.0.2.2".into()), Vec::new()));
    }

    #[test]
    fn what_cannot_be_told_is_named() {
        let given = given(
            json!([
                {"address": "2001:db8::7/64"}, {"address": "192.0.2.7/24"}, {"address": "192.0.2.8/24"},
                {"address": "fe80::5/64"},
            ]),
            json!([
                {"dst": "::/0", "gw": "2001:db8::1"}, {"dst": "2001:db8:9::/48", "gw": "2001:db8::2"},
                {"dst": "2001:db8::/64", "scope": 253},
            ]),
        );
        let v6 = given.v6(Mac([2, 0, 0, 0, 0, 1])).unwrap();
        assert_eq!(
            (v6.address.to_string().as_str(), v6.router.to_string().as_str()),
            ("2001:db8::7/64", "fe80::ff:fe00:1")
        );
        let untold: Vec<_> = given.untold().iter().map(Untold::to_string).collect();
        for (line, begins) in untold.iter().zip([
            "192.0.2.8/24:",
            "the default route via 2001:db8::1:",
            "the route to 2001:db8:9::/48:",
        ]) {
            assert!(line.starts_with(begins), "{untold:?}");
        }
        assert_eq!(untold.len(), 3, "{untold:?}");
    }

    #[test]
    fn a_link_local_gateway_is_advertised_as_itself() {
        let routes =
            json!([{"dst": "::/0", "gw": "fe80::1"}, {"dst": "::/0", "gw": "fe80::2", "priority": 9}]);
        let given = given(json!([{"address": "2001:db8::7/64"}]), routes);
        let v6 = given.v6(Mac([2, 0, 0, 0, 0, 1])).unwrap();
        assert_eq!((v6.router.to_string().as_str(), v6.role), ("fe80::1", Router::Elsewhere));
        assert_eq!(given.untold(), [Untold::Route("::/0".parse().unwrap())]);
    }

    #[test]
    fn all_ipv6_addresses_are_told_that_a_packet_holds() {
        let address = |last: usize| json!({"address": format!("2001:db8::{last}/64")});
        let given = given((1..=17).map(address).collect(), json!([]));
        let told = given.v6(Mac([2, 0, 0, 0, 0, 1])).unwrap();
        assert_eq!((told.address.to_string().as_str(), told.further.len()), ("2001:db8::1/64", 15));
        assert_eq!(given.untold(), [Untold::Address("2001:db8::17/64".parse().unwrap())]);
    }

    #[test]
    fn a_gateway_that_the_node_is_is_advertised_by_its_link_local_address() {
        let route = |gateway: &str| {
            given(json!([{"address": "2001:db8::7/64"}]), json!([{"dst": "::/0", "gw": gateway}]))
        };
        let router = |gateway: Ipv6Addr| {
            assert_eq!(gateway.to_string(), "2001:db8::1");
            Ok::<_, ()>(Some("fe80::b:1".parse().unwrap()))
        };
        let given = route("2001:db8::1").with_router(router).unwrap();
        let v6 = given.v6(Mac([2, 0, 0, 0, 0, 1])).unwrap();
        assert_eq!((v6.router.to_string().as_str(), v6.role), ("fe80::b:1", Router::Elsewhere));
        assert_eq!(given.untold(), []);
        let known = route("fe80::1").with_router(router).unwrap();
        assert_eq!(known.v6(Mac([2, 0, 0, 0, 0, 1])).unwrap().router.to_string(), "fe80::1");
    }

    #[test]
    fn without_addresses_there_is_nothing_to_tell() {
        for ips in [
            json!([]),
            json!([{"interface": 0, "address": "192.0.2.1/24"}]),
            json!([{"address": "fe80::5/64"}]),
        ] {
            let given = given(ips, json!([{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}]));
            assert!(given.is_empty() && given.v4(Extra::default()).is_none());
            assert!(given.v6(Mac([2, 0, 0, 0, 0, 1])).is_none());
        }
    }
}
