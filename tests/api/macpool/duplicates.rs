//! One address in two VMs: told or refused, unless they can never meet, or are one guest on its way.

use super::*;

const MAC: &str = "06:00:00:00:00:01";

/// A VM with this one address on a network of its namespace.
fn on(network: &str, name: &str) -> Value {
    let mut vm = vm(name, &[("nic", MAC)]);
    vm["spec"]["template"]["spec"]["networks"][0]["multus"]["networkName"] = json!(network);
    vm
}

fn strict() -> (Cluster, Replica) {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&["--on-duplicate", "reject"]);
    (cluster, replica)
}

fn await_objects(replica: &Replica, count: u64) {
    eventually("they are seen", PATIENCE, || {
        (replica.metric("macpool_objects") == Some(count)).then_some(())
    });
}

fn await_duplicates(replica: &Replica, count: u64) {
    eventually("the metric tells", PATIENCE, || {
        (replica.metric("kubevirt_kmp_duplicate_macs") == Some(count)).then_some(())
    });
}

#[test]
fn networks_that_never_meet_may_share_an_address() {
    let (cluster, replica) = strict();
    cluster.create(&on("red", "one"));
    await_objects(&replica, 1);
    let (status, answer) = cluster.try_create(&on("blue", "two"));
    assert_eq!(status, 409, "two definitions may lead to one wire: {answer}");
    let domains = json!({"data": {"L2_DOMAINS": "prod=default/red,default/pink\nlab=default/blue"}});
    let (status, answer) = cluster.api.request("PATCH", CONFIG, Some(&domains.to_string()));
    assert_eq!(status, 200, "{answer}");
    eventually("they may now", PATIENCE, || (cluster.try_create(&on("blue", "two")).0 == 201).then_some(()));
    await_objects(&replica, 2);
    let (status, answer) = cluster.try_create(&on("default/pink", "three"));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("already used by default/one"), "{answer}");
    await_duplicates(&replica, 0);
    assert_eq!(cluster.create(&behind_nat("nat")), [MAC]);
}

/// A VM with this one address, which nobody sees.
fn behind_nat(name: &str) -> Value {
    let mut vm = on("", name);
    let spec = &mut vm["spec"]["template"]["spec"];
    spec["networks"][0] = json!({"name": "nic", "pod": {}});
    spec["domain"]["devices"]["interfaces"][0] = json!({"name": "nic", "masquerade": {}, "macAddress": MAC});
    vm
}

#[test]
fn who_meets_nobody_may_have_an_address_of_which_it_is_not_known_who_has_it() {
    let (_cluster, replica) = strict();
    let response = |vm: &Value| replica.answer("u", vm).unwrap();
    assert_eq!(response(&on("red", "one"))["allowed"], true);
    let other = response(&on("red", "two"));
    assert_eq!(other["status"]["code"], 409, "nobody has seen the first one yet: {other}");
    assert_eq!(response(&behind_nat("nat"))["allowed"], true);
    let mut waiting = on("red", "target");
    waiting["spec"]["runStrategy"] = json!("WaitAsReceiver");
    assert_eq!(response(&waiting)["allowed"], true);
}

#[test]
fn a_nic_that_moves_to_another_network_is_judged_there() {
    let (cluster, replica) = strict();
    let domains =
        json!({"data": {"L2_DOMAINS": "prod=default/red lab=default/blue,default/green"}}).to_string();
    assert_eq!(cluster.api.request("PATCH", CONFIG, Some(&domains)).0, 200);
    cluster.create(&on("red", "one"));
    eventually("the domains count", PATIENCE, || {
        (cluster.try_create(&on("blue", "two")).0 == 201).then_some(())
    });
    await_objects(&replica, 2);
    // By a manifest that names the address, and by one that leaves it out.
    for named in [true, false] {
        let put = |network: &str| {
            let mut two = cluster.get(&format!("{VMS}/two"));
            let spec = &mut two["spec"]["template"]["spec"];
            spec["networks"][0]["multus"]["networkName"] = json!(network);
            if !named {
                spec["domain"]["devices"]["interfaces"][0].as_object_mut().unwrap().remove("macAddress");
            }
            cluster.api.request("PUT", &format!("{VMS}/two"), Some(&two.to_string()))
        };
        let (status, answer) = put("red");
        assert_eq!(status, 409, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains("already used by default/one"), "{answer}");
        let (status, answer) = put(if named { "green" } else { "blue" });
        assert_eq!((status, macs(&answer)), (200, vec![MAC.to_owned()]), "{answer}");
    }
}

/// The event about this object that its address is another's too, once there is one.
fn await_event(cluster: &Cluster, object: &Value) -> String {
    eventually("an event on the object", PATIENCE, || {
        let events = cluster.get("/api/v1/namespaces/default/events");
        let events = events["items"].as_array().unwrap().iter();
        let event = events.filter(|event| event["reason"] == "MACCollision").find(|event| {
            event["involvedObject"]["uid"] == object["metadata"]["uid"]
                && event["involvedObject"]["kind"] == object["kind"]
        })?;
        Some(event["message"].as_str().unwrap().to_owned())
    })
}

#[test]
fn a_duplicate_is_told_on_each_object_that_comes_with_it() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&[]);
    cluster.create(&on("red", "one"));
    await_objects(&replica, 1);
    let by_one = format!("macAddress {MAC} is also used by default/one");
    let (_, two) = cluster.try_create(&on("red", "two"));
    assert_eq!(await_event(&cluster, &two), by_one);
    // Its guest, which users look at as well; and one that belongs to no VM.
    for name in ["two", "solitary"] {
        let instance = cluster.api.create(VMIS, &vmi_of(&on("red", name)).to_string());
        assert_eq!(await_event(&cluster, &instance), by_one);
    }
    // Another object under a name of which something was told.
    cluster.delete(&format!("{VMS}/two"));
    let (_, again) = cluster.try_create(&on("red", "two"));
    assert_eq!(await_event(&cluster, &again), by_one);
}

