//! What a NIC on the pod network can ask for: its guest's subnets, and the ports that are the guest's.

use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::check::{At, FieldError};
use super::raw;
use super::spec::{Masquerade, PortRange, Protocol};

/// Prefix lengths that leave room for gateway and guest and are no absurdly large part of all addresses.
const V4_LENGTHS: std::ops::RangeInclusive<u8> = 8..=30;
const V6_LENGTHS: std::ops::RangeInclusive<u8> = 8..=126;

/// The guest's subnets, as far as they are given.
#[derive(Debug, Default)]
pub(super) struct Subnets {
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
}

/// Checks the two fields of `pod`; `at` is that field.
pub(super) fn subnets(v4: Option<String>, v6: Option<String>, at: &At) -> Result<Subnets, FieldError> {
    let v4 = v4.filter(|text| !text.is_empty()).map(|text| {
        let at = at.field("vmNetworkCIDR");
        parsed(&text, |net: &Ipv4Net| V4_LENGTHS.contains(&net.prefix_len()))
            .ok_or_else(|| at.not_allowed(text, "an IPv4 network of /8 to /30, such as 10.0.2.0/24"))
    });
    let v6 = v6.filter(|text| !text.is_empty()).map(|text| {
        let at = at.field("vmIPv6NetworkCIDR");
        parsed(&text, |net: &Ipv6Net| V6_LENGTHS.contains(&net.prefix_len()))
            .ok_or_else(|| at.not_allowed(text, "an IPv6 network of /8 to /126, such as fd10:0:2::/120"))
    });
    Ok(Subnets { v4: v4.transpose()?, v6: v6.transpose()? })
}

fn parsed<T: FromStr>(text: &str, fits: impl Fn(&T) -> bool) -> Option<T> {
    text.parse().ok().filter(fits)
}

/// Checks what the interface itself asks for; `at` is the interface.
pub(super) fn checked(
    subnets: Subnets,
    ports: Vec<raw::Port>,
    ranges: Vec<raw::PortRange>,
    at: &At,
) -> Result<Masquerade, FieldError> {
    let single = ports.into_iter().enumerate().map(|(index, raw::Port { port: number, protocol: name })| {
        let at = at.field("ports").item(index);
        let number = port(number, &at.field("port"))?;
        Ok(PortRange { protocol: protocol(name, &at.field("protocol"))?, first: number, last: number })
    });
    let several = ranges.into_iter().enumerate().map(|(index, range)| {
        let at = at.field("portRanges").item(index);
        let raw::PortRange { start, end, protocol: name } = range;
        let (first, last) = (port(start, &at.field("start"))?, port(end, &at.field("end"))?);
        if last < first {
            return Err(at.conflict(format!("ends at {last}, before its start {first}")));
        }
        Ok(PortRange { protocol: protocol(name, &at.field("protocol"))?, first, last })
    });
    Ok(Masquerade { v4: subnets.v4, v6: subnets.v6, ports: single.chain(several).collect::<Result<_, _>>()? })
}

fn port(number: i64, at: &At) -> Result<u16, FieldError> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| at.not_allowed(number, "1 to 65535"))
}

/// TCP if absent, as Kubernetes has it.
fn protocol(name: Option<String>, at: &At) -> Result<Protocol, FieldError> {
    let name = name.unwrap_or_default();
    match name.to_ascii_uppercase().as_str() {
        "" | "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(at.not_allowed(name, "TCP, UDP, SCTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(yaml: &str) -> Result<Masquerade, FieldError> {
        let mut documents = crate::yaml::documents(yaml).unwrap();
        let raw: raw::Interface = serde_json::from_value(documents.remove(0)).unwrap();
        let at = At("nic".to_owned());
        checked(Subnets::default(), raw.ports, raw.port_ranges, &at)
    }

    #[test]
    fn ports_and_subnets_are_read() {
        let nic = nic("
ports: [{port: 80, name: web}, {port: 53, protocol: UDP}]
portRanges: [{start: 8000, end: 8010, protocol: sctp}]
")
        .unwrap();
        let range = |protocol, first, last| PortRange { protocol, first, last };
        let ports =
            [range(Protocol::Tcp, 80, 80), range(Protocol::Udp, 53, 53), range(Protocol::Sctp, 8000, 8010)];
        assert_eq!(nic.ports, ports);
        let text = |text: &str| Some(text.to_owned());
        let Subnets { v4, v6 } =
            subnets(text("10.9.0.0/24"), text("fd99::2/120"), &At("pod".into())).unwrap();
        assert_eq!(v4.map(|net| net.to_string()).as_deref(), Some("10.9.0.0/24"));
        assert_eq!(v6.map(|net| net.to_string()).as_deref(), Some("fd99::2/120"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (yaml, path, problem) in [
            ("ports: [{port: 0}]", "nic.ports[0].port", "\"0\" is not allowed: 1 to 65535"),
            ("ports: [{port: 1}, {port: 65536}]", "nic.ports[1].port", "\"65536\" is not allowed"),
            ("ports: [{port: 1, protocol: icmp}]", "nic.ports[0].protocol", "\"icmp\" is not allowed: TCP"),
            ("portRanges: [{start: 9, end: 8}]", "nic.portRanges[0]", "ends at 8, before its start 9"),
            ("portRanges: [{end: 8}]", "nic.portRanges[0].start", "\"0\" is not allowed"),
        ] {
            let FieldError { path: found, problem: what } = nic(yaml).unwrap_err();
            assert_eq!(found, path);
            assert!(what.to_string().contains(problem), "{what}");
        }
        for (v4, v6) in
            [("10.0.2.0", ""), ("10.0.2.0/31", ""), ("fd00::/64", ""), ("", "10.0.2.0/24"), ("", "::/0")]
        {
            let cidr = |text: &str| Some(text.to_owned());
            assert!(subnets(cidr(v4), cidr(v6), &At("pod".into())).is_err(), "{v4} {v6}");
        }
    }
}
