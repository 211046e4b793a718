//! Tests of single replies, octet by octet where it matters.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::zone::{InfoSource, Policy, Settings, SharedZone, VmRecords, Zone, ZoneWriter};

const IDENTITY: Identity = Identity { nsid: Vec::new() };

/// A zone with one VM whose NIC `blue` has `addresses`.
fn zone(addresses: &[&str]) -> Arc<Zone> {
    let server: IpAddr = "192.0.2.53".parse().unwrap();
    let domain = "example.com".parse().unwrap();
    let settings = Settings::new(&domain, &[server], &["10.0.0.0/8".parse().unwrap()], 30, 5).unwrap();
    let shared = Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 7)));
    let vmi = serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "vm1", "namespace": "ns1"},
        "status": {"phase": "Running", "interfaces": [
            {"name": "blue", "ipAddresses": addresses}, {"name": "bare"},
        ]},
    });
    let policy = Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 };
    let records = VmRecords::of(&serde_json::from_value(vmi).unwrap(), &policy).unwrap().unwrap();
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    writer.set(&records.name.clone(), Some(records));
    writer.publish(8);
    shared.load_full()
}

/// A query: header flags, name, type, and what follows the question.
fn query(name: &str, kind: u16, additional: &[u8]) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(!additional.is_empty())];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message.extend_from_slice(additional);
    message
}

