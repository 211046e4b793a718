//! `macpool inspect`: who holds which address, since when and why, as a table and as JSON.

use super::operations::inspect;
use super::*;

/// Without the client's warnings about a server whose certificate these tests do not check.
fn quiet(command: &mut Command) -> &mut Command {
    command.env("GUESTWIRE_LOG", "warn,kube_client=error")
}

/// Its JSON form, with the rights of a replica, as by `kubectl exec`.
fn json_form(cluster: &Cluster, arguments: &[&str]) -> Vec<Value> {
    let mut inspect = Command::new(binary("macpool"));
    inspect.args(["inspect", "-o", "json", "--namespace", "macpool"]).args(arguments);
    let printed = output(quiet(inspect.env("KUBECONFIG", &cluster.kubeconfig)));
    assert!(printed.status.success() && printed.stderr.is_empty(), "{printed:?}");
    let mut form: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((&form["version"], form.as_object().unwrap().len()), (&json!(1), 2), "{form}");
    form["entries"].take().as_array().unwrap().clone()
}

fn set(cluster: &Cluster, data: &Value) {
    let (status, answer) = cluster.api.request("PATCH", CONFIG, Some(&json!({"data": data}).to_string()));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn the_json_form_tells_who_holds_an_address_since_when_and_why() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let replica = cluster.replica(&[]);
    let (status, one) = cluster.try_create(&vm("one", &[("red", "")]));
    assert_eq!(status, 201, "{one}");
    cluster.api.create(VMIS, &vmi_of(&one).to_string());
    let mac = macs(&one).remove(0);
    let leases = cluster.get("/apis/coordination.k8s.io/v1/namespaces/macpool/leases");
    let holder = &leases["items"][0]["metadata"]["name"];
    let entry = |kind: &str, name: &str, state: &str, since: &Value, network: &str| {
        json!({
            "mac": mac, "state": state, "kind": kind, "namespace": "default", "name": name, "since": since,
            "network": network, "block": "02-00-00-00-00", "replica": holder,
        })
    };
    let since = &one["metadata"]["creationTimestamp"];
    let vmi = cluster.get(&format!("{VMIS}/one"));
    let instance = |state: &str| {
        entry("VirtualMachineInstance", "one", state, &vmi["metadata"]["creationTimestamp"], "default/br1")
    };
    assert_eq!(
        json_form(&cluster, &[&mac]),
        [entry("VirtualMachine", "one", "in-use", since, "default/br1"), instance("in-use")]
    );
    // Another VM has it: a duplicate, until it is said that they never meet.
    let mut two = vm("two", &[("blue", &mac)]);
    two["spec"]["template"]["spec"]["networks"][0]["multus"]["networkName"] = json!("br2");
    let (_, two) = cluster.try_create(&two);
    let other = |state: &str| {
        entry("VirtualMachine", "two", state, &two["metadata"]["creationTimestamp"], "default/br2")
    };
    let expected = [
        entry("VirtualMachine", "one", "duplicate", since, "default/br1"),
        instance("duplicate"),
        other("duplicate"),
    ];
    assert_eq!(json_form(&cluster, &[]), expected);
    assert_eq!(json_form(&cluster, &["--state", "duplicate", "--owner", "default/two"]), expected[2..]);
    assert!(json_form(&cluster, &["--owner", "elsewhere"]).is_empty());
    set(&cluster, &json!({"L2_DOMAINS": "a=default/br1 b=default/br2"}));
    assert!(json_form(&cluster, &["--state", "duplicate"]).is_empty());
    assert_eq!(json_form(&cluster, &["--owner", "default/two"]), [other("in-use")]);
    // Given to VMs that nobody sees, by name and from memory: no owner, but when its record changed last.
    assert_eq!(cluster.try_create(&vm("Not_A_Name", &[("red", "06:00:00:00:00:01")])).0, 422);
    assert_eq!(cluster.try_create(&vm("Not_A_Name", &[("red", "")])).0, 422);
    replica.terminate();
    let block = cluster.get("/apis/macpool.guestwire.io/v1/macblocks/06-00-00-00-00");
    let since = &block["metadata"]["managedFields"][0]["time"];
    assert!(since.is_string(), "{block}");
    let claimed = json!({
        "mac": "06:00:00:00:00:01", "state": "claimed", "namespace": "default", "name": "Not_A_Name",
        "since": since, "block": "06-00-00-00-00",
    });
    assert_eq!(json_form(&cluster, &["--state", "claimed"]), [claimed]);
    let reserved = json_form(&cluster, &["--state", "reserved"]);
    let [reserved] = &reserved[..] else { panic!("{reserved:?}") };
    assert_eq!((&reserved["block"], reserved.get("name")), (&json!("02-00-00-00-00"), None), "{reserved}");
    assert!(reserved["since"].is_string() && reserved.get("replica").is_none(), "{reserved}");
}

