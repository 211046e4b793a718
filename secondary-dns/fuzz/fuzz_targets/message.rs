//! Any octets as a message: the hot path, then the special one. Neither may panic or exceed its buffer.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use secondary_dns::message::Special;
use secondary_dns::wire::{Identity, MAX_UDP, Outcome, Transport, respond};
use secondary_dns::zone::{Settings, Zone};

fn zone() -> &'static Arc<Zone> {
    static ZONE: OnceLock<Arc<Zone>> = OnceLock::new();
    ZONE.get_or_init(|| {
        let domain = "example.com".parse().expect("a name");
        let networks = ["10.0.0.0/8".parse().expect("a network")];
        let settings = Settings::new(&domain, &[], &networks, 30, 5).expect("settings");
        Arc::new(Zone::new(Arc::new(settings), 1))
    })
}

fuzz_target!(|message: &[u8]| {
    let identity = Identity { nsid: b"fuzz".to_vec() };
    let mut buffer = [0; MAX_UDP];
    match respond(zone(), &identity, message, Transport::Udp, &mut buffer) {
        Outcome::Reply { length, .. } => assert!(length <= MAX_UDP),
        Outcome::Special => {
            let peer = IpAddr::from([192, 0, 2, 1]);
            let _handled = Special::default().handle(zone(), &identity, message, Transport::Udp, peer);
        }
        Outcome::Ignore => {}
    }
});
