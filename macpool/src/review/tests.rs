//! Reviews as the API server sends them, and as nobody should.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::answer::PatchOp;
use super::envelope::{Request, ReviewError};
use super::*;

const VMS: &str = "virtualmachines.kubevirt.io";
const OLD: Mac = Mac([2, 0, 0, 0, 0, 1]);
const NEW: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn nic(name: &str, mac: Option<&str>) -> Value {
    match mac {
        Some(mac) => json!({"name": name, "bridge": {}, "macAddress": mac}),
        None => json!({"name": name, "bridge": {}}),
    }
}

/// A VM whose NICs are all on secondary networks, but for `pod` and `nat`.
fn machine(nics: &[Value]) -> Value {
    let networks: Vec<_> = nics
        .iter()
        .map(|nic| match nic["name"].as_str().unwrap() {
            name @ ("pod" | "nat") => json!({"name": name, "pod": {}}),
            name => json!({"name": name, "multus": {"networkName": "br1"}}),
        })
        .collect();
    json!({
        "metadata": {"name": "vm", "namespace": "ns", "annotations": {"x": "y"}},
        "spec": {"running": true, "unknown": {"deep": [1]}, "template": {"spec": {
            "domain": {"devices": {"interfaces": nics}}, "networks": networks,
        }}},
    })
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": operation, "namespace": "ns", "name": "vm", "dryRun": false,
            "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
            "object": object, "oldObject": old,
        },
    })
}

fn vm_wants(review: &Value) -> Result<Vec<(usize, String, Address)>, Refusal> {
    let body = review.to_string();
    let request = Request::parse(body.as_bytes(), VMS).unwrap();
    let wants = vm::wants(&request)?;
    Ok(wants.into_iter().map(|Want { index, nic, address, segment: _ }| (index, nic, address)).collect())
}

fn create(nics: &[Value]) -> Result<Vec<(usize, String, Address)>, Refusal> {
    vm_wants(&review("CREATE", &machine(nics), &Value::Null))
}

fn update(new: &[Value], old: &[Value]) -> Result<Vec<(usize, String, Address)>, Refusal> {
    vm_wants(&review("UPDATE", &machine(new), &machine(old)))
}

#[test]
fn a_new_vm_gets_addresses_on_secondary_networks_and_behind_nat() {
    let nat = json!({"name": "nat", "masquerade": {}});
    let wants = create(&[nic("pod", None), nat, nic("red", None), nic("blue", Some("02-00-00-00-00-01"))]);
    assert_eq!(
        wants.unwrap(),
        [
            (1, "nat".into(), Address::Any),
            (2, "red".into(), Address::Any),
            (3, "blue".into(), Address::Named(OLD)),
        ]
    );
    assert_eq!(create(&[nic("red", Some(""))]).unwrap(), [(0, "red".into(), Address::Any)]);
}

#[test]
fn an_update_keeps_addresses_and_restores_what_the_users_yaml_lacks() {
    let old = [nic("red", Some("02:00:00:00:00:01")), nic("blue", Some("02:00:00:00:00:02"))];
    assert_eq!(update(&old, &old).unwrap(), []);
    let applied = [nic("blue", None), nic("red", None), nic("green", None)];
    assert_eq!(
        update(&applied, &old).unwrap(),
        [
            (0, "blue".into(), Address::Restored(NEW)),
            (1, "red".into(), Address::Restored(OLD)),
            (2, "green".into(), Address::Any),
        ]
    );
    let changed = [nic("red", Some("02:00:00:00:00:03"))];
    let three = Mac([2, 0, 0, 0, 0, 3]);
    assert_eq!(update(&changed, &old).unwrap(), [(0, "red".into(), Address::Named(three))]);
    let swapped = [nic("red", Some("02:00:00:00:00:02")), nic("blue", Some("02:00:00:00:00:01"))];
    assert_eq!(update(&swapped, &old).unwrap(), [], "both are its own");
}

