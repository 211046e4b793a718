//! Tests of the writer: what readers see after a change.

use super::*;
use crate::name::NameBuf;
use crate::zone::{Found, InfoSource, Policy, Settings, Zone, reverse};

fn shared(name_servers: &[IpAddr]) -> Arc<SharedZone> {
    let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let settings = Settings::new(&"example.com".parse().unwrap(), name_servers, &networks, 30, 5).unwrap();
    Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 1)))
}

fn vm(namespace: &str, name: &str, nics: &[(&str, &[&str], &str)], created: &str) -> VmRecords {
    let interfaces: Vec<_> = nics
        .iter()
        .map(|(nic, addresses, source)| {
            serde_json::json!({"name": nic, "ipAddresses": addresses, "infoSource": source})
        })
        .collect();
    let vmi = serde_json::from_value(serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "status": {"phase": "Running", "interfaces": interfaces},
    }));
    let policy = Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 };
    VmRecords::of(&vmi.unwrap(), &policy).unwrap().unwrap()
}

/// What a name has, in one word each.
fn look(shared: &SharedZone, name: &str) -> String {
    let absolute: Name = name.parse().unwrap();
    let zone = shared.load();
    let name = NameBuf::read(absolute.as_bytes(), 0).unwrap();
    match zone.find(&name) {
        None => "elsewhere".to_owned(),
        Some((_, Found::Apex)) => "apex".to_owned(),
        Some((_, Found::Addresses(set))) => {
            set.iter().map(|address| address.to_string()).collect::<Vec<_>>().join(" ")
        }
        Some((_, Found::Pointer(name))) => name.to_string(),
        Some((_, Found::Empty)) => "empty".to_owned(),
        Some((_, Found::Nothing)) => "nothing".to_owned(),
    }
}

fn reverse(shared: &SharedZone, address: &str) -> String {
    look(shared, &reverse::owner_name(address.parse().unwrap()).unwrap().to_string())
}

fn put(writer: &mut ZoneWriter, records: VmRecords) {
    writer.set(&records.name.clone(), Some(records));
    writer.publish(writer.serial() + 1);
}

fn take(writer: &mut ZoneWriter, name: &str) {
    let (vm, namespace) = name.split_once('.').unwrap();
    writer.set(&crate::zone::vm_name(namespace, vm).unwrap(), None);
    writer.publish(writer.serial() + 1);
}

#[test]
fn a_change_is_seen_whole_and_leaves_nothing_behind() {
    let shared = shared(&[]);
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    put(&mut writer, vm("ns1", "vm1", &[("blue", &["10.1.0.5"], ""), ("red", &["10.2.0.5"], "")], ""));
    assert_eq!(look(&shared, "vm1.ns1.vm.example.com"), "10.1.0.5");
    assert_eq!(look(&shared, "red.vm1.ns1.vm.example.com"), "10.2.0.5");
    assert_eq!(look(&shared, "ns1.vm.example.com"), "empty");
    assert_eq!(reverse(&shared, "10.2.0.5"), "red.vm1.ns1");
    assert_eq!(look(&shared, "2.10.in-addr.arpa"), "empty");
    assert_eq!(look(&shared, "3.10.in-addr.arpa"), "nothing");

    put(&mut writer, vm("ns1", "vm1", &[("red", &["10.3.0.5"], "")], ""));
    assert_eq!(look(&shared, "vm1.ns1.vm.example.com"), "10.3.0.5");
    assert_eq!(look(&shared, "blue.vm1.ns1.vm.example.com"), "nothing");
    assert_eq!(reverse(&shared, "10.1.0.5"), "nothing");

    take(&mut writer, "vm1.ns1");
    for name in ["vm1.ns1", "red.vm1.ns1", "ns1"] {
        assert_eq!(look(&shared, &format!("{name}.vm.example.com")), "nothing");
    }
    assert_eq!(shared.load().size(), (0, 0));
    assert_eq!(look(&shared, "vm.example.com"), "apex");
    assert_eq!(look(&shared, "example.com"), "elsewhere");
}

#[test]
fn the_same_again_is_no_change() {
    let mut writer = ZoneWriter::new(shared(&[]));
    put(&mut writer, vm("ns1", "vm1", &[("blue", &["10.1.0.5"], "")], ""));
    let again = vm("ns1", "vm1", &[("blue", &["10.1.0.5/24"], "")], "");
    writer.set(&again.name.clone(), Some(again));
    assert!(!writer.has_changes());
}

#[test]
fn a_snapshot_in_use_stays_as_it_was() {
    let shared = shared(&[]);
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    put(&mut writer, vm("ns1", "vm1", &[("blue", &["10.1.0.5"], "")], ""));
    let before = shared.load_full();
    take(&mut writer, "vm1.ns1");
    assert_eq!(before.forward_records().count(), 2);
    assert_eq!(shared.load().forward_records().count(), 0);
}