fn ask(zone: &Zone, message: &[u8], transport: Transport) -> Vec<u8> {
    let mut buffer = vec![0; MAX_TCP];
    match respond(zone, &IDENTITY, message, transport, &mut buffer) {
        Outcome::Reply { length, .. } => buffer[..length].to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Response code, and the counts of the three sections.
fn shape(reply: &[u8]) -> (u8, [u8; 3]) {
    (reply[3] & 0xf, [reply[7], reply[9], reply[11]])
}

#[test]
fn the_spelling_of_the_question_comes_back_untouched() {
    let message = query("bLuE.Vm1.nS1.VM.eXaMpLe.CoM", TYPE_A, &[]);
    let reply = ask(&zone(&["10.1.0.5"]), &message, Transport::Udp);
    assert_eq!(&reply[HEADER..message.len()], &message[HEADER..]);
    assert_eq!(&reply[..4], [0xab, 0xcd, 0x85, 0x00], "same id, QR AA RD, no error");
    assert_eq!(&reply[message.len()..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 1, 0, 5]);
}

#[test]
fn every_kind_of_name_has_its_own_answer() {
    let zone = zone(&["10.1.0.5", "2001:db8::5"]);
    for (name, kind, expected) in [
        ("vm1.ns1.vm.example.com", TYPE_A, (0, [1, 0, 0])),
        ("vm1.ns1.vm.example.com", TYPE_AAAA, (0, [1, 0, 0])),
        ("vm1.ns1.vm.example.com", TYPE_ANY, (0, [1, 0, 0])),
        ("vm1.ns1.vm.example.com", 16, (0, [0, 1, 0])),
        ("bare.vm1.ns1.vm.example.com", TYPE_A, (0, [0, 1, 0])),
        ("ns1.vm.example.com", TYPE_A, (0, [0, 1, 0])),
        ("vm2.ns1.vm.example.com", TYPE_A, (3, [0, 1, 0])),
        ("x.blue.vm1.ns1.vm.example.com", TYPE_A, (3, [0, 1, 0])),
        ("vm.example.com", TYPE_SOA, (0, [1, 0, 0])),
        ("vm.example.com", TYPE_NS, (0, [1, 0, 1])),
        ("vm.example.com", TYPE_A, (0, [0, 1, 0])),
        ("ns.vm.example.com", TYPE_A, (0, [1, 0, 0])),
        ("example.com", TYPE_A, (5, [0, 0, 0])),
        ("notvm.example.com", TYPE_A, (5, [0, 0, 0])),
        ("", TYPE_NS, (5, [0, 0, 0])),
        ("5.0.1.10.in-addr.arpa", TYPE_PTR, (0, [1, 0, 0])),
        ("0.1.10.in-addr.arpa", TYPE_PTR, (0, [0, 1, 0])),
        ("0.2.10.in-addr.arpa", TYPE_PTR, (3, [0, 1, 0])),
        ("10.in-addr.arpa", TYPE_SOA, (0, [1, 0, 0])),
        ("11.in-addr.arpa", TYPE_SOA, (5, [0, 0, 0])),
        ("vm1.ns1.vm.example.com", 253, (4, [0, 0, 0])),
    ] {
        let reply = ask(&zone, &query(name, kind, &[]), Transport::Udp);
        assert_eq!(shape(&reply), expected, "{name} {kind}");
        let authoritative = reply[2] & 0x04 != 0;
        assert_eq!(authoritative, matches!(expected.0, 0 | 3), "{name} {kind}");
    }
}

#[test]
fn an_answer_too_long_for_the_client_sends_it_to_tcp() {
    let addresses: Vec<String> = (1..=100).map(|n| format!("10.1.0.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let zone = zone(&addresses);
    let opt = [0, 0, 41, 0xff, 0xff, 0, 0, 0x80, 0, 0, 0];
    for (additional, limit) in [(&[][..], PLAIN_UDP), (&opt[..], MAX_UDP)] {
        let message = query("vm1.ns1.vm.example.com", TYPE_A, additional);
        let reply = ask(&zone, &message, Transport::Udp);
        assert!(reply.len() <= limit);
        assert_eq!((reply[2] & 0x02, reply[7]), (0x02, 0), "TC, and nothing half-said");
        let reply = ask(&zone, &message, Transport::Tcp);
        assert_eq!((reply[2] & 0x02, reply[7]), (0, 100));
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let zone = zone(&["10.1.0.5"]);
    let opt = |version: u8, flags: u8| [0, 0, 41, 4, 208, 0, version, flags, 0, 0, 0];
    let reply = ask(&zone, &query("vm1.ns1.vm.example.com", TYPE_A, &opt(0, 0x80)), Transport::Udp);
    assert_eq!(&reply[reply.len() - 11..], [0, 0, 41, 0x04, 0xd0, 0, 0, 0x80, 0, 0, 0]);
    let reply = ask(&zone, &query("vm1.ns1.vm.example.com", TYPE_A, &opt(1, 0)), Transport::Udp);
    assert_eq!(shape(&reply), (0, [0, 0, 1]));
    assert_eq!(reply[reply.len() - 6], 1, "BADVERS is 16: the upper bits are in the OPT record");
}

#[test]
fn the_nsid_is_given_to_those_who_ask() {
    let identity = Identity { nsid: b"node-7".to_vec() };
    let mut buffer = [0; MAX_UDP];
    let asking = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0];
    let message = query("vm1.ns1.vm.example.com", TYPE_A, &asking);
    let outcome = respond(&zone(&["10.1.0.5"]), &identity, &message, Transport::Udp, &mut buffer);
    let Outcome::Reply { length, .. } = outcome else { panic!("{outcome:?}") };
    assert!(buffer[..length].ends_with(b"\x00\x0a\x00\x03\x00\x06node-7"));
}

#[test]
fn nonsense_gets_formerr_and_replies_get_silence() {
    let zone = zone(&["10.1.0.5"]);
    let whole = query("vm1.ns1.vm.example.com", TYPE_A, &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    for cut in HEADER..whole.len() {
        assert_eq!(shape(&ask(&zone, &whole[..cut], Transport::Udp)).0, 1, "cut at {cut}");
    }
    let mut looped = query("x", TYPE_A, &[]);
    looped[HEADER..HEADER + 2].copy_from_slice(&[0xc0, 12]);
    assert_eq!(shape(&ask(&zone, &looped, Transport::Udp)).0, 1);
    let mut buffer = [0; MAX_UDP];
    let mut reply = whole.clone();
    reply[2] |= 0x80;
    for message in [&reply[..], &whole[..HEADER - 1], &[]] {
        assert_eq!(respond(&zone, &IDENTITY, message, Transport::Udp, &mut buffer), Outcome::Ignore);
    }
}

proptest::proptest! {
    #[test]
    fn no_octets_can_make_it_fail(message: Vec<u8>, head: [u8; 2], plausible: bool) {
        let zone = zone(&["10.1.0.5"]);
        let mut buffer = [0; MAX_UDP];
        let mut whole = if plausible { vec![head[0], head[1], 0, 0, 0, 1, 0, 0, 0, 0, 0, 1] } else { Vec::new() };
        whole.extend_from_slice(&message);
        if let Outcome::Reply { length, .. } = respond(&zone, &IDENTITY, &whole, Transport::Udp, &mut buffer) {
            proptest::prop_assert!((HEADER..=MAX_UDP).contains(&length));
        }
    }
}