#[test]
fn the_target_of_a_migration_has_the_sources_address() {
    let (cluster, replica) = strict();
    let source = on("red", "source");
    cluster.create(&source);
    let instance = |vm: &Value, migration: Value| {
        let mut vmi = vmi_of(vm);
        vmi["status"]["migrationState"] = migration;
        vmi.to_string()
    };
    let migration = json!({"sourceState": {"migrationUID": "s-1"}, "targetState": {"migrationUID": "t-1"}});
    cluster.api.create(VMIS, &instance(&source, migration.clone()));
    await_objects(&replica, 2);
    let mut target = on("red", "target");
    assert_eq!(cluster.try_create(&target).0, 409, "a VM with a guest of its own");
    target["spec"].as_object_mut().unwrap().remove("running");
    target["spec"]["runStrategy"] = json!("WaitAsReceiver");
    assert_eq!(cluster.create(&target), [MAC]);
    cluster.api.create(VMIS, &instance(&target, migration));
    await_objects(&replica, 4);
    await_duplicates(&replica, 0);
    // It is over, and nobody has removed the source.
    let patch = json!({"status": {"migrationState": null}}).to_string();
    let (status, answer) = cluster.api.request("PATCH", &format!("{VMIS}/target"), Some(&patch));
    assert_eq!(status, 200, "{answer}");
    await_duplicates(&replica, 1);
    let told = await_event(&cluster, &answer);
    assert_eq!(told, format!("macAddress {MAC} is also used by default/source"));
}

#[test]
fn a_vm_that_was_just_deleted_is_restored_with_its_addresses() {
    let (cluster, replica) = strict();
    let (status, stored) = cluster.try_create(&vm("one", &[("red", ""), ("blue", "")]));
    assert_eq!(status, 201, "{stored}");
    let given = macs(&stored);
    await_objects(&replica, 1);
    cluster.delete(&format!("{VMS}/one"));
    await_objects(&replica, 0);
    let (status, answer) = cluster.try_create(&vm("other", &[("red", &given[0])]));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("was deleted a short while ago"), "{answer}");
    let restored = vm("one", &[("red", &given[0]), ("blue", &given[1])]);
    assert_eq!(cluster.create(&restored), given);
}

#[test]
fn a_vm_that_is_restored_over_itself_has_its_earlier_addresses_again() {
    let (cluster, _replica) = strict();
    let given = cluster.create(&vm("one", &[("red", ""), ("blue", "")]));
    // What VirtualMachineRestore does: the spec of the snapshot takes the place of the one that has come to be.
    let snapshot = cluster.get(&format!("{VMS}/one"))["spec"].clone();
    let put = |spec: &Value| {
        let mut one = cluster.get(&format!("{VMS}/one"));
        one["spec"] = spec.clone();
        cluster.api.request("PUT", &format!("{VMS}/one"), Some(&one.to_string()))
    };
    let mut changed = snapshot.clone();
    let interfaces = "/template/spec/domain/devices/interfaces";
    changed.pointer_mut(interfaces).unwrap().as_array_mut().unwrap().pop();
    changed["template"]["spec"]["networks"].as_array_mut().unwrap().pop();
    changed["template"]["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] = json!(MAC);
    assert_eq!(put(&changed).0, 200);
    // Seen or not: only the VM itself may have what it gave up, for now.
    for mac in &given {
        let (status, answer) = cluster.try_create(&vm("other", &[("red", mac)]));
        assert_eq!(status, 409, "{answer}");
    }
    let (status, answer) = put(&snapshot);
    assert_eq!((status, macs(&answer)), (200, given), "{answer}");
}

/// A VM whose name the API server makes up.
fn unnamed(mut vm: Value) -> Value {
    vm["metadata"] = json!({"generateName": "web-", "namespace": "default"});
    vm
}

#[test]
fn vms_whose_names_are_still_to_be_made_up_are_different_ones() {
    let (cluster, replica) = strict();
    // Asked for by two at the same moment: neither has been seen yet.
    let response = |uid: &str| replica.answer(uid, &unnamed(on("red", ""))).unwrap();
    assert_eq!(response("first")["allowed"], true);
    let second = response("second");
    assert_eq!((&second["allowed"], &second["status"]["code"]), (&json!(false), &json!(409)), "{second}");
    let message = second["status"]["message"].as_str().unwrap();
    assert!(message.ends_with("is already used by default/web-*first"), "{message}");
    assert_eq!(response("first")["allowed"], true, "asked again, as its answer got lost");
    let (status, stored) = cluster.try_create(&unnamed(vm("", &[("red", ""), ("blue", "")])));
    assert_eq!(status, 201, "{stored}");
    let other = cluster.create(&unnamed(vm("", &[("red", ""), ("blue", "")])));
    assert!(macs(&stored).iter().all(|mac| !other.contains(mac)), "{stored} {other:?}");
}

#[test]
fn an_address_of_a_vm_whose_name_was_made_up_may_be_used_on_another_wire() {
    let (cluster, replica) = strict();
    let domains = json!({"data": {"L2_DOMAINS": "prod=default/red lab=default/blue"}}).to_string();
    assert_eq!(cluster.api.request("PATCH", CONFIG, Some(&domains)).0, 200);
    assert_eq!(cluster.create(&unnamed(on("red", ""))), [MAC]);
    await_objects(&replica, 1);
    eventually("the domains count", PATIENCE, || {
        (cluster.try_create(&on("blue", "two")).0 == 201).then_some(())
    });
}