#[test]
fn a_nic_that_moves_to_another_network_may_meet_others_there() {
    let old = machine(&[nic("red", Some("02:00:00:00:00:01")), nic("blue", Some("02:00:00:00:00:02"))]);
    let mut moved = old.clone();
    moved["spec"]["template"]["spec"]["networks"][0]["multus"]["networkName"] = json!("br2");
    let body = review("UPDATE", &moved, &old).to_string();
    let wants = vm::wants(&Request::parse(body.as_bytes(), VMS).unwrap()).unwrap();
    let expected = Want {
        index: 0,
        nic: "red".to_owned(),
        address: Address::Moved(OLD),
        segment: Segment::network("ns", "br2"),
    };
    assert_eq!(wants, [expected]);
    // Nor does it get past that by leaving the address out.
    moved["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]
        .as_object_mut()
        .unwrap()
        .remove("macAddress");
    assert_eq!(
        vm_wants(&review("UPDATE", &moved, &old)).unwrap(),
        [(0, "red".into(), Address::Carried(OLD))]
    );
    // A guest that has arrived stays where its VM was going to have it.
    let mut waiting = old.clone();
    waiting["spec"]["runStrategy"] = json!("WaitAsReceiver");
    assert_eq!(vm_wants(&review("UPDATE", &old, &waiting)).unwrap(), []);
}

#[test]
fn what_a_vm_does_wrong_is_refused_by_name() {
    let refused = |nics: &[Value]| create(nics).unwrap_err().to_string();
    let one = Some("02:00:00:00:00:01");
    assert_eq!(
        refused(&[nic("red", one), nic("blue", Some("0200.0000.0001"))]),
        r#"interfaces "red" and "blue" have the same macAddress 02:00:00:00:00:01"#
    );
    assert_eq!(
        refused(&[nic("red", Some("01:00:5e:00:00:01"))]),
        "interface \"red\": macAddress 01:00:5e:00:00:01 is a group address or zero; a NIC needs a unicast one"
    );
    for mac in ["ff-ff-ff-ff-ff-ff", "0000.0000.0000"] {
        assert!(refused(&[nic("red", Some(mac))]).contains("unicast"));
    }
    assert!(refused(&[nic("red", Some("02:00:00:00:00"))]).contains("is not an Ethernet address"));
    assert_eq!(refused(&[nic("red", None), nic("red", None)]), r#"two interfaces are called "red""#);
    let many: Vec<_> = (0..300).map(|n| nic(&format!("n{n}"), None)).collect();
    assert!(refused(&many).contains("300 interfaces"));
}

#[test]
fn an_update_is_judged_by_what_it_changes() {
    let bad =
        [nic("red", Some("junk")), nic("a", Some("02:00:00:00:00:01")), nic("b", Some("02:00:00:00:00:01"))];
    assert_eq!(update(&bad, &bad).unwrap(), [], "it was stored so, and must be able to lose its finalizers");
    let worse = [bad[0].clone(), bad[1].clone(), bad[2].clone(), nic("c", Some("02:00:00:00:00:01"))];
    assert!(matches!(update(&worse, &bad), Err(Refusal::SameAddress { .. })));
    // Restoring would make the same mistake: the user moved the address, and now re-applies an older manifest.
    let old = [nic("a", Some("02:00:00:00:00:01")), nic("b", Some("02:00:00:00:00:02"))];
    let moved = [nic("a", None), nic("b", Some("02:00:00:00:00:01"))];
    assert!(matches!(update(&moved, &old), Err(Refusal::SameAddress { mac: OLD, .. })));
    let mut leaving = machine(&[nic("red", Some("junk"))]);
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(vm_wants(&review("UPDATE", &leaving, &machine(&[]))).unwrap(), []);
    assert_eq!(vm_wants(&review("DELETE", &Value::Null, &machine(&bad))).unwrap(), []);
}

#[test]
fn a_nic_that_was_stored_without_an_address_is_left_alone_until_it_changes() {
    let without = [nic("red", None), json!({"name": "nat", "masquerade": {}})];
    assert_eq!(update(&without, &without).unwrap(), []);
    let more = [without[0].clone(), without[1].clone(), nic("blue", None)];
    assert_eq!(update(&more, &without).unwrap(), [(2, "blue".into(), Address::Any)]);
    // Its address was not macpool's to give, and now is.
    let bridged = [nic("pod", None)];
    let nat = json!({"name": "pod", "masquerade": {}});
    assert_eq!(update(&[nat], &bridged).unwrap(), [(0, "pod".into(), Address::Any)]);
    // Who leaves out an address that no NIC can have means another.
    for bad in ["junk", "01:00:5e:00:00:01", "00-00-00-00-00-00"] {
        let old = [nic("red", Some(bad))];
        assert_eq!(update(&without[..1], &old).unwrap(), [(0, "red".into(), Address::Any)], "{bad}");
    }
}

#[test]
fn a_patch_touches_single_addresses() {
    let body = answer::allow("u-1", &[PatchOp::interface_mac(2, OLD)], &["careful".into()]).unwrap();
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let patch = BASE64_STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
    let path = "/spec/template/spec/domain/devices/interfaces/2/macAddress";
    assert_eq!(
        serde_json::from_slice::<Value>(&patch).unwrap(),
        json!([{"op": "add", "path": path, "value": "02:00:00:00:00:01"}])
    );
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["warnings"], json!(["careful"]));
    let nothing: Value = serde_json::from_slice(&answer::allow("u-2", &[], &[]).unwrap()).unwrap();
    assert_eq!(nothing["response"], json!({"uid": "u-2", "allowed": true}));
}

fn pod_wants(annotations: Value, labels: Value) -> Result<Option<pod::PodWants>, Refusal> {
    let mut review =
        review("CREATE", &json!({"metadata": {"annotations": annotations, "labels": labels}}), &Value::Null);
    review["request"]["resource"] = json!({"group": "", "version": "v1", "resource": "pods"});
    let body = review.to_string();
    pod::wants(&Request::parse(body.as_bytes(), "pods").unwrap())
}

fn annotated(text: &str) -> Result<Option<pod::PodWants>, Refusal> {
    pod_wants(json!({"a": "b", pod::NETWORKS: text}), Value::Null)
}

#[test]
fn both_forms_of_a_pods_networks_get_addresses() {
    let json = r#"[{"name": "red", "ips": ["10.0.0.1/24"], "x": {"y": 1}}, {"name": "blue", "mac": "02:00:00:00:00:02"}]"#;
    let wants = annotated(json).unwrap().unwrap();
    let addresses: Vec<_> = wants.wants.iter().map(|want| want.address).collect();
    assert_eq!(addresses, [Address::Any, Address::Named(NEW)]);
    assert_eq!(
        serde_json::from_str::<Value>(&wants.with([(0, OLD)]).unwrap()).unwrap(),
        json!([
            {"name": "red", "ips": ["10.0.0.1/24"], "x": {"y": 1}, "mac": "02:00:00:00:00:01"},
            {"name": "blue", "mac": "02:00:00:00:00:02"},
        ])
    );
    let wants = annotated("red, other/blue@net7").unwrap().unwrap();
    let segments: Vec<_> = wants.wants.iter().map(|want| want.segment.clone()).collect();
    assert_eq!(segments, [Segment::network("ns", "red"), Segment::network("other", "blue")]);
    assert_eq!(
        serde_json::from_str::<Value>(&wants.with([(0, OLD), (1, NEW)]).unwrap()).unwrap(),
        json!([
            {"name": "red", "mac": "02:00:00:00:00:01"},
            {"name": "blue", "namespace": "other", "interface": "net7", "mac": "02:00:00:00:00:02"},
        ])
    );
}

#[test]
fn an_entry_without_a_text_for_its_address_gets_one() {
    let wants = annotated(r#" [{"name": "a", "mac": null}, {"name": "b", "mac": ""}]"#).unwrap().unwrap();
    let addresses: Vec<_> = wants.wants.iter().map(|want| want.address).collect();
    assert_eq!(addresses, [Address::Any, Address::Any]);
}

#[test]
fn only_a_new_pod_gets_addresses() {
    let annotations = json!({"metadata": {"annotations": {pod::NETWORKS: "red"}}});
    let mut review = review("UPDATE", &annotations, &annotations);
    review["request"]["resource"] = json!({"group": "", "version": "v1", "resource": "pods"});
    let body = review.to_string();
    assert_eq!(pod::wants(&Request::parse(body.as_bytes(), "pods").unwrap()).unwrap(), None);
}

#[test]
fn the_addresses_in_a_vms_pod_are_the_vms() {
    let nics = |role: &str| {
        let annotation = r#"[{"name": "red", "mac": "02:00:00:00:00:01"}, {"name": "blue"}]"#;
        let metadata = json!({"annotations": {pod::NETWORKS: annotation}, "labels": {"kubevirt.io": role}});
        let text = json!({"metadata": metadata}).to_string();
        serde_json::from_str::<pod::Pod<'_>>(&text).unwrap().nics("ns")
    };
    assert_eq!(nics("virt-launcher"), []);
    assert_eq!(nics("none"), [crate::segment::Nic { mac: OLD, segment: Segment::network("ns", "red") }]);
}

#[test]
fn a_pod_that_has_ended_meets_nobody() {
    let annotation = r#"[{"name": "red", "mac": "02:00:00:00:00:01"}]"#;
    for (phase, over) in [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true)] {
        let metadata = json!({"annotations": {pod::NETWORKS: annotation}});
        let text = json!({"metadata": metadata, "status": {"phase": phase}}).to_string();
        let [nic] = &serde_json::from_str::<pod::Pod<'_>>(&text).unwrap().nics("ns")[..] else { panic!() };
        assert_eq!((nic.mac, nic.segment == Segment::Alone), (OLD, over), "{phase}");
    }
}

#[test]
fn who_waits_for_a_guest_and_who_is_behind_nat_meets_nobody() {
    let mut waiting = machine(&[nic("red", Some("02:00:00:00:00:01"))]);
    waiting["spec"]["runStrategy"] = json!("WaitAsReceiver");
    let nat = json!({"name": "nat", "masquerade": {}, "macAddress": "02:00:00:00:00:01"});
    for object in [waiting, machine(&[nat])] {
        let body = review("CREATE", &object, &Value::Null).to_string();
        let [want] = &vm::wants(&Request::parse(body.as_bytes(), VMS).unwrap()).unwrap()[..] else {
            panic!()
        };
        assert_eq!((want.address, &want.segment), (Address::Named(OLD), &Segment::Alone));
        let text = object.to_string();
        let [nic] = &serde_json::from_str::<vm::Vm<'_>>(&text).unwrap().nics("ns")[..] else { panic!() };
        assert_eq!(nic.segment, Segment::Alone);
    }
}

#[test]
fn pods_without_networks_and_those_of_vms_are_left_alone() {
    assert_eq!(pod_wants(Value::Null, Value::Null).unwrap(), None);
    assert_eq!(pod_wants(json!({"a": "b"}), json!({"kubevirt.io": "x"})).unwrap(), None);
    assert_eq!(annotated(" ").unwrap(), None);
    let launcher = pod_wants(json!({pod::NETWORKS: "red"}), json!({"kubevirt.io": "virt-launcher"}));
    assert_eq!(launcher.unwrap(), None);
}

#[test]
fn a_networks_annotation_that_makes_no_sense_is_refused() {
    for text in
        ["[", "[1]", "a//b", "a@", "a@b@c", "red,,blue", "A", "A/b", r#"[{"name":"a","mac":7}]"#, "a/b/c"]
    {
        assert!(matches!(annotated(text), Err(Refusal::Networks(_))), "{text}");
    }
    let twice = r#"[{"name":"a","mac":"02:00:00:00:00:01"},{"name":"b","mac":"02-00-00-00-00-01"}]"#;
    assert!(matches!(annotated(twice), Err(Refusal::SameAddress { .. })));
    let group = r#"[{"name":"a","mac":"01:00:00:00:00:01"}]"#;
    assert!(matches!(annotated(group), Err(Refusal::NotUnicast { .. })));
    assert!(matches!(annotated("a,".repeat(300).trim_end_matches(',')), Err(Refusal::TooMany(300))));
    // More than the API server stores, and each of these takes a hundred times the memory of its text.
    let large = format!("[{}{{}}]", "{\"a\":0},".repeat(40_000));
    assert!(matches!(annotated(&large), Err(Refusal::Networks(_))));
}

#[test]
fn networks_without_number_are_refused_before_they_are_looked_through() {
    let nics: Vec<_> = (0..256).map(|n| nic(&format!("nic-{n}"), None)).collect();
    let mut flood = machine(&nics);
    let networks = vec![json!({"name": "", "multus": {}}); 30_000];
    *flood.pointer_mut("/spec/template/spec/networks").unwrap() = json!(networks);
    let body = review("CREATE", &flood, &Value::Null).to_string();
    let request = Request::<'_, vm::Vm<'_>>::parse(body.as_bytes(), VMS).unwrap();
    assert_eq!(vm::wants(&request).unwrap_err(), Refusal::TooManyNetworks(30_000));
}

#[test]
fn bodies_that_are_no_review_of_ours_are_told_so() {
    let parse = |value: &Value| {
        let body = value.to_string();
        Request::<'_, vm::Vm<'_>>::parse(body.as_bytes(), VMS).map(|_| ()).unwrap_err()
    };
    let good = review("CREATE", &machine(&[]), &Value::Null);
    let changed = |path: &str, value: Value| {
        let mut review = good.clone();
        *review.pointer_mut(path).unwrap() = value;
        parse(&review)
    };
    assert!(matches!(changed("/kind", json!("Pod")), ReviewError::Kind { .. }));
    assert!(matches!(changed("/apiVersion", json!("admission.k8s.io/v1beta1")), ReviewError::Kind { .. }));
    assert!(matches!(changed("/request", Value::Null), ReviewError::NoRequest));
    assert!(matches!(changed("/request/uid", json!(1)), ReviewError::Json(_)));
    assert!(matches!(changed("/request/operation", json!("PATCH")), ReviewError::Json(_)));
    assert!(matches!(changed("/request/resource/resource", json!("pods")), ReviewError::Resource { .. }));
    let object = changed("/request/object/spec/template/spec/domain/devices/interfaces", json!("x"));
    assert!(matches!(object, ReviewError::Object { uid, .. } if uid == "u-1"));
    assert!(matches!(parse(&json!([])), ReviewError::Json(_)));
}

#[test]
fn a_list_is_not_taken_for_an_object() {
    let parse = |object: Value| {
        let body = review("CREATE", &object, &Value::Null).to_string();
        Request::<'_, vm::Vm<'_>>::parse(body.as_bytes(), VMS).map(|_| ()).unwrap_err()
    };
    let good = machine(&[nic("red", None)]);
    for (place, list) in [
        ("", json!([{"name": "vm"}, good["spec"]])),
        ("/metadata", json!([null, "ns", "vm"])),
        ("/spec", json!(["Always", good["spec"]["template"]])),
        ("/spec/template", json!([good["spec"]["template"]["spec"]])),
        ("/spec/template/spec/domain", json!([{"interfaces": []}])),
        ("/spec/template/spec/domain/devices/interfaces/0", json!(["red", "02:00:00:00:00:01", null])),
        ("/spec/template/spec/networks/0/multus", json!(["br1"])),
    ] {
        let mut object = good.clone();
        *object.pointer_mut(place).unwrap() = list;
        match parse(object) {
            ReviewError::Object { message, .. } => {
                assert!(message.contains("sequence"), "{place}: {message}");
            }
            other => panic!("{place}: {other}"),
        }
    }
}

proptest! {
    /// Damaged reviews are errors, not panics, and do not take for ever.
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..2000, bytes: Vec<u8>, comma in "\\PC{0,40}") {
        let good = review("UPDATE", &machine(&[nic("red", None)]), &machine(&[nic("red", Some("02:00:00:00:00:01"))]));
        let mut body = good.to_string().into_bytes();
        let at = at.min(body.len());
        let end = (at + bytes.len()).min(body.len());
        body.splice(at..end, bytes);
        if let Ok(request) = Request::<'_, vm::Vm<'_>>::parse(&body, VMS) {
            let _any = vm::wants(&request);
        }
        let _any = annotated(&comma);
    }
}
