//! What nobody should do to macpool, and what others did before it came: it costs no address, no write and no peace.

use std::collections::HashSet;

use super::between::{Between, Fate, is};
use super::*;

const BLOCKS: &str = "/macblocks";
const LEASES: &str = "/leases";
const BLOCK: &str = "/apis/macpool.guestwire.io/v1/macblocks/02-00-00-00-00";
const BESIDE: &str = "/apis/macpool.guestwire.io/v1/macblocks/02-00-00-00-01";

/// Waits until the replica has renewed its lease so many times more: a second each.
fn await_renewals(between: &Between, count: usize) {
    between.await_asked("PUT", LEASES, between.asked("PUT", LEASES) + count);
}

/// The record of a block.
fn record(block: &str, taken: &str, claims: &Value) -> String {
    let block = block.rsplit('/').next().unwrap();
    json!({
        "apiVersion": "macpool.guestwire.io/v1", "kind": "MacBlock", "metadata": {"name": block},
        "spec": {"taken": format!("{taken:0>64}"), "turn": 1, "claims": claims},
    })
    .to_string()
}

#[test]
fn a_block_whose_addresses_others_have_is_not_taken_again_and_again() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:01");
    // From before macpool: nothing is known of them but that they are there.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "past", "labels": {"mutatevirtualmachines.kubemacpool.io": "ignore"},
    }});
    cluster.api.create("/api/v1/namespaces", &namespace.to_string());
    let mut past = vm("past", &[("red", "02:00:00:00:00:00"), ("blue", "02:00:00:00:00:01")]);
    past["metadata"]["namespace"] = json!("past");
    cluster.api.create(&VMS.replace("/default/", "/past/"), &past.to_string());
    let between = Between::start(&cluster);
    let replica = Replica::start(&between.kubeconfig, &["--grace", "5"]);
    cluster.service.add(replica.reviews);
    assert_eq!(cluster.try_create(&vm("one", &[("red", "")])).0, 507);
    let writes =
        || ["POST", "PUT", "DELETE"].iter().map(|method| between.asked(method, BLOCKS)).sum::<usize>();
    let before = writes();
    await_renewals(&between, 3);
    assert!(writes() - before < 5, "{} writes for nothing", writes() - before);
    cluster.delete(&format!("{}/past", VMS.replace("/default/", "/past/")));
    eventually("they are free", PATIENCE, || {
        (cluster.try_create(&vm("one", &[("red", "")])).0 == 201).then_some(())
    });
}

#[test]
fn a_name_that_no_object_can_have_leaves_nothing_behind() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let first = cluster.replica(&[]);
    eventually("it holds the block", PATIENCE, || first.review("before"));
    let mut named = vm(&"a".repeat(600), &[("red", "02:00:00:00:00:fe")]);
    let (status, answer) = cluster.try_create(&named);
    assert_eq!(status, 422, "{answer}");
    named["metadata"]["name"] = json!(null);
    // What is cut off here is in the middle of a letter.
    named["metadata"]["generateName"] = json!(format!("a{}", "ä".repeat(600)));
    let (status, answer) = cluster.try_create(&named);
    assert_eq!(status, 422, "{answer}");
    let second = cluster.replica(&[]);
    eventually("the block is handed over", Duration::from_secs(20), || second.review("after"));
}

#[test]
fn a_record_with_claims_that_are_none_is_used_all_the_same() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:01");
    let claims = json!({"x": "default/x", "300": "default/y", "1": "default/z"});
    cluster.api.create("/apis/macpool.guestwire.io/v1/macblocks", &record(BLOCK, "2", &claims));
    let replica = cluster.replica(&[]);
    assert_eq!(eventually("it gives", PATIENCE, || replica.review("one")), ["02:00:00:00:00:00"]);
}

#[test]
fn a_block_whose_record_is_deleted_while_another_is_taken_is_let_go_first() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:01:07");
    // Nothing to be had there at first.
    let full = record(BESIDE, &"f".repeat(64), &json!({}));
    cluster.api.create("/apis/macpool.guestwire.io/v1/macblocks", &full);
    let between = Between::start(&cluster);
    between.rule(|line| if is(line, "PUT", BESIDE) { Fate::Held } else { Fate::Pass });
    let replica = Replica::start(&between.kubeconfig, &[]);
    let first = eventually("it holds a block", PATIENCE, || replica.review("zero"));
    let give = |name: &str| -> Vec<String> {
        let nics: Vec<String> = (0..60).map(|n| format!("nic-{n}")).collect();
        let nics: Vec<(&str, &str)> = nics.iter().map(|nic| (nic.as_str(), "")).collect();
        let answer = replica.answer("u", &vm(name, &nics)).unwrap();
        let patch = STANDARD.decode(answer["patch"].as_str().unwrap()).unwrap();
        let patch: Value = serde_json::from_slice(&patch).unwrap();
        patch.as_array().unwrap().iter().map(|op| op["value"].as_str().unwrap().to_owned()).collect()
    };
    let more = (0..4).flat_map(|n| give(&format!("vm-{n}")));
    let mut given: HashSet<String> = first.into_iter().chain(more).collect();
    let (status, answer) = cluster.api.request("PATCH", BESIDE, Some(&record(BESIDE, "1", &json!({}))));
    assert_eq!(status, 200, "{answer}");
    between.await_asked("PUT", BESIDE, 1);
    cluster.delete(BLOCK);
    // By then the watch has told.
    await_renewals(&between, 2);
    between.rule(|_| Fate::Pass);
    assert_eq!(between.await_answer("PUT", BESIDE), "200");
    for n in 0..20 {
        let macs = eventually("it gives", PATIENCE, || replica.review(&format!("after-{n}")));
        assert!(given.insert(macs[0].clone()), "{macs:?} was given twice");
    }
}
