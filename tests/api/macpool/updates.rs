//! Updates of VMs that are stored as macpool would not have let them be: judged by what they change.

use super::*;

/// A namespace of its own that macpool leaves alone until it is told otherwise.
struct Late {
    name: &'static str,
}

impl Late {
    fn new(cluster: &Cluster, name: &'static str) -> Self {
        let labels = json!({"mutatevirtualmachines.kubemacpool.io": "ignore"});
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        cluster.api.create("/api/v1/namespaces", &namespace.to_string());
        Self { name }
    }

    fn vms(&self) -> String {
        VMS.replace("/default/", &format!("/{}/", self.name))
    }

    /// Creates a VM here; as it is stored.
    fn try_create(&self, cluster: &Cluster, mut vm: Value) -> (u16, Value) {
        vm["metadata"]["namespace"] = json!(self.name);
        cluster.api.request("POST", &self.vms(), Some(&vm.to_string()))
    }

    /// From now on macpool is asked.
    fn opt_in(&self, cluster: &Cluster) {
        let labels =
            json!({"metadata": {"labels": {"mutatevirtualmachines.kubemacpool.io": null}}}).to_string();
        let namespace = format!("/api/v1/namespaces/{}", self.name);
        assert_eq!(cluster.api.request("PATCH", &namespace, Some(&labels)).0, 200);
        eventually("macpool is asked", PATIENCE, || {
            let nonsense = vm("probe", &[("red", "nonsense")]);
            let (status, _) = cluster.api.request(
                "POST",
                &format!("{}?dryRun=All", self.vms()),
                Some(&{
                    let mut vm = nonsense;
                    vm["metadata"]["namespace"] = json!(self.name);
                    vm.to_string()
                }),
            );
            (status == 422).then_some(())
        });
    }
}

#[test]
fn a_vm_without_addresses_is_left_so_by_updates_of_anything_else() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:02");
    let _replica = cluster.replica(&[]);
    let late = Late::new(&cluster, "late");
    let (status, stored) = late.try_create(&cluster, vm("old", &[("red", ""), ("blue", "")]));
    assert_eq!((status, macs(&stored)), (201, vec![String::new(); 2]), "{stored}");
    late.opt_in(&cluster);
    cluster.create(&vm("one", &[("red", "")]));
    let path = format!("{}/old", late.vms());
    let patch = |path: &str, change: Value| cluster.api.request("PATCH", path, Some(&change.to_string()));
    let check = |full: bool| {
        for change in [
            json!({"metadata": {"labels": {"full": full.to_string()}}}),
            json!({"metadata": {"finalizers": [format!("example.org/{full}")]}}),
            json!({"spec": {"running": full}}),
        ] {
            let (status, answer) = patch(&path, change);
            assert_eq!((status, macs(&answer)), (200, vec![String::new(); 2]), "{answer}");
        }
        let (status, answer) = patch(&format!("{path}/status"), json!({"status": {"ready": full}}));
        assert_eq!((status, macs(&answer)), (200, vec![String::new(); 2]), "{answer}");
    };
    check(false);
    // A NIC that is new gets one, and those beside it are left alone.
    let mut more = cluster.get(&path);
    let spec = &mut more["spec"]["template"]["spec"];
    for (field, added) in [
        ("/domain/devices/interfaces", json!({"name": "green", "bridge": {}})),
        ("/networks", json!({"name": "green", "multus": {"networkName": "br1"}})),
    ] {
        spec.pointer_mut(field).unwrap().as_array_mut().unwrap().push(added);
    }
    let (status, answer) = cluster.api.request("PUT", &path, Some(&more.to_string()));
    assert_eq!(status, 200, "{answer}");
    let given = macs(&answer);
    assert!(given[0].is_empty() && given[1].is_empty() && given[2].starts_with("02:"), "{given:?}");
    // Nothing is left to give, and that is no obstacle to what asks for nothing.
    assert_eq!(cluster.try_create(&vm("two", &[("red", "")])).0, 507);
    let (status, answer) = patch(&path, json!({"metadata": {"labels": {"full": "yes"}}}));
    assert_eq!((status, macs(&answer)), (200, given), "{answer}");
}

#[test]
fn addresses_that_are_none_do_not_hinder_updates_and_can_be_replaced() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&[]);
    let late = Late::new(&cluster, "late");
    let bad = [
        ("red", "nonsense"),
        ("blue", "01:00:5e:00:00:01"),
        ("a", "06:00:00:00:00:01"),
        ("b", "06-00-00-00-00-01"),
    ];
    let (status, stored) = late.try_create(&cluster, vm("old", &bad));
    assert_eq!(status, 201, "{stored}");
    late.opt_in(&cluster);
    let path = format!("{}/old", late.vms());
    let labels = json!({"metadata": {"labels": {"changed": "yes"}}}).to_string();
    let (status, answer) = cluster.api.request("PATCH", &path, Some(&labels));
    assert_eq!((status, macs(&answer)), (200, macs(&stored)), "{answer}");
    eventually("what can be read of it is", PATIENCE, || {
        (replica.metric("macpool_objects") == Some(1)).then_some(())
    });
    // Who leaves the two out means others, not the same ones again.
    let mut mended = cluster.get(&path);
    let nics = &mut mended["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"];
    for nic in nics.as_array_mut().unwrap().iter_mut().take(2) {
        nic.as_object_mut().unwrap().remove("macAddress");
    }
    let (status, answer) = cluster.api.request("PUT", &path, Some(&mended.to_string()));
    assert_eq!(status, 200, "{answer}");
    let given = macs(&answer);
    assert!(
        given[..2].iter().all(|mac| mac.starts_with("02:00:00:00:")) && given[0] != given[1],
        "{given:?}"
    );
    assert_eq!(given[2..], macs(&stored)[2..]);
}

