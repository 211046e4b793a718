//! Any bytes as a frame of the guest's, and behind each right header. No answer may be longer than a frame.
//!
//! The frames of `tests/frames.txt` make a corpus: `cut -d: -f2 tests/frames.txt | xxd -r -p`, line by line.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use guest_dhcp::{Dhcpv4, Dhcpv6, Extra, Guest, Resolver, Responder, Router};
use libfuzzer_sys::fuzz_target;
use net_types::Mac;

const GUEST: Mac = Mac([0x02, 0, 0, 0, 0, 0x42]);

fn responder() -> &'static Responder {
    static RESPONDER: OnceLock<Responder> = OnceLock::new();
    RESPONDER.get_or_init(|| {
        let lease = Duration::from_secs(86_400);
        let (resolver, _) = Resolver::from_resolv_conf(
            "search a.example b.example\nnameserver 192.0.2.1\nnameserver fd00::1\n",
        );
        Responder::new(Guest {
            mac: GUEST,
            server_mac: Mac([0x02, 0, 0, 0, 0, 0]),
            mtu: Some(1500),
            host_name: Some("vm".to_owned()),
            resolver,
            v4: Some(Dhcpv4 {
                address: "10.0.2.2/24".parse().expect("a network"),
                gateway: Some("10.0.2.1".parse().expect("an address")),
                server: "10.0.2.1".parse().expect("an address"),
                routes: Vec::new(),
                lease,
                extra: Extra::default(),
            }),
            v6: Some(Dhcpv6 {
                address: "fd10:0:2::2/120".parse().expect("a network"),
                router: "fe80::1".parse().expect("an address"),
                role: Router::Host,
                lease,
            }),
        })
        .expect("a guest")
    })
}

fuzz_target!(|data: &[u8]| {
    let mut frame = data.to_vec();
    let answer = |frame: &[u8]| {
        let length = responder().answer(frame).map_or(0, |answer| answer.len());
        assert!(length <= 14 + 1500);
    };
    answer(&frame);
    // The guest's own address is a hurdle that a fuzzer need not find.
    if let Some(source) = frame.get_mut(6..12) {
        source.copy_from_slice(&GUEST.octets());
        answer(&frame);
    }
});
