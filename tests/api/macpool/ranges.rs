//! The range's ConfigMap while replicas run: emptied, deleted, made again, and changed amid an update of the replicas.

use super::replicas::{Patience, create_more, wait_for};
use super::*;

fn change(cluster: &Cluster, data: &Value) {
    let (status, answer) = cluster.api.request("PATCH", CONFIG, Some(&json!({"data": data}).to_string()));
    assert_eq!(status, 200, "{answer}");
}

fn make(cluster: &Cluster, data: &Value) {
    let metadata = json!({"name": "kubemacpool-mac-range-config"});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
    cluster.api.create("/api/v1/namespaces/macpool/configmaps", &map.to_string());
}

fn is_full(cluster: &Cluster) -> bool {
    cluster.try_create(&vm("beyond", &[("red", "")])).0 == 507
}

/// Creates a VM as soon as an address can be had.
fn given(cluster: &Cluster, name: &str) -> String {
    eventually("the new range counts", PATIENCE, || {
        let (status, answer) = cluster.try_create(&vm(name, &[("red", "")]));
        (status == 201).then(|| macs(&answer).remove(0))
    })
}

#[test]
fn a_range_stays_when_its_configmap_is_emptied_or_deleted() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:02");
    let replica = cluster.replica(&["--on-duplicate", "reject"]);
    cluster.create(&vm("one", &[("red", "")]));
    // What it still says counts: this is how the test knows that it was read.
    let apart =
        json!({"RANGE_START": null, "RANGE_END": null, "L2_DOMAINS": "prod=default/br1 lab=default/br2"});
    change(&cluster, &apart);
    cluster.create(&vm("named", &[("red", "06:00:00:00:00:01")]));
    let mut elsewhere = vm("elsewhere", &[("red", "06:00:00:00:00:01")]);
    elsewhere["spec"]["template"]["spec"]["networks"][0]["multus"]["networkName"] = json!("br2");
    eventually("it is read", PATIENCE, || (cluster.try_create(&elsewhere).0 == 201).then_some(()));
    assert_eq!(replica.metric("macpool_range_addresses"), Some(2));
    cluster.create(&vm("two", &[("red", "")]));
    assert!(is_full(&cluster));
    cluster.delete(CONFIG);
    make(&cluster, &json!({"RANGE_START": "02:00:00:00:00:09"}));
    eventually("that it was deleted and made again is seen", PATIENCE, || {
        let events = cluster.get("/api/v1/namespaces/macpool/events");
        let events = events["items"].as_array().unwrap();
        events.iter().any(|event| event["reason"] == "InvalidRange").then_some(())
    });
    assert!(is_full(&cluster));
    change(&cluster, &json!({"RANGE_END": "02:00:00:00:00:09"}));
    assert_eq!(given(&cluster, "three"), "02:00:00:00:00:09");
    // Who starts without one makes one, which the others follow.
    cluster.delete(CONFIG);
    let _second = Replica::start(&cluster.kubeconfig, &[]);
    let first = cluster.get(CONFIG)["data"]["RANGE_START"].as_str().unwrap().to_owned();
    let mac = given(&cluster, "four");
    assert_eq!((&mac[..8], replica.metric("macpool_range_addresses")), (&first[..8], Some(1 << 24)));
}

#[test]
fn a_range_that_changes_amid_a_rolling_update_counts_for_all_replicas() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let (first, second) = (cluster.replica(&[]), cluster.replica(&[]));
    let mut new = Vec::new();
    create_more(&cluster, "vm", 8, 25, Patience::Exact, |done| {
        wait_for(done, 20);
        new.push(cluster.replica(&[]));
        first.terminate();
        change(&cluster, &json!({"RANGE_START": "02:00:00:00:00:80", "RANGE_END": "02:00:00:00:02:ff"}));
        wait_for(done, 90);
        new.push(cluster.replica(&[]));
        second.terminate();
    });
    cluster.assert_unique(200);
    for replica in &new {
        assert_eq!(replica.metric("macpool_range_addresses"), Some(128 + 512));
    }
    // The old part of the range is not given any more, however much of the new one is used up.
    create_more(&cluster, "more", 8, 25, Patience::Exact, |_| {});
    cluster.assert_unique(400);
    let below = cluster.all_macs().into_iter().filter(|(mac, _)| mac.as_str() < "02:00:00:00:00:80");
    let late: Vec<_> = below.filter(|(_, vms)| vms[0].starts_with("more")).collect();
    assert!(late.is_empty(), "{late:?}");
}
