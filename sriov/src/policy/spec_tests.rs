use super::*;

/// A policy with these members of its spec; selects `eth0` with 4 VFs unless they say otherwise.
pub(in crate::policy) fn policy_of(name: &str, spec: &str) -> Result<Policy, String> {
    let mut spec: Value = vm_api::yaml::documents(spec).unwrap().remove(0);
    let defaults = serde_json::json!({
        "resourceName": "nics", "numVfs": 4, "nicSelector": {"pfNames": ["eth0"]},
    });
    for (key, value) in defaults.as_object().unwrap() {
        spec.as_object_mut().unwrap().entry(key).or_insert(value.clone());
    }
    let document = serde_json::json!({
        "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec,
    });
    policies(&document.to_string()).map(|mut policies| policies.remove(0)).map_err(|error| error.to_string())
}

#[test]
fn the_manual_s_policy_is_understood() {
    let text = "
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodePolicy
metadata: {name: policy-1, namespace: openshift-sriov-network-operator}
spec:
  resourceName: intelnics
  nodeSelector: {feature.node.kubernetes.io/network-sriov.capable: \"true\"}
  priority: 10
  mtu: 9000
  numVfs: 6
  nicSelector: {vendor: \"8086\", deviceID: \"10C9\", pfNames: [\"ens1f0#2-5\"], rootDevices: [\"0000:01:00.0\"]}
  deviceType: vfio-pci
  isRdma: false
";
    let policy = policies(text).unwrap().remove(0);
    assert_eq!((policy.priority, policy.mtu, policy.num_vfs), (10, Some(9000), 6));
    assert_eq!(policy.device_type, DeviceType::VfioPci);
    assert_eq!(policy.selector.pf_names[0].range, Some((2, 5)));
    assert_eq!(policy.selector.device.as_deref(), Some("10c9"));
    let label =
        |value: &str| [("feature.node.kubernetes.io/network-sriov.capable".to_owned(), value.to_owned())];
    assert!(policy.is_for(&[]) && policy.is_for(&label("true")) && !policy.is_for(&label("false")));
}

#[test]
fn what_is_wrong_is_named_with_what_is_allowed() {
    for (spec, message) in [
        ("priority: 100", "spec.priority: is 100; allowed: 0 to 99"),
        ("numVfs: -1", "spec.numVfs: is -1"),
        ("mtu: 67", "spec.mtu: is 67"),
        ("deviceType: igb_uio", "spec.deviceType: is \"igb_uio\"; allowed"),
        ("nicSelector: {}", "spec.nicSelector: selects nothing"),
        ("nicSelector: {vendor: intel}", "spec.nicSelector.vendor: is \"intel\"; allowed: four"),
        ("nicSelector: {pfNames: [\"eth0#2\"]}", "has no range"),
        ("nicSelector: {pfNames: [\"eth0#2-4\"]}", "has VFs 2 to 4 of 4"),
        ("nicSelector: {pfNames: [\"eth0#3-2\"]}", "has VFs 3 to 2 of 4"),
        ("nicSelector: {rootDevices: [\"x\"]}", "spec.nicSelector.rootDevices: \"x\" is not"),
        ("eSwitchMode: switchdev", "spec.eSwitchMode: \"switchdev\" is not supported"),
        ("linkType: ib", "spec.linkType: \"ib\" is not supported"),
        ("numVfs: many", "spec.numVfs cannot be read"),
    ] {
        let error = policy_of("p", spec).unwrap_err();
        assert!(error.contains(message), "{spec}: {error}");
    }
    assert!(matches!(policies(""), Err(SpecError::Empty)));
    assert!(matches!(policies("kind: Secret"), Err(SpecError::Kind { .. })));
}
