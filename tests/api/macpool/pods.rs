//! Pods whose names are still to be made up when they are reviewed, as those of a controller's are.

use super::operations::inspect;
use super::*;

const PODS: &str = "/api/v1/namespaces/pods/pods";
const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";

/// With a namespace whose pods are served.
fn strict() -> (Cluster, Replica) {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "pods", "labels": {"mutatepods.kubemacpool.io": "allocate"},
    }});
    cluster.api.create("/api/v1/namespaces", &namespace.to_string());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.api.create("/api/v1/namespaces/pods/serviceaccounts", &account.to_string());
    let domains = json!({"data": {"L2_DOMAINS": "prod=pods/red lab=pods/blue"}}).to_string();
    assert_eq!(cluster.api.request("PATCH", CONFIG, Some(&domains)).0, 200);
    let replica = cluster.replica(&["--on-duplicate", "reject"]);
    (cluster, replica)
}

fn pod(metadata: Value, networks: &str) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    });
    pod["metadata"]["annotations"] = json!({NETWORKS: networks});
    pod
}

/// A network with this address on it.
fn with(network: &str, mac: &str) -> String {
    json!([{"name": network, "mac": mac}]).to_string()
}

fn mac(stored: &Value) -> String {
    let networks = stored["metadata"]["annotations"][NETWORKS].as_str().unwrap();
    serde_json::from_str::<Value>(networks).unwrap()[0]["mac"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_is_known_by_the_start_of_its_name_until_it_has_one() {
    let (cluster, replica) = strict();
    let create = |pod: &Value| cluster.api.request("POST", PODS, Some(&pod.to_string()));
    let unnamed = |networks: &str| pod(json!({"generateName": "web-"}), networks);
    let stored: Vec<_> = (0..2).map(|_| cluster.api.create(PODS, &unnamed("red").to_string())).collect();
    assert_ne!(mac(&stored[0]), mac(&stored[1]));
    let table = inspect(&cluster, &[&mac(&stored[0])]);
    let owner = format!("  pod pods/{}  ", stored[0]["metadata"]["name"].as_str().unwrap());
    let [_, row] = table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    assert!(row.starts_with(&format!("{}  in use  ", mac(&stored[0]))) && row.contains(&owner), "{table}");
    // One that is refused after its review, which nobody ever sees.
    let address = "06:00:00:00:00:01";
    let mut refused = unnamed(&with("red", address));
    refused["spec"]["containers"] = json!([]);
    assert_eq!(create(&refused).0, 422);
    let table = inspect(&cluster, &[address]);
    assert!(table.contains(&format!("{address}  claimed  ")) && table.contains("  pods/web-*"), "{table}");
    let (status, answer) = create(&pod(json!({"name": "db"}), &with("red", address)));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("is already used by pod pods/web-*"), "{answer}");
    // Of a long one the API server keeps less than all.
    let address = "06:00:00:00:00:02";
    let long = pod(json!({"generateName": "w".repeat(63)}), &with("red", address));
    let stored = cluster.api.create(PODS, &long.to_string());
    assert_eq!(stored["metadata"]["name"].as_str().unwrap().len(), 63);
    eventually("it is seen", PATIENCE, || (replica.metric("macpool_objects") == Some(3)).then_some(()));
    let elsewhere = pod(json!({"name": "elsewhere"}), &with("blue", address));
    let (status, answer) = create(&elsewhere);
    assert_eq!((status, &answer["message"]), (201, &Value::Null), "the first one is known");
}

#[test]
fn a_pod_that_has_ended_keeps_its_address_and_hinders_nobody() {
    let (cluster, replica) = strict();
    let create = |name: &str, network: &str, mac: &str| {
        let pod = pod(json!({"name": name}), &with(network, mac)).to_string();
        cluster.api.request("POST", PODS, Some(&pod))
    };
    let address = "06:00:00:00:00:01";
    assert_eq!(create("job-1", "red", address).0, 201);
    eventually("it is seen", PATIENCE, || (replica.metric("macpool_objects") == Some(1)).then_some(()));
    assert_eq!(create("job-2", "red", address).0, 409, "it runs");
    let ended = json!({"status": {"phase": "Succeeded"}}).to_string();
    assert_eq!(cluster.api.request("PATCH", &format!("{PODS}/job-1/status"), Some(&ended)).0, 200);
    // As the next run of a job that has its address by name.
    eventually("it may have it", PATIENCE, || (create("job-2", "red", address).0 == 201).then_some(()));
    eventually("both are seen", PATIENCE, || (replica.metric("macpool_objects") == Some(2)).then_some(()));
    assert_eq!(replica.metric("kubevirt_kmp_duplicate_macs"), Some(0));
    let table = inspect(&cluster, &[address]);
    assert!(table.contains("pods/job-1 ") && table.contains("pods/job-2 "), "{table}");
    assert!(!table.contains("duplicate"), "{table}");
}

#[test]
fn a_pod_and_a_vm_of_one_name_are_two() {
    let (cluster, replica) = strict();
    // Not stored yet.
    let mut same = vm("same", &[("red", "06:00:00:00:00:01")]);
    same["metadata"]["namespace"] = json!("pods");
    let review = replica.answer_in("pods", "u", &same).unwrap();
    assert_eq!(review["allowed"], true, "{review}");
    let pod = pod(json!({"name": "same"}), &with("red", "06:00:00:00:00:01"));
    let (status, answer) = cluster.api.request("POST", PODS, Some(&pod.to_string()));
    assert_eq!(status, 409, "{answer}");
    let (status, answer) =
        cluster.api.request("POST", &VMS.replace("/default/", "/pods/"), Some(&same.to_string()));
    assert_eq!(status, 201, "{answer}");
}
