//! Running macpool: its range, its certificates, leaks, duplicates and what it tells.

use super::*;

/// So short that a test can wait for it; nothing is on its way to etcd for that long here.
const SHORT: &[&str] = &["--grace", "2"];

pub(super) fn inspect(cluster: &Cluster, arguments: &[&str]) -> String {
    let admin = cluster.api.admin();
    let mut inspect = Command::new(binary("macpool"));
    inspect.args(["inspect", "--namespace", "macpool"]).args(arguments);
    let printed = output(inspect.env("KUBECONFIG", admin));
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

#[test]
fn an_address_is_free_again_only_when_the_guest_is_gone() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:01");
    let _replica = cluster.replica(SHORT);
    let (_, stored) = cluster.try_create(&vm("one", &[("red", "")]));
    cluster.api.create(VMIS, &vmi_of(&stored).to_string());
    cluster.delete(&format!("{VMS}/one"));
    // The sweeps of a few grace times pass, and the guest still has it.
    let second = vm("two", &[("red", "")]);
    for _ in 0..3 {
        let (status, answer) = cluster.try_create(&second);
        assert_eq!(status, 507, "{answer}");
    }
    assert!(inspect(&cluster, &[]).contains("  vmi default/one  "));
    cluster.delete(&format!("{VMIS}/one"));
    eventually("the address is free", PATIENCE, || (cluster.try_create(&second).0 == 201).then_some(()));
    assert_eq!(cluster.all_macs().len(), 1);
}

#[test]
fn what_is_freed_beside_a_guests_address_leaves_that_alone() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:08");
    let replica = cluster.replica(SHORT);
    let (_, stored) = cluster.try_create(&vm("one", &[("red", "")]));
    cluster.api.create(VMIS, &vmi_of(&stored).to_string());
    cluster.delete(&format!("{VMS}/one"));
    cluster.create(&vm("two", &[("red", "")]));
    cluster.delete(&format!("{VMS}/two"));
    // The block is held all the while: its holder's memory alone says what is free.
    let free = || replica.metric("macpool_stock_addresses");
    assert_eq!(eventually("one is free again", PATIENCE, || free().filter(|free| *free > 6)), 7);
    let all: Vec<_> = (0..7).map(|n| format!("nic{n}")).collect();
    let all: Vec<_> = all.iter().map(|name| (name.as_str(), "")).collect();
    assert!(!cluster.create(&vm("all", &all)).contains(&macs(&stored)[0]));
}

#[test]
fn a_reservation_whose_vm_never_came_is_freed() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:01");
    let replica = cluster.replica(SHORT);
    // The name is refused after admission, when the webhook has given an address already.
    let (status, answer) = cluster.try_create(&vm("Not_A_Name", &[("red", "")]));
    assert_eq!(status, 422, "{answer}");
    let good = vm("one", &[("red", "")]);
    eventually("the address is free", PATIENCE, || (cluster.try_create(&good).0 == 201).then_some(()));
    // And what a crashed replica gave, or might have given.
    cluster.delete(&format!("{VMS}/one"));
    replica.crash();
    let _replica = cluster.replica(SHORT);
    eventually("the address is free again", PATIENCE, || (cluster.try_create(&good).0 == 201).then_some(()));
}

#[test]
fn an_address_that_a_vm_gives_up_is_its_own_until_that_is_stored() {
    gives_up(|spec| {
        spec["networks"] = json!([]);
        spec["domain"]["devices"]["interfaces"] = json!([]);
    });
}

#[test]
fn an_address_that_a_vm_changes_is_its_own_until_that_is_stored() {
    gives_up(|spec| {
        spec["domain"]["devices"]["interfaces"][0]["macAddress"] = json!("06:00:00:00:00:01");
    });
}

