//! The API that VMs are written by: both of its versions, and what it refuses or leaves out before a review.

use super::*;

#[test]
fn a_vm_of_the_older_version_of_the_api_gets_addresses_too() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let _replica = cluster.replica(&[]);
    let mut old = vm("old", &[("red", "")]);
    old["apiVersion"] = json!("kubevirt.io/v1alpha3");
    let (status, stored) =
        cluster.api.request("POST", &VMS.replace("/v1/", "/v1alpha3/"), Some(&old.to_string()));
    assert_eq!(status, 201, "{stored}");
    assert_eq!(stored["apiVersion"], "kubevirt.io/v1alpha3");
    let given = macs(&stored);
    assert!(given[0].starts_with("02:00:00:00:00:"), "{given:?}");
    assert_eq!(macs(&cluster.get(&format!("{VMS}/old"))), given);
    assert!(!given.contains(&cluster.create(&vm("new", &[("red", "")]))[0]));
}

#[test]
fn the_api_server_checks_and_prunes_vms_as_with_kubevirt() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let _replica = cluster.replica(&[]);
    for plural in ["virtualmachines", "virtualmachineinstances"] {
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let definition = cluster.get(&format!("{definitions}/{plural}.kubevirt.io"));
        let conditions = definition["status"]["conditions"].as_array().unwrap();
        assert!(
            conditions.iter().all(|condition| condition["type"] != "NonStructuralSchema"),
            "{conditions:?}"
        );
    }
    let refused = |path: &str, value: Value, reason: &str| {
        let mut vm = vm("bad", &[("red", "")]);
        *vm.pointer_mut(path).unwrap() = value;
        let (status, answer) = cluster.try_create(&vm);
        assert_eq!(status, 422, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(reason), "{answer}");
    };
    let spec = "/spec/template/spec";
    refused("/spec/running", json!("yes"), "spec.running in body must be of type boolean");
    refused(&format!("{spec}/domain/devices"), json!(null), "devices");
    refused(
        &format!("{spec}/networks/0"),
        json!({"name": "red", "multus": {}}),
        "multus.networkName: Required value",
    );
    refused(&format!("{spec}/domain/devices/disks/0"), json!({"disk": {}}), "disks.name: Required value");
    // A field that nobody knows is gone, and a status is not the author's to write.
    let mut sent = vm("good", &[("red", "")]);
    sent["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]["macAdress"] =
        json!("06:00:00:00:00:01");
    sent["status"] = json!({"ready": true});
    let (status, stored) = cluster.try_create(&sent);
    assert_eq!(status, 201, "{stored}");
    let nic = &stored["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0];
    assert_eq!(nic["macAdress"], Value::Null, "{nic}");
    assert!(nic["macAddress"].as_str().unwrap().starts_with("02:00:00:00:00:"), "{nic}");
    assert_eq!(stored["status"], Value::Null);
}