#[test]
fn the_table_stays_readable_whatever_it_shows() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let run = |arguments: &[&str]| {
        let mut inspect = Command::new(binary("macpool"));
        inspect.args(["inspect", "--namespace", "macpool"]).args(arguments);
        let printed = output(quiet(inspect.env("KUBECONFIG", &cluster.kubeconfig)));
        assert!(printed.status.success(), "{printed:?}");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(printed.stdout), text(printed.stderr))
    };
    assert_eq!(run(&[]), (String::new(), "no such address is taken\n".to_owned()));
    // What a deposed replica leaves behind, many times over.
    for block in 0..118 {
        let object = json!({
            "apiVersion": "macpool.guestwire.io/v1", "kind": "MacBlock",
            "metadata": {"name": format!("02-00-00-01-{block:02x}")},
            "spec": {"taken": "f".repeat(64), "turn": 1, "claims": {"0": "default/a\u{1b}[2J\nb"}},
        });
        cluster.api.create("/apis/macpool.guestwire.io/v1/macblocks", &object.to_string());
    }
    let (table, advice) = run(&[]);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 1 + 118 * 256);
    assert_eq!(lines[0], "MAC                STATE     SINCE                 OWNER");
    assert!(lines[1].starts_with("02:00:00:01:00:00  claimed   20"), "{}", lines[1]);
    assert!(lines[1].ends_with(r"Z  default/a\u{1b}[2J\nb"), "{}", lines[1]);
    assert!(
        lines[2].starts_with("02:00:00:01:00:01  reserved  20") && lines[2].ends_with("Z  -"),
        "{}",
        lines[2]
    );
    assert!(lines[1..].is_sorted());
    assert!(advice.starts_with("claimed, reserved: ") && advice.lines().count() == 1, "{advice}");
    // Whoever reads ends when he has seen enough.
    let script = r#"set -o pipefail; "$0" inspect --namespace macpool | head -n 1"#;
    let mut head = Command::new("bash");
    head.args(["-c", script]).arg(binary("macpool")).env("KUBECONFIG", &cluster.kubeconfig);
    let head = output(quiet(&mut head));
    assert!(head.status.success() && head.stderr.is_empty(), "{head:?}");
}

#[test]
fn whoever_looks_where_no_range_is_kept_is_told() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let mut inspect = Command::new(binary("macpool"));
    let said =
        output(inspect.args(["inspect", "--namespace", "default"]).env("KUBECONFIG", cluster.api.admin()));
    let text = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.success() && text.contains("networks are taken to meet"), "{text}");
}

#[test]
fn an_object_that_cannot_be_read_hides_no_other() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let _replica = cluster.replica(&[]);
    let mac = cluster.create(&vm("one", &[("red", "")])).remove(0);
    let annotations = json!({"k8s.v1.cni.cncf.io/networks": "[{"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "odd", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    });
    cluster.api.create(
        "/api/v1/namespaces/default/serviceaccounts",
        &json!({"metadata": {"name": "default"}}).to_string(),
    );
    cluster.api.create("/api/v1/namespaces/default/pods", &pod.to_string());
    assert!(inspect(&cluster, &[]).contains(&mac));
}
