//! A pod's interface as its network may have left it: several addresses, and routes of every kind.

use std::time::Duration;

use crate::namespace::Namespace;
use crate::wait::eventually;

/// Gives `link` in `pod` addresses of both families (one with a label, one without a broadcast address, one with a metric)
/// and routes: with and without a gateway, by a gateway off the link, with metrics, of another table, with a source.
///
/// # Panics
/// If something is refused.
#[track_caller]
pub fn furnish(pod: &Namespace, link: &str) {
    for address in [
        "192.0.2.7/24 brd + metric 42",
        "192.0.2.8/24",
        "198.51.100.9/32",
        "2001:db8::7/64 nodad",
        "2001:db8:1::7/64 nodad noprefixroute",
    ] {
        pod.sh(&format!("ip address add {address} dev {link}"));
    }
    // The kernel makes the routes to them a little later.
    eventually("the local routes of IPv6", Duration::from_secs(10), || {
        let routes = pod.sh("ip -6 route show table local");
        ["2001:db8::7 ", "2001:db8:1::7 "].iter().all(|address| routes.contains(address)).then_some(())
    });
    for route in [
        "default via 192.0.2.1 metric 77",
        "203.0.113.0/24 scope link",
        "10.9.0.0/16 via 203.0.113.5 src 192.0.2.8 mtu 1300 advmss 1200",
        "10.10.0.0/16 via 192.0.2.254 table 100",
        "10.11.0.0/16 via 172.31.0.1 onlink proto static",
        "2001:db8:1::/64 metric 9",
        "2001:db8:9::/48 proto static",
        "default via 2001:db8::1 metric 55",
        "2001:db8:a::/48 via fe80::1",
    ] {
        pod.sh(&format!("ip route add {route} dev {link}"));
    }
    // Two to one place by one metric, of which the kernel takes the first; nor are they in the order of their gateways.
    for gateway in ["192.0.2.12", "192.0.2.11"] {
        pod.sh(&format!("ip route append 10.12.0.0/16 via {gateway} dev {link}"));
    }
}

/// The settings of a link that say whether it speaks: `disable_ipv6` and `arp_ignore`.
fn settings(link: &str) -> [String; 2] {
    [format!("net.ipv6.conf.{link}.disable_ipv6"), format!("net.ipv4.conf.{link}.arp_ignore")]
}

/// What they are for `link` in `pod`.
///
/// # Panics
/// If they cannot be read.
#[track_caller]
pub fn silence(pod: &Namespace, link: &str) -> [String; 2] {
    settings(link).map(|setting| pod.sh(&format!("sysctl -n {setting}")).trim().to_owned())
}

/// Sets them.
///
/// # Panics
/// If the kernel refuses.
#[track_caller]
pub fn set_silence(pod: &Namespace, link: &str, values: [&str; 2]) {
    for (setting, value) in settings(link).iter().zip(values) {
        pod.sh(&format!("sysctl -q -w {setting}={value}"));
    }
}
