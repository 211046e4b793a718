//! What a host tells a guest that is the guest's gateway: all of it follows from the host's own addresses on their wire.
//!
//! As KubeVirt has it, the gateway is the first address of a subnet and the guest the second.

use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::guest::{Dhcpv4, Dhcpv6, Extra, Router};

/// Why addresses are no gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    /// The guest's address would not follow from it.
    #[error("{0} is not the first address of a subnet with room for a guest")]
    NotFirst(IpNet),
    /// Routers announce themselves from one.
    #[error("there is no link-local address beside {0}")]
    NoLinkLocal(Ipv6Net),
}

/// What the host with `addresses` tells the guest on that link; a family it has no address of is left out. The lease is
/// rounded down to seconds.
///
/// # Errors
/// If the first address of a family is no gateway's, or IPv6 has no link-local address.
pub fn behind(
    addresses: &[IpNet],
    lease: Duration,
    extra: Extra,
) -> Result<(Option<Dhcpv4>, Option<Dhcpv6>), GatewayError> {
    let v4 = addresses.iter().find_map(|address| match address {
        IpNet::V4(own) => Some(v4(*own, lease, extra.clone())),
        IpNet::V6(_) => None,
    });
    let all_v6 = || {
        addresses.iter().filter_map(|address| match address {
            IpNet::V6(own) => Some(*own),
            IpNet::V4(_) => None,
        })
    };
    let is_link_local = |own: &Ipv6Net| own.addr().is_unicast_link_local();
    let v6 = all_v6().find(|own| !is_link_local(own)).map(|own| {
        let router = all_v6().find(is_link_local).ok_or(GatewayError::NoLinkLocal(own))?;
        v6(own, router.addr(), lease)
    });
    Ok((v4.transpose()?, v6.transpose()?))
}

fn v4(gateway: Ipv4Net, lease: Duration, extra: Extra) -> Result<Dhcpv4, GatewayError> {
    let own = gateway.addr();
    let mut hosts = gateway.hosts();
    let guest = (hosts.next() == Some(own)).then(|| hosts.next()).flatten();
    let address = guest.and_then(|guest| Ipv4Net::new(guest, gateway.prefix_len()).ok());
    let address = address.ok_or(GatewayError::NotFirst(gateway.into()))?;
    Ok(Dhcpv4 { address, gateway: Some(own), server: own, routes: Vec::new(), lease, extra })
}

fn v6(gateway: Ipv6Net, router: Ipv6Addr, lease: Duration) -> Result<Dhcpv6, GatewayError> {
    let own = u128::from(gateway.addr());
    let is_first = u128::from(gateway.network()).checked_add(1) == Some(own);
    let guest = own.checked_add(1).map(Ipv6Addr::from).filter(|guest| is_first && gateway.contains(guest));
    let address = guest.and_then(|guest| Ipv6Net::new(guest, gateway.prefix_len()).ok());
    let address = address.ok_or(GatewayError::NotFirst(gateway.into()))?;
    Ok(Dhcpv6 { address, further: Vec::new(), router, role: Router::Host, lease })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KUBEVIRT_LEASE;

    type Families = (Option<Dhcpv4>, Option<Dhcpv6>);

    fn told(addresses: &[&str]) -> Result<Families, GatewayError> {
        let addresses: Vec<IpNet> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        behind(&addresses, KUBEVIRT_LEASE, Extra::default())
    }

    #[test]
    fn a_guest_is_next_to_its_gateway() {
        let (v4, v6) = told(&["10.0.2.1/24", "fd10:0:2::1/120", "fe80::ff:fe00:0/64"]).unwrap();
        let (v4, v6) = (v4.unwrap(), v6.unwrap());
        assert_eq!((v4.address.to_string().as_str(), v4.gateway), ("10.0.2.2/24", Some(v4.server)));
        assert_eq!(v6.address.to_string(), "fd10:0:2::2/120");
        assert_eq!(v6.router.to_string(), "fe80::ff:fe00:0");
        let (v4, v6) = told(&["192.168.9.253/30"]).unwrap();
        assert_eq!((v4.unwrap().address.to_string().as_str(), v6), ("192.168.9.254/30", None));
        assert_eq!(told(&["fe80::1/64"]), Ok((None, None)));
    }

    #[test]
    fn addresses_that_are_no_gateways_are_named() {
        for address in
            ["10.0.2.2/24", "10.0.2.0/24", "10.0.2.1/32", "fd10:0:2::2/120", "fd10:0:2::/120", "fd10::1/128"]
        {
            let error = told(&[address, "fe80::1/64"]).unwrap_err();
            assert_eq!(error, GatewayError::NotFirst(address.parse().unwrap()));
        }
        assert!(matches!(told(&["fd10:0:2::1/120"]), Err(GatewayError::NoLinkLocal(_))));
    }
}
