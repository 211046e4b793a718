//! What users see of one replica, through the API server itself.

use super::*;

fn cluster() -> (Cluster, Replica) {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&[]);
    (cluster, replica)
}

#[test]
fn every_nic_gets_an_address_and_the_rest_of_the_vm_stays() {
    let (cluster, _replica) = cluster();
    let sent = vm("one", &[("red", ""), ("blue", "06-00-00-00-00-01")]);
    let (status, mut stored) = cluster.try_create(&sent);
    assert_eq!(status, 201, "{stored}");
    let [red, blue] = &macs(&stored)[..] else { panic!("{stored}") };
    assert!(red.starts_with("02:00:00:00:"), "{red}");
    assert_eq!(blue, "06-00-00-00-00-01", "as its author wrote it");
    let red_path = "/spec/template/spec/domain/devices/interfaces/0";
    stored.pointer_mut(red_path).unwrap().as_object_mut().unwrap().remove("macAddress");
    assert_eq!(stored["spec"], sent["spec"]);
}

#[test]
fn applying_the_users_yaml_again_keeps_the_addresses() {
    let (cluster, replica) = cluster();
    let sent = vm("one", &[("red", ""), ("blue", "")]);
    let given = cluster.create(&sent);
    let again = |sent: &Value| {
        let mut sent = sent.clone();
        let stored = cluster.get(&format!("{VMS}/one"));
        sent["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        let (status, answer) = cluster.api.request("PUT", &format!("{VMS}/one"), Some(&sent.to_string()));
        assert_eq!(status, 200, "{answer}");
        macs(&answer)
    };
    assert_eq!(again(&sent), given);
    replica.terminate();
    let _replica = cluster.replica(&[]);
    let more = again(&vm("one", &[("green", ""), ("blue", ""), ("red", "")]));
    assert_eq!((&more[1], &more[2]), (&given[1], &given[0]), "also after a restart");
    assert!(!given.contains(&more[0]));
}

#[test]
fn stopping_and_starting_keeps_the_addresses() {
    let (cluster, _replica) = cluster();
    let given = cluster.create(&vm("one", &[("red", ""), ("blue", "")]));
    for running in [true, false, true] {
        let patch = json!({"spec": {"running": running}}).to_string();
        let (status, answer) = cluster.api.request("PATCH", &format!("{VMS}/one"), Some(&patch));
        assert_eq!((status, macs(&answer)), (200, given.clone()), "{answer}");
    }
}

#[test]
fn a_dry_run_is_shown_an_address_and_takes_none() {
    let (cluster, _replica) = cluster();
    let vm = vm("one", &[("red", ""), ("blue", "")]);
    let dry = || {
        let (status, answer) =
            cluster.api.request("POST", &format!("{VMS}?dryRun=All"), Some(&vm.to_string()));
        assert_eq!(status, 201, "{answer}");
        macs(&answer)
    };
    let shown = dry();
    assert!(shown.iter().all(|mac| mac.starts_with("02:")), "{shown:?}");
    assert_eq!(dry(), shown, "still free");
    let (_, answer) = cluster.api.request(
        "POST",
        &format!("{VMS}?dryRun=All"),
        Some(&self::vm("named", &[("red", ""), ("blue", &shown[0])]).to_string()),
    );
    assert_ne!(macs(&answer)[0], macs(&answer)[1], "not what another NIC names");
    let named = super::vm("named", &[("red", "06:00:00:00:00:01")]).to_string();
    let (status, answer) = cluster.api.request("POST", &format!("{VMS}?dryRun=All"), Some(&named));
    assert_eq!((status, macs(&answer)), (201, vec!["06:00:00:00:00:01".to_owned()]), "{answer}");
    let block = "/apis/macpool.guestwire.io/v1/macblocks/06-00-00-00-00";
    assert_eq!(cluster.api.request("GET", block, None).0, 404, "nor one asked for by name");
    assert_eq!(cluster.create(&vm), shown, "free until now");
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let (cluster, _replica) = cluster();
    let refused = |nics: &[(&str, &str)]| {
        let (status, answer) = cluster.try_create(&vm("bad", nics));
        assert_eq!(status, 422, "{answer}");
        answer["message"].as_str().unwrap().to_owned()
    };
    let twice = refused(&[("red", "06:00:00:00:00:01"), ("blue", "06-00-00-00-00-01")]);
    assert!(
        twice.ends_with(r#"interfaces "red" and "blue" have the same macAddress 06:00:00:00:00:01"#),
        "{twice}"
    );
    assert!(refused(&[("red", "01:00:00:00:00:01")]).contains("a group address"));
    assert!(refused(&[("red", "nonsense")]).contains("is not an Ethernet address"));
    let mut malformed = vm("bad", &[]);
    malformed["spec"]["template"]["spec"]["networks"] = json!("none");
    let (status, answer) = cluster.try_create(&malformed);
    assert_eq!(status, 422, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("malformed"), "{answer}");
}

#[test]
fn a_full_range_says_so_and_named_addresses_still_work() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:02");
    let replica = cluster.replica(&[]);
    let taken = || replica.metric("macpool_taken_addresses");
    assert_eq!(taken(), Some(0), "its block is held, and nothing of it is taken");
    cluster.create(&vm("one", &[("red", ""), ("blue", "")]));
    assert_eq!(taken(), Some(2));
    let (status, answer) = cluster.try_create(&vm("two", &[("red", "")]));
    assert_eq!(status, 507, "{answer}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("the range is full: all 2 addresses"), "{message}");
    cluster.create(&vm("three", &[("red", "06:00:00:00:00:01")]));
}

#[test]
fn a_namespace_that_opts_out_is_left_alone() {
    let (cluster, _replica) = cluster();
    let namespace = "/api/v1/namespaces/default";
    let label = |value: Value| {
        let labels = json!({"metadata": {"labels": {"mutatevirtualmachines.kubemacpool.io": value}}});
        let (status, answer) = cluster.api.request("PATCH", namespace, Some(&labels.to_string()));
        assert_eq!(status, 200, "{answer}");
    };
    label(json!("ignore"));
    // The API server's own view of namespaces follows a moment later.
    eventually("VMs pass unchanged", PATIENCE, || {
        let name = format!("out-{:?}", std::time::Instant::now()).to_lowercase();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        (cluster.create(&vm(&name, &[("red", "")])) == [""]).then_some(())
    });
    label(json!("allocate"));
    eventually("VMs get addresses again", PATIENCE, || {
        let name = format!("in-{:?}", std::time::Instant::now()).to_lowercase();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        (cluster.create(&vm(&name, &[("red", "")])) != [""]).then_some(())
    });
}

#[test]
fn pods_that_opt_in_get_addresses_in_both_forms() {
    let (cluster, _replica) = cluster();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "pods", "labels": {"mutatepods.kubemacpool.io": "allocate"},
    }});
    cluster.api.create("/api/v1/namespaces", &namespace.to_string());
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.api.create("/api/v1/namespaces/pods/serviceaccounts", &account.to_string());
    let create = |name: &str, networks: &str| {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": {"k8s.v1.cni.cncf.io/networks": networks, "other": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
        });
        let stored = cluster.api.create("/api/v1/namespaces/pods/pods", &pod.to_string());
        assert_eq!(stored["metadata"]["annotations"]["other"], "x");
        let text = stored["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"].as_str().unwrap();
        serde_json::from_str::<Value>(text).unwrap()
    };
    let comma = create("comma", "red, default/blue@net5");
    assert_eq!(comma[1]["interface"], "net5");
    let json = create(
        "json",
        r#"[{"name":"red","ips":["192.0.2.1/24"]},{"name":"blue","mac":"06:00:00:00:00:09"}]"#,
    );
    assert_eq!(json[0]["ips"], json!(["192.0.2.1/24"]));
    assert_eq!(json[1]["mac"], "06:00:00:00:00:09");
    let given = [&comma[0]["mac"], &comma[1]["mac"], &json[0]["mac"]];
    assert!(given.iter().all(|mac| mac.as_str().unwrap().starts_with("02:00:00:00:")), "{given:?}");
    assert!(given[0] != given[1] && given[0] != given[2] && given[1] != given[2], "{given:?}");
}

