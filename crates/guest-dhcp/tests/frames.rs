//! Frames of real clients, as they are and mangled.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests report by panicking")]

use std::time::Duration;

use guest_dhcp::{Dhcpv4, Dhcpv6, Extra, Guest, Resolver, Responder, Router};
use net_types::Mac;

/// The longest frame that Ethernet carries, in bytes.
const MAX_FRAME: usize = 14 + 1500;

fn responder() -> Responder {
    let (resolver, skipped) = Resolver::from_resolv_conf(
        "search ns.svc.cluster.local cluster.local\nnameserver 10.96.0.10\nnameserver fd00::10\n",
    );
    assert_eq!(skipped, []);
    let lease = Duration::from_secs(86_400);
    let guest = Guest {
        mac: Mac([0x02, 0, 0, 0, 0, 0x42]),
        server_mac: Mac([0x02, 0, 0, 0, 0, 0]),
        mtu: Some(1500),
        host_name: Some("vm".to_owned()),
        resolver,
        v4: Some(Dhcpv4 {
            address: "10.0.2.2/24".parse().unwrap(),
            gateway: Some("10.0.2.1".parse().unwrap()),
            server: "10.0.2.1".parse().unwrap(),
            routes: Vec::new(),
            lease,
            extra: Extra::default(),
        }),
        v6: Some(Dhcpv6 {
            address: "fd10:0:2::2/120".parse().unwrap(),
            further: Vec::new(),
            router: "fe80::ff:fe00:0".parse().unwrap(),
            role: Router::Host,
            lease,
        }),
    };
    Responder::new(guest).unwrap()
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    listed(include_str!("frames.txt"))
}

fn listed(list: &'static str) -> Vec<(&'static str, Vec<u8>)> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let frame = |line: &'static str| {
        let (name, hex) = line.split_once(": ").unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (name, (0..hex.len()).step_by(2).map(byte).collect())
    };
    lines.map(frame).collect()
}

#[test]
fn every_real_client_is_answered() {
    let responder = responder();
    assert!(frames().len() >= 8);
    for (name, frame) in frames() {
        let answer = responder.answer(&frame).unwrap_or_else(|| panic!("{name} got no answer"));
        assert_eq!(answer[6..12], [0x02, 0, 0, 0, 0, 0], "{name}");
    }
}

#[test]
fn what_fuzzing_found_is_answered_or_not_but_survived() {
    let responder = responder();
    for (name, frame) in listed(include_str!("hostile.txt")) {
        assert!(responder.answer(&frame).is_none_or(|answer| answer.len() <= MAX_FRAME), "{name}");
    }
}

#[test]
fn a_frame_cut_short_is_survived() {
    let responder = responder();
    for (_, frame) in frames() {
        for length in 0..frame.len() {
            let _answer = responder.answer(&frame[..length]);
        }
    }
}

#[test]
fn a_frame_with_any_byte_changed_is_survived() {
    let responder = responder();
    for (name, frame) in frames() {
        for at in 0..frame.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, frame[at].wrapping_add(1), frame[at] ^ 0x10] {
                let mut changed = frame.clone();
                changed[at] = value;
                let answer = responder.answer(&changed).unwrap_or_default();
                assert!(answer.len() <= MAX_FRAME, "{name}, byte {at} set to {value}");
            }
        }
    }
}
