//! What must hold for any octets sent to the server. The fuzz target calls it without end, the test `corpus.rs` with
//! every message of `tests/malformed.txt`, which is the target's corpus as well.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use hickory_proto::op::{Message, ResponseCode};
use secondary_dns::message::tsig::Keyring;
use secondary_dns::message::{Handled, Special, answer};
use secondary_dns::secondaries::Secondaries;
use secondary_dns::transfer::messages;
use secondary_dns::wire::{Identity, MAX_TCP, MAX_UDP, Outcome, PLAIN_UDP, Transport, respond};
use secondary_dns::zone::{InfoSource, Policy, Settings, SharedZone, VmRecords, Zone, ZoneWriter};
use vm_api::vmi::Vmi;

/// Who sends: a stranger, and a secondary that is known by its address.
const PEERS: [IpAddr; 2] = [IpAddr::V4(STRANGER), IpAddr::V4(SECONDARY)];
const STRANGER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 1);
const SECONDARY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 2);

/// No octets make the server panic, write beyond its buffer, answer longer than the client allows, or say anything
/// else than the reference says.
pub(crate) fn check(message: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut buffer = vec![0; if transport == Transport::Udp { MAX_UDP } else { MAX_TCP }];
        match respond(zone(), identity(), message, transport, &mut buffer) {
            Outcome::Reply { length, rcode, .. } => {
                let reply = buffer.get(..length).expect("a reply is within its buffer");
                assert_eq!(reply.get(..2), message.get(..2), "the identifier comes back");
                agrees(message, reply, rcode, transport);
            }
            Outcome::Special => PEERS.into_iter().for_each(|peer| special(message, transport, peer)),
            Outcome::Ignore => {}
        }
    }
}

/// Compares a reply with the reference's, if the reference can read both.
fn agrees(message: &[u8], reply: &[u8], rcode: u16, transport: Transport) {
    let decoded = Message::from_vec(reply).expect("others can read our reply");
    assert_eq!(u16::from(decoded.response_code), rcode);
    if decoded.response_code == ResponseCode::FormErr {
        return;
    }
    // hickory also reads what is inside the options of EDNS, which we rightly do not look at.
    let Ok(request) = Message::from_vec(message) else { return };
    if transport == Transport::Udp {
        assert!(reply.len() <= usize::from(request.max_payload()).clamp(PLAIN_UDP, MAX_UDP));
    }
    if !decoded.truncation {
        let reference = answer(zone(), identity(), &request).to_vec().expect("an answer can be written");
        assert_eq!(decoded, Message::from_vec(&reference).expect("and read"));
    }
}

fn special(message: &[u8], transport: Transport, peer: IpAddr) {
    match special_rules().handle(zone(), identity(), message, transport, peer) {
        Handled::Reply { octets, .. } => {
            Message::from_vec(&octets).expect("others can read our reply");
            assert!(transport == Transport::Tcp || octets.len() <= MAX_UDP);
        }
        Handled::Transfer(transfer) => {
            assert!(transport == Transport::Tcp && peer == SECONDARY, "nobody else gets the zone");
            for part in messages(zone(), &transfer) {
                Message::from_vec(&part).expect("others can read each message of a transfer");
            }
        }
        Handled::Nothing => {}
    }
}

fn identity() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| Identity { nsid: b"fuzz".to_vec() })
}

fn special_rules() -> &'static Special {
    static SPECIAL: OnceLock<Special> = OnceLock::new();
    SPECIAL.get_or_init(|| {
        let keys = Keyring::default();
        let secondary = SECONDARY.to_string().parse().expect("a secondary");
        Special {
            secondaries: Secondaries::new(vec![secondary], &keys).expect("no keys"),
            keys,
            ..Special::default()
        }
    })
}

/// A zone with one VM of two NICs, one of which has more addresses than UDP carries, and PTR records.
fn zone() -> &'static Arc<Zone> {
    static ZONE: OnceLock<Arc<Zone>> = OnceLock::new();
    ZONE.get_or_init(|| {
        let domain = "example.com".parse().expect("a name");
        let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().expect("a network"));
        let server = ["192.0.2.53".parse().expect("an address")];
        let settings = Settings::new(&domain, &server, &networks, 30, 5).expect("settings");
        let shared = Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 7)));
        let mut writer = ZoneWriter::new(Arc::clone(&shared));
        let policy = Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 };
        let records = VmRecords::of(&vmi(), &policy).expect("a VM's name").expect("NICs");
        writer.set(&records.name.clone(), Some(records));
        writer.publish(8);
        shared.load_full()
    })
}

fn vmi() -> Vmi {
    let many: Vec<String> = (1..200).map(|n| format!("10.9.0.{n}")).collect();
    serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": "ns1"},
        "status": {"phase": "Running", "interfaces": [
            {"name": "blue", "ipAddresses": ["10.1.0.5", "2001:db8::5"]}, {"name": "many", "ipAddresses": many},
        ]},
    }))
    .expect("a VMI")
}