#[test]
fn what_is_not_macpools_is_left_alone() {
    let (cluster, _replica) = cluster();
    let namespace = |name: &str, labels: Value| {
        let metadata = json!({"name": name, "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        cluster.api.create("/api/v1/namespaces", &namespace.to_string());
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        cluster.api.create(&format!("/api/v1/namespaces/{name}/serviceaccounts"), &account.to_string());
    };
    namespace("plain", json!({}));
    namespace("system", json!({"runlevel": "1"}));
    namespace("cluster", json!({"openshift.io/run-level": "0", "mutatepods.kubemacpool.io": "allocate"}));
    let without = vm("one", &[("red", "")]);
    let create = |namespace: &str, mut vm: Value| {
        vm["metadata"]["namespace"] = json!(namespace);
        let path = VMS.replace("/default/", &format!("/{namespace}/"));
        macs(&cluster.api.create(&path, &vm.to_string()))
    };
    assert_ne!(create("plain", without.clone()), [""], "VMs are served unless their namespace opts out");
    for name in ["system", "cluster"] {
        assert_eq!(create(name, without.clone()), [""], "a namespace of the cluster's own: {name}");
    }
    let instance = cluster.api.create(VMIS, &vmi_of(&without).to_string());
    let nic = &instance["spec"]["domain"]["devices"]["interfaces"][0];
    assert_eq!(nic["macAddress"], Value::Null, "an instance on its own: {instance}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "pod", "annotations": {"k8s.v1.cni.cncf.io/networks": "red"}},
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    });
    for name in ["plain", "cluster"] {
        let stored = cluster.api.create(&format!("/api/v1/namespaces/{name}/pods"), &pod.to_string());
        let networks = &stored["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"];
        assert_eq!(networks, "red", "a pod whose namespace does not opt in: {name}");
    }
}
