//! The hot path against the reference: the same message, decoded by hickory, must come out.

use std::sync::Arc;

use hickory_proto::op::{Edns, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{DNSClass, Name};
use proptest::prelude::*;

use super::*;
use crate::wire::{Outcome, respond};
use crate::zone::{InfoSource, Policy, Settings, SharedZone, VmRecords, ZoneWriter};

fn zone() -> Arc<Zone> {
    let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let servers = ["192.0.2.53".parse().unwrap(), "2001:db8:53::1".parse().unwrap()];
    let settings = Settings::new(&"example.com".parse().unwrap(), &servers, &networks, 30, 5).unwrap();
    let shared = Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 7)));
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    let many: Vec<String> = (1..200).map(|n| format!("10.9.0.{n}")).collect();
    let policy = Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 };
    for (namespace, name, addresses) in [
        ("ns1", "vm1", vec!["10.1.0.5".to_owned(), "2001:db8::5".to_owned()]),
        ("ns1", "vm2", many),
        ("ns", "vm3", vec!["2001:db8::6".to_owned()]),
    ] {
        let vmi = serde_json::json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": name, "namespace": namespace},
            "status": {"phase": "Running", "interfaces": [
                {"name": "blue", "ipAddresses": addresses}, {"name": "bare"},
            ]},
        });
        let records = VmRecords::of(&serde_json::from_value(vmi).unwrap(), &policy).unwrap().unwrap();
        writer.set(&records.name.clone(), Some(records));
    }
    writer.publish(8);
    shared.load_full()
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["blue", "bare", "vm1", "VM2", "vm3", "ns1", "NS", "vm", "example", "com"])
            .prop_map(str::to_owned),
        2 => prop::sample::select(vec!["10", "1", "0", "5", "6", "in-addr", "ip6", "arpa", "d", "8", "b", "2"])
            .prop_map(str::to_owned),
        1 => "[a-z0-9_-]{1,63}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    let suffix = prop::sample::select(vec![
        "blue.vm1.ns1.vm.example.com",
        "vm2.ns1.vm.example.com",
        "vm3.ns.vm.example.com",
        "ns.vm.example.com",
        "vm.example.com",
        "VM.Example.COM",
        "example.com",
        "5.0.1.10.in-addr.arpa",
        "10.in-addr.arpa",
        "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        "8.b.d.0.1.0.0.2.ip6.arpa",
        "",
    ]);
    (prop::collection::vec(label(), 0..3), suffix).prop_map(|(mut labels, suffix)| {
        labels.push(suffix.to_owned());
        labels.join(".")
    })
}

fn request() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![
        4 => prop::sample::select(vec![1u16, 2, 6, 12, 28, 255]),
        1 => any::<u16>().prop_filter("transfers are special", |kind| !matches!(kind, 251 | 252)),
    ];
    let class = prop_oneof![9 => Just(1u16), 1 => Just(3), 1 => Just(255)];
    let edns = prop::option::of((
        any::<u16>(),
        prop::sample::select(vec![0u8, 0, 0, 1]),
        any::<bool>(),
        any::<bool>(),
    ));
    (name(), kind, class, any::<bool>(), edns).prop_filter_map("a name", |(name, kind, class, rd, edns)| {
        let mut query = Query::query(Name::from_ascii(format!("{name}.")).ok()?, kind.into());
        query.set_query_class(DNSClass::from(class));
        let mut message = Message::query();
        message.metadata.recursion_desired = rd;
        message.add_query(query);
        if let Some((payload, version, dnssec_ok, nsid)) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_version(version).set_dnssec_ok(dnssec_ok);
            if nsid {
                edns.options_mut().insert(EdnsOption::Unknown(EdnsCode::NSID.into(), Vec::new()));
            }
            message.set_edns(edns);
        }
        Some(message)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_hot_path_says_what_the_reference_says(request in request(), tcp: bool) {
        let zone = zone_once();
        let identity = Identity { nsid: b"node-7".to_vec() };
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let octets = request.to_vec().unwrap();
        let mut buffer = vec![0; if tcp { MAX_TCP } else { MAX_UDP }];
        let outcome = respond(zone, &identity, &octets, transport, &mut buffer);
        let Outcome::Reply { length, kind, rcode } = outcome else { panic!("{outcome:?} for {request:?}") };
        let limit = match transport {
            Transport::Tcp => MAX_TCP,
            Transport::Udp => usize::from(request.max_payload()).clamp(PLAIN_UDP, MAX_UDP),
        };
        prop_assert!(length <= limit);
        let decoded = Message::from_vec(&buffer[..length]).unwrap();
        let reference = Message::from_vec(&encode(&answer(zone, &identity, &request), limit)).unwrap();
        prop_assert_eq!(&decoded, &reference);
        prop_assert_eq!(rcode, u16::from(reference.response_code));
        prop_assert_eq!(kind, u16::from(request.queries[0].query_type()));
    }

    #[test]
    fn no_octets_can_make_a_special_message_fail(head: [u8; 2], counts: [bool; 4], rest: Vec<u8>) {
        let [qd, an, ns, ar] = counts.map(u8::from);
        let mut octets = vec![head[0], head[1], head[0] & 0x7f, 0, 0, qd, 0, an, 0, ns, 0, ar];
        octets.extend_from_slice(&rest);
        let peer = "192.0.2.1".parse().unwrap();
        if let Handled::Reply { octets, .. } =
            Special::default().handle(zone_once(), &Identity::default(), &octets, Transport::Udp, peer)
        {
            prop_assert!((HEADER..=MAX_UDP).contains(&octets.len()));
        }
    }
}