/// A VM is given the only address there is, and `change` takes it out of its template.
fn gives_up(change: impl Fn(&mut Value)) {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:01");
    let _replica = cluster.replica(SHORT);
    let (_, mut without) = cluster.try_create(&vm("one", &[("red", "")]));
    let given = macs(&without);
    change(&mut without["spec"]["template"]["spec"]);
    let second = vm("two", &[("red", "")]);
    let put = |vm: &Value| cluster.api.request("PUT", &format!("{VMS}/one"), Some(&vm.to_string()));
    // Admitted, and then refused, as somebody else was faster.
    let patch = json!({"metadata": {"labels": {"changed": "meanwhile"}}}).to_string();
    assert_eq!(cluster.api.request("PATCH", &format!("{VMS}/one"), Some(&patch)).0, 200);
    for _ in 0..3 {
        assert_eq!(put(&without).0, 409);
        let (status, answer) = cluster.try_create(&second);
        assert_eq!(status, 507, "{answer}");
    }
    let stored = cluster.get(&format!("{VMS}/one"));
    assert_eq!(macs(&stored), given);
    without["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
    assert_eq!(put(&without).0, 200);
    eventually("the address is free", PATIENCE, || (cluster.try_create(&second).0 == 201).then_some(()));
}

#[test]
fn the_manifests_watch_and_protect_the_replicas_that_they_start() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&[]);
    let mac = cluster.create(&vm("one", &[("red", "")])).remove(0);
    cluster.create(&vm("two", &[("red", &mac)]));
    eventually("a duplicate is seen", PATIENCE, || {
        (replica.metric("kubevirt_kmp_duplicate_macs") == Some(1)).then_some(())
    });
    // Each alert is about metrics that there are.
    let (page, alerts) = (replica.metrics(), manifest("alerts"));
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let expressions = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = expressions.flat_map(|expression| expression.split(|c| !is_name(c)));
    let metrics: Vec<&str> =
        words.filter(|word| word.contains("kmp_") || word.starts_with("macpool_")).collect();
    assert!(metrics.len() >= 4, "{metrics:?}");
    for metric in metrics {
        assert!(page.lines().any(|line| line.starts_with(metric)), "{metric} is not in\n{page}");
    }
    for alert in ["KubemacpoolDown", "KubeMacPoolDuplicateMacsFound"] {
        assert!(alerts.contains(&format!("alert: {alert}\n")), "{alert}");
    }
    // What scrapes them finds them.
    let service = cluster.get("/api/v1/namespaces/macpool/services/macpool");
    let (monitor, _) = alerts.split_once("---\n").unwrap();
    let labels = service["metadata"]["labels"].as_object().unwrap();
    assert!(
        monitor.contains("kind: ServiceMonitor\n") && monitor.contains("    - port: metrics\n"),
        "{monitor}"
    );
    let selected = monitor.split_once("matchLabels:\n").and_then(|(_, rest)| rest.lines().next()).unwrap();
    assert!(
        labels.iter().any(|(key, value)| selected.trim() == format!("{key}: {}", value.as_str().unwrap()))
    );
    assert_eq!(service["spec"]["ports"][1]["name"], "metrics");
    // The budget, the policy and the affinity mean the pods of the deployment. (This API server knows budgets as v1beta1.)
    let budget = manifest("pdb").replace("policy/v1\n", "policy/v1beta1\n");
    let budget = cluster.api.create("/apis/policy/v1beta1/namespaces/macpool/poddisruptionbudgets", &budget);
    let deployment = cluster.get("/apis/apps/v1/namespaces/macpool/deployments/macpool");
    let policy = cluster.get("/apis/networking.k8s.io/v1/namespaces/macpool/networkpolicies/macpool");
    let template = &deployment["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    assert!(labels.as_object().is_some_and(|labels| !labels.is_empty()));
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(budget["spec"]["minAvailable"], 1);
    assert_eq!(&policy["spec"]["podSelector"]["matchLabels"], labels);
    let affinity = &template["spec"]["affinity"]["podAntiAffinity"];
    let term = &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
    assert_eq!(&term["labelSelector"]["matchLabels"], labels);
    assert_eq!(
        (&term["topologyKey"], &deployment["spec"]["replicas"]),
        (&json!("kubernetes.io/hostname"), &json!(2))
    );
}

#[test]
fn the_range_changes_live_and_a_bad_one_is_reported() {
    let cluster = Cluster::start("02:00:00:00:00:01", "02:00:00:00:00:01");
    let _replica = cluster.replica(&[]);
    let set = |data: Value| {
        let (status, answer) = cluster.api.request("PATCH", CONFIG, Some(&json!({"data": data}).to_string()));
        assert_eq!(status, 200, "{answer}");
    };
    cluster.create(&vm("one", &[("red", "")]));
    set(json!({"RANGE_END": "02:00:00:00:00:00"}));
    let reported = eventually("an event", PATIENCE, || {
        let events = cluster.get("/api/v1/namespaces/macpool/events");
        let invalid =
            events["items"].as_array().unwrap().iter().find(|event| event["reason"] == "InvalidRange");
        invalid.map(|event| event["message"].as_str().unwrap().to_owned())
    });
    assert!(reported.contains("before its start"), "{reported}");
    assert_eq!(cluster.try_create(&vm("two", &[("red", "")])).0, 507, "the old range counts");
    set(json!({"RANGE_END": "02:00:00:00:00:05", "EXCLUDE": "02:00:00:00:00:02-02:00:00:00:00:04"}));
    let two = eventually("the new range counts", PATIENCE, || {
        let (status, answer) = cluster.try_create(&vm("two", &[("red", "")]));
        (status == 201).then(|| macs(&answer))
    });
    assert_eq!(two, ["02:00:00:00:00:05"]);
}