#[test]
fn what_is_not_present_goes() {
    let shared = shared(&[]);
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    put(&mut writer, vm("a", "x", &[("n", &["10.0.0.1"], "")], ""));
    put(&mut writer, vm("b", "x", &[("n", &["10.0.0.2"], "")], ""));
    writer.retain(&HashSet::from([crate::zone::vm_name("b", "x").unwrap()]));
    writer.publish(9);
    let got = ["x.a", "x.b"].map(|name| look(&shared, &format!("{name}.vm.example.com")));
    assert_eq!(got, ["nothing", "10.0.0.2"]);
}

#[test]
fn a_namespace_called_ns_neither_hides_nor_removes_the_name_server() {
    let shared = shared(&["192.0.2.53".parse().unwrap()]);
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    put(&mut writer, vm("ns", "vm1", &[("n", &["10.0.0.1"], "")], ""));
    assert_eq!(look(&shared, "ns.vm.example.com"), "192.0.2.53");
    assert_eq!(look(&shared, "vm1.ns.vm.example.com"), "10.0.0.1");
    take(&mut writer, "vm1.ns");
    assert_eq!(look(&shared, "ns.vm.example.com"), "192.0.2.53");
}

#[test]
fn an_address_seen_on_the_wire_never_takes_the_reverse_name_of_another_vm() {
    let honest = || vm("a", "honest", &[("n", &["10.0.0.1"], "guest-agent")], "2026-01-02T00:00:00Z");
    let liar = || vm("a", "liar", &[("n", &["10.0.0.1"], "wire")], "2026-01-01T00:00:00Z");
    for order in [[honest(), liar()], [liar(), honest()]] {
        let shared = shared(&[]);
        let mut writer = ZoneWriter::new(Arc::clone(&shared));
        order.into_iter().for_each(|records| put(&mut writer, records));
        assert_eq!(reverse(&shared, "10.0.0.1"), "n.honest.a");
        take(&mut writer, "honest.a");
        assert_eq!(reverse(&shared, "10.0.0.1"), "n.liar.a");
    }
}

#[test]
fn of_equal_claims_the_oldest_vm_has_the_reverse_name_in_every_order() {
    let old = || vm("a", "z-old", &[("n", &["2001:db8::1"], "wire")], "2026-01-01T00:00:00Z");
    let new = || vm("a", "a-new", &[("n", &["2001:db8::1"], "wire")], "2026-01-02T00:00:00Z");
    let undated = || vm("a", "b-undated", &[("n", &["2001:db8::1"], "wire")], "");
    for order in [[old(), new(), undated()], [undated(), new(), old()], [new(), old(), undated()]] {
        let shared = shared(&[]);
        let mut writer = ZoneWriter::new(Arc::clone(&shared));
        order.into_iter().for_each(|records| put(&mut writer, records));
        assert_eq!(reverse(&shared, "2001:db8::1"), "n.z-old.a");
    }
}

proptest::proptest! {
    /// Whatever happened before, the zone is what its VMs say now: the same as one made from them at once.
    #[test]
    fn history_leaves_no_trace(
        steps in proptest::collection::vec((0..4u8, proptest::option::of((0..3u8, 0..3u8, 0..3u8))), 1..40),
    ) {
        let changed = shared(&[]);
        let mut writer = ZoneWriter::new(Arc::clone(&changed));
        let mut now = std::collections::BTreeMap::new();
        for (number, content) in steps {
            let records = content.map(|(first, second, age)| {
                let addresses = [format!("10.0.0.{first}"), format!("10.0.0.{second}")];
                let nics: [(&str, &[&str], &str); 2] = [("a", &[&addresses[0]], "wire"), ("b", &[&addresses[1]], "guest-agent")];
                vm("ns", &format!("vm{number}"), &nics, &format!("2026-01-0{}T00:00:00Z", age + 1))
            });
            writer.set(&crate::zone::vm_name("ns", &format!("vm{number}")).unwrap(), records.clone());
            now.insert(number, records);
        }
        writer.publish(9);
        let fresh = shared(&[]);
        let mut writer = ZoneWriter::new(Arc::clone(&fresh));
        now.into_values().flatten().for_each(|records| writer.set(&records.name.clone(), Some(records)));
        writer.publish(9);
        let all = |shared: &SharedZone| {
            let zone = shared.load_full();
            let mut names: Vec<String> = zone.forward_records().map(|(name, set)| format!("{name} {:?}", set.iter().collect::<Vec<_>>())).collect();
            names.sort_unstable();
            let pointers = zone.reverse_records("10.0.0.0/8".parse().unwrap()).map(|(ip, name)| format!("{ip} {name}"));
            (names, pointers.collect::<Vec<_>>(), zone.size())
        };
        proptest::prop_assert_eq!(all(&changed), all(&fresh));
    }
}