#[test]
fn a_flood_of_refused_transfers_is_one_line_a_second_in_the_log() {
    let refusals = Occasionally::default();
    let at = |millis| SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_800_000_000_000 + millis);
    let logged: Vec<u64> = (0..3000).filter(|millis| refusals.may_log(at(*millis))).collect();
    assert_eq!(logged, [0, 1000, 2000]);
}

fn zone_once() -> &'static Arc<Zone> {
    static ZONE: std::sync::OnceLock<Arc<Zone>> = std::sync::OnceLock::new();
    ZONE.get_or_init(zone)
}

/// A key, and a query signed with it.
fn signed_query(algorithm: &str, key: &str, edns: bool, name: &str, kind: RecordType) -> (Keyring, Vec<u8>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{algorithm}:{key}:c2VjcmV0IHNlY3JldCBzZWNyZXQ=\n")).unwrap();
    let keys = Keyring::read(file.path()).unwrap();
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if edns {
        message.set_edns(Edns::new());
    }
    let signer = keys.get(&Name::from_ascii(format!("{key}.")).unwrap()).unwrap();
    message.finalize(signer, tsig::seconds(SystemTime::now())).unwrap();
    (keys, message.to_vec().unwrap())
}

#[test]
fn a_signature_fits_behind_the_reply_however_long_its_names() {
    let long = [63, 63, 63, 61].map(|length| "k".repeat(length)).join(".");
    for (algorithm, key) in [("hmac-sha256", "k"), ("hmac-sha512", "k"), ("hmac-sha512", &*long)] {
        for (edns, limit) in [(false, PLAIN_UDP), (true, MAX_UDP)] {
            // More addresses than UDP carries.
            let (keys, octets) = signed_query(algorithm, key, edns, "vm2.ns1.vm.example.com.", RecordType::A);
            let peer = "192.0.2.1".parse().unwrap();
            let handle = |keys| {
                let special = Special { keys, ..Special::default() };
                let handled =
                    special.handle(zone_once(), &Identity::default(), &octets, Transport::Udp, peer);
                let Handled::Reply { octets, .. } = handled else { panic!("a reply") };
                assert!(octets.len() <= limit, "{algorithm} {edns}: {} octets", octets.len());
                let reply = Message::from_vec(&octets).unwrap();
                assert!(reply.signature().is_some());
                assert_eq!(reply.edns.is_some(), edns);
                reply
            };
            assert!(handle(keys).truncation);
            // Nobody knows the key: refused with a record of the same names.
            assert_eq!(handle(Keyring::default()).response_code, ResponseCode::NotAuth);
        }
    }
}

#[test]
fn a_signed_transfer_has_edns_before_its_signature_if_it_was_asked_for_with_edns() {
    for edns in [false, true] {
        let (keys, octets) = signed_query("hmac-sha256", "k", edns, "vm.example.com.", RecordType::AXFR);
        let secondaries = Secondaries::new(vec!["192.0.2.1,k.".parse().unwrap()], &keys).unwrap();
        let special = Special { keys, secondaries, ..Special::default() };
        let peer = "198.51.100.9".parse().unwrap();
        let handled = special.handle(zone_once(), &Identity::default(), &octets, Transport::Tcp, peer);
        let Handled::Transfer(mut granted) = handled else { panic!("a transfer") };
        let mut session = granted.session.take().unwrap();
        let messages: Vec<Vec<u8>> = crate::transfer::messages(zone_once(), &granted).collect();
        assert!(!messages.is_empty());
        for mut message in messages {
            session.sign(&mut message, SystemTime::now()).unwrap();
            // Decoded only with the signature at the end.
            let decoded = Message::from_vec(&message).unwrap();
            assert!(decoded.signature().is_some());
            assert_eq!(decoded.edns.is_some(), edns);
        }
    }
}