#[test]
fn a_bad_range_at_the_start_is_reported_before_macpool_ends() {
    let cluster = Cluster::start("02:00:00:00:00:05", "02:00:00:00:00:01");
    let mut macpool = Command::new(binary("macpool"));
    macpool.args(["--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0", "--namespace", "macpool"]);
    let ended = output(macpool.env("KUBECONFIG", &cluster.kubeconfig));
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("before its start"), "{said}");
    let events = cluster.get("/api/v1/namespaces/macpool/events");
    let [event] = &events["items"].as_array().unwrap()[..] else { panic!("{events}") };
    assert_eq!(
        (&event["reason"], &event["involvedObject"]["kind"]),
        (&json!("InvalidRange"), &json!("ConfigMap"))
    );
    let message = event["message"].as_str().unwrap();
    assert!(message.ends_with("before its start 02:00:00:00:00:05; no range is left to keep"), "{message}");
}

#[test]
fn duplicates_are_reported_or_refused() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let replica = cluster.replica(&[]);
    let mac = cluster.create(&vm("one", &[("red", "")])).remove(0);
    eventually("it is seen", PATIENCE, || (replica.metric("macpool_objects") == Some(1)).then_some(()));
    cluster.create(&vm("two", &[("red", &mac)]));
    eventually("the metrics tell", PATIENCE, || {
        let collisions = replica.metric(&format!("kmp_mac_collisions{{mac=\"{mac}\"}}"));
        (replica.metric("kubevirt_kmp_duplicate_macs") == Some(1) && collisions == Some(2)).then_some(())
    });
    let event = eventually("an event on the VM", PATIENCE, || {
        let events = cluster.get("/api/v1/namespaces/default/events");
        events["items"].as_array().unwrap().iter().find(|event| event["reason"] == "MACCollision").cloned()
    });
    assert_eq!(event["involvedObject"]["name"], "two");
    assert_eq!(event["message"], format!("macAddress {mac} is also used by default/one"));
    replica.terminate();
    let strict = cluster.replica(&["--on-duplicate", "reject"]);
    let (status, answer) = cluster.try_create(&vm("three", &[("red", &mac)]));
    assert_eq!(status, 409, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("already used by default/"), "{answer}");
    let row = |mac: &str, name: &str| {
        let table = inspect(&cluster, &[mac]);
        let row = table.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{table}"));
        row.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row(&mac, "default/two")[..2], [mac.as_str(), "duplicate"]);
    // And why else an address is not free: nobody has these.
    for address in ["", "06:00:00:00:00:01"] {
        assert_eq!(cluster.try_create(&vm("Not_A_Name", &[("red", address)])).0, 422);
    }
    let four = cluster.create(&vm("four", &[("red", "")])).remove(0);
    assert_eq!(row("06:00:00:00:00:01", "default/Not_A_Name")[1], "claimed");
    let held = row(&four, "default/four");
    assert_eq!(held[1..3], ["in", "use"]);
    assert!(held.last().unwrap().starts_with("macpool-"), "{held:?}");
    strict.terminate();
    let table = inspect(&cluster, &["--state", "reserved"]);
    assert!(table.contains("  reserved  ") && !table.contains(&four), "{table}");
}

#[test]
fn certificates_are_replaced_under_load_without_a_failed_write() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    // A new authority every half a minute or so, trusted for some seconds before it signs.
    let lifetime = &["--ca-lifetime", "0.0006"];
    let _replicas = [cluster.replica(lifetime), cluster.replica(lifetime)];
    let secret = || cluster.get("/api/v1/namespaces/macpool/secrets/macpool-authority")["data"].clone();
    let created = cluster.create_while(|| {
        let mut last = secret();
        // Trusted, signing, the old one forgotten.
        for _ in 0..3 {
            last = eventually("the authority changes", 2 * PATIENCE, || {
                Some(secret()).filter(|now| *now != last)
            });
        }
    });
    cluster.assert_unique(created);
}