#[test]
fn an_address_is_the_same_in_every_notation() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&["--on-duplicate", "reject"]);
    cluster.create(&vm("one", &[("red", "06-00-00-00-00-0A")]));
    let path = format!("{VMS}/one");
    for text in ["0600.0000.000a", "06:00:00:00:00:0a", "06-00-00-00-00-0a"] {
        let mut one = cluster.get(&path);
        one["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] = json!(text);
        let (status, answer) = cluster.api.request("PUT", &path, Some(&one.to_string()));
        assert_eq!((status, macs(&answer)), (200, vec![text.to_owned()]), "{answer}");
    }
    eventually("it is seen", PATIENCE, || (replica.metric("macpool_objects") == Some(1)).then_some(()));
    let (status, answer) = cluster.try_create(&vm("two", &[("red", "0600.0000.000A")]));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("06:00:00:00:00:0a is already used"), "{answer}");
}

#[test]
fn the_addresses_of_a_namespace_that_is_deleted_are_free_when_its_vms_are_gone() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:02");
    let _replica = cluster.replica(&["--grace", "2"]);
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}});
    cluster.api.create("/api/v1/namespaces", &namespace.to_string());
    let vms = VMS.replace("/default/", "/gone/");
    let mut leaving = vm("one", &[("red", ""), ("blue", "")]);
    leaving["metadata"] = json!({"name": "one", "namespace": "gone", "finalizers": ["example.org/guest"]});
    let stored = cluster.api.create(&vms, &leaving.to_string());
    let path = "/api/v1/namespaces/gone";
    let (_, answer) = cluster.api.request("DELETE", path, None);
    assert_eq!(answer["status"]["phase"], "Terminating", "{answer}");
    // As the namespace controller does it.
    cluster.delete(&vms);
    let one = format!("{vms}/one");
    let labels = json!({"metadata": {"labels": {"guest": "stopping"}}}).to_string();
    let (status, answer) = cluster.api.request("PATCH", &one, Some(&labels));
    assert_eq!((status, macs(&answer)), (200, macs(&stored)), "{answer}");
    for _ in 0..3 {
        assert_eq!(cluster.try_create(&vm("two", &[("red", "")])).0, 507, "it is still there");
    }
    let finalizers = json!({"metadata": {"finalizers": null}}).to_string();
    assert_eq!(cluster.api.request("PATCH", &one, Some(&finalizers)).0, 200);
    eventually("its addresses are free", PATIENCE, || {
        (cluster.try_create(&vm("two", &[("red", ""), ("blue", "")])).0 == 201).then_some(())
    });
}

#[test]
fn an_administrators_changes_of_the_webhook_stay_when_its_authority_is_renewed() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let configuration =
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/kubemacpool-mutator";
    let _replica = cluster.replica(&["--ca-lifetime", "0.0006"]);
    // VMs are served where a label says so, as KubeMacPool's users turn it around.
    let mut changed = cluster.get(configuration);
    changed["webhooks"][0]["namespaceSelector"] = json!({"matchLabels": {"macpool": "yes"}});
    changed["webhooks"][0]["timeoutSeconds"] = json!(29);
    eventually("it is changed", PATIENCE, || {
        changed["metadata"]["resourceVersion"] =
            cluster.get(configuration)["metadata"]["resourceVersion"].clone();
        let (status, _) = cluster.api.request("PUT", configuration, Some(&changed.to_string()));
        (status == 200).then_some(())
    });
    let bundle = |configuration: &Value| configuration["webhooks"][0]["clientConfig"]["caBundle"].clone();
    let before = bundle(&cluster.get(configuration));
    let renewed = eventually("the authority is renewed", 2 * PATIENCE, || {
        Some(cluster.get(configuration)).filter(|now| bundle(now) != before)
    });
    let webhook = &renewed["webhooks"][0];
    assert_eq!(webhook["namespaceSelector"], json!({"matchLabels": {"macpool": "yes"}}));
    assert_eq!(webhook["timeoutSeconds"], 29);
    assert_eq!(renewed["webhooks"][1]["clientConfig"]["caBundle"], bundle(&renewed));
    eventually("VMs elsewhere are left alone", PATIENCE, || {
        let (status, answer) = cluster.api.request(
            "POST",
            &format!("{VMS}?dryRun=All"),
            Some(&vm("out", &[("red", "")]).to_string()),
        );
        (status == 201 && macs(&answer) == [""]).then_some(())
    });
    let labels = json!({"metadata": {"labels": {"macpool": "yes"}}}).to_string();
    assert_eq!(cluster.api.request("PATCH", "/api/v1/namespaces/default", Some(&labels)).0, 200);
    eventually("and here they are served", PATIENCE, || {
        let (status, answer) = cluster.api.request(
            "POST",
            &format!("{VMS}?dryRun=All"),
            Some(&vm("in", &[("red", "")]).to_string()),
        );
        (status == 201 && macs(&answer) != [""]).then_some(())
    });
}
