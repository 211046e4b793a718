use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::nad::NadName;

/// The manual's VM: a NIC on a bridge network and a cloud-init disk.
const MANUAL: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: vm1, namespace: vms}
spec:
  running: true
  template:
    metadata: {labels: {kubevirt.io/domain: vm1}}
    spec:
      terminationGracePeriodSeconds: 5
      domain:
        cpu: {cores: 2, sockets: 2}
        devices:
          networkInterfaceMultiqueue: true
          disks:
          - {name: cloudinitdisk, disk: {bus: virtio}, serial: SEED}
          - {name: data, disk: {}}
          interfaces:
          - {name: bridge-net, bridge: {}, macAddress: 02-0A-00-00-00-01, model: virtio}
          - {name: other, bridge: {}}
          rng: {}
        machine: {type: q35}
        resources: {requests: {memory: 512Mi}}
        firmware: {kernelBoot: {kernelArgs: quiet, container: {image: 'r.example/k:1', kernelPath: /vmlinuz, initrdPath: /initrd}}}
      networks:
      - {name: other, multus: {networkName: default/blue}}
      - {name: bridge-net, multus: {networkName: bridge-network}}
      volumes:
      - name: data
        hostDisk: {path: /var/lib/disk.img, type: Disk}
      - name: cloudinitdisk
        cloudInitNoCloud:
          userData: |
            #cloud-config
            password: x
          networkDataBase64: dmVyc2lvbjogMgo=
";

fn parsed(text: &str) -> Result<Manifest, ManifestError> {
    parse(crate::yaml::documents(text).unwrap().remove(0))
}

/// An error and its causes on one line, as a user sees them.
fn message(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The manual's VM with one place changed; `from` must be there.
fn changed(from: &str, to: &str) -> Result<Manifest, ManifestError> {
    assert!(MANUAL.contains(from), "{from}");
    parsed(&MANUAL.replacen(from, to, 1))
}

#[test]
fn the_manuals_vm_is_read_whole() {
    let Manifest { vm, ignored } = parsed(MANUAL).unwrap();
    assert_eq!(ignored.len(), 1, "{ignored:?}");
    assert_eq!(ignored[0].path, "spec.template.spec.domain.machine");
    assert_eq!((vm.name.as_str(), vm.namespace.as_str(), vm.hostname.as_str()), ("vm1", "vms", "vm1"));
    assert_eq!(vm.run_strategy, RunStrategy::Always);
    assert_eq!((vm.vcpus, vm.memory_mib, vm.multiqueue), (4, 512, true));
    assert_eq!(vm.grace_period, Duration::from_secs(5));
    assert_eq!(vm.labels["kubevirt.io/domain"], "vm1");
    let kernel = vm.kernel.unwrap();
    assert_eq!((kernel.image.as_str(), kernel.kernel.as_str()), ("r.example/k:1", "/vmlinuz"));
    assert_eq!(vm.kernel_args, "quiet");
    assert_eq!(vm.nics[0].mac.unwrap().to_string(), "02:0a:00:00:00:01");
    let nad = |name, namespace| Binding::Bridge(NadName::parse(name, namespace).unwrap());
    assert_eq!(vm.nics[0].binding, nad("bridge-network", "vms"));
    assert_eq!((vm.nics[1].mac, &vm.nics[1].binding), (None, &nad("blue", "default")));
    let seed = Seed {
        user_data: Some(b"#cloud-config\npassword: x\n".to_vec()),
        network_data: Some(b"version: 2\n".to_vec()),
    };
    assert_eq!(vm.disks[0].source, DiskSource::Seed(seed));
    assert!(vm.disks[0].read_only);
    assert_eq!(vm.disks[0].serial.as_deref(), Some("SEED"));
    assert_eq!(vm.disks[1].source, DiskSource::HostDisk { path: PathBuf::from("/var/lib/disk.img") });
    assert!(!vm.disks[1].read_only);
}

#[test]
fn a_bare_instance_runs_once() {
    let text = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: vmi.example, labels: {app: a}}
spec: {domain: {memory: {guest: 33554433}, devices: {autoattachPodInterface: false}}, readinessProbe: null}
";
    let Manifest { vm, ignored } = parsed(text).unwrap();
    assert!(ignored.is_empty(), "{ignored:?}");
    assert_eq!(vm.run_strategy, RunStrategy::Once);
    assert_eq!((vm.namespace.as_str(), vm.hostname.as_str()), ("default", "vmi"));
    assert_eq!((vm.vcpus, vm.memory_mib, vm.multiqueue), (1, 33, false));
    assert_eq!(vm.grace_period, Duration::from_secs(30));
    assert_eq!(vm.labels["app"], "a");
}

#[test]
fn what_is_not_offered_is_refused_with_its_reason() {
    for (from, to, expected) in [
        ("{name: other, bridge: {}}", "{name: other, macvtap: {}}", "interfaces[1].macvtap: not offered"),
        ("disk: {bus: virtio}", "cdrom: {bus: sata}", "disks[0].cdrom: there is no CD-ROM"),
        ("rng: {}", "tpm: {}", "devices.tpm: not offered"),
    ] {
        let error = message(&changed(from, to).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_nic_can_be_bound_to_a_vhost_user_backend() {
    let vm = changed("other, bridge: {}}", "other, binding: {name: vhostuser}}").unwrap().vm;
    assert!(matches!(&vm.nics[1].binding, Binding::VhostUser(nad) if nad.to_string() == "default/blue"));
}

#[test]
fn an_absent_interface_is_left_out_with_its_network() {
    let other = |rest: &str| changed("{name: other, bridge: {}}", &format!("{{name: other, {rest}}}"));
    for binding in ["bridge: {}", "sriov: {}", "binding: {name: vhostuser}"] {
        let vm = other(&format!("state: absent, {binding}")).unwrap().vm;
        let names: Vec<_> = vm.nics.iter().map(|nic| nic.name.as_str()).collect();
        assert_eq!(names, ["bridge-net"], "{binding}");
    }
    for rest in ["state: down, bridge: {}", "state: absent, masquerade: {}"] {
        let error = message(&other(rest).unwrap_err());
        assert!(
            error.contains("interfaces[1].state: ") && error.contains("up; absent, except on"),
            "{error}"
        );
    }
    let error = message(&other("state: absent, sriov: {}, macAddress: x").unwrap_err());
    assert!(error.contains("interfaces[1].macAddress"), "what is absent is checked all the same: {error}");
}

#[test]
fn a_function_of_a_nic_is_put_where_the_manifest_wants_it() {
    let wanted = |address: &str| {
        let to = format!("{{name: other, sriov: {{}}, pciAddress: \"{address}\"}}");
        changed("{name: other, bridge: {}}", &to)
    };
    let vm = wanted("0000:00:1F.0").unwrap().vm;
    assert!(matches!(&vm.nics[1].binding, Binding::Sriov(nad) if nad.to_string() == "default/blue"));
    assert_eq!(vm.nics[1].pci_address.unwrap().to_string(), "0000:00:1f.0");
    for address in ["0000:01:02.0", "0001:00:02.0", "0000:00:02.1", "0000:00:00.0"] {
        let error = message(&wanted(address).unwrap_err());
        let expected = format!("interfaces[1].pciAddress: \"{address}\" is not allowed: 0000:00:01.0 to");
        assert!(error.contains(&expected), "{error}");
    }
    let error = message(&wanted("2").unwrap_err());
    assert!(error.contains("interfaces[1].pciAddress: \"2\" is not a PCI address"), "{error}");
}

#[test]
fn values_that_are_not_allowed_are_named_with_what_is() {
    for (from, to, expected) in [
        ("name: vm1,", "name: VM1,", "metadata.name: \"VM1\" is not a Kubernetes name"),
        (
            "running: true",
            "runStrategy: Sometimes",
            "spec.runStrategy: \"Sometimes\" is not allowed: Always,",
        ),
        ("running: true", "labels: {}", "one of running and runStrategy is required"),
        (
            "cores: 2",
            "cores: 300",
            "domain.cpu: \"300 cores x 2 sockets x 1 threads\" is not allowed: 1 to 254",
        ),
        ("cores: 2", "cores: 4294967295", "is not allowed: 1 to 254 vCPUs"),
        ("cores: 2", "cores: two", "domain.cpu.cores: invalid type: string \"two\""),
        ("memory: 512Mi", "memory: 512MiB", "requests.memory: \"512MiB\" is not an amount of bytes"),
        ("memory: 512Mi", "memory: 1Mi", "requests.memory: \"1Mi\" is not allowed: at least 32Mi"),
        ("memory: 512Mi", "cpu: 1", "domain.memory.guest: is required"),
        ("Seconds: 5", "Seconds: -1", "terminationGracePeriodSeconds: \"-1\" is not allowed: 0 to 86400"),
        (
            "02-0A-00-00-00-01",
            "01:00:5e:00:00:01",
            "macAddress: \"01:00:5e:00:00:01\" is not allowed: a unicast",
        ),
        ("02-0A-00-00-00-01", "2:3", "interfaces[0].macAddress: \"2:3\" is not an Ethernet address"),
        ("model: virtio", "model: e1000e", "interfaces[0].model: \"e1000e\" is not allowed: virtio"),
        ("bus: virtio", "bus: sata", "disks[0].disk.bus: \"sata\" is not allowed: virtio"),
        ("SEED", "A-SERIAL-NUMBER-TOO-LONG", "disks[0].serial: \"A-SERIAL-NUMBER-TOO-LONG\" is not allowed"),
        ("r.example/k:1", "../../etc", "kernelBoot.container.image: \"../../etc\" is not allowed"),
        (
            "kernelPath: /vmlinuz",
            "kernelPath: /../vmlinuz",
            "container.kernelPath: \"/../vmlinuz\" is not allowed",
        ),
        ("type: Disk", "type: DiskOrCreate", "hostDisk.type: \"DiskOrCreate\" is not allowed: Disk"),
        ("path: /var", "path: var", "hostDisk.path: \"var/lib/disk.img\" is not allowed: an absolute path"),
        ("dmVyc2lvbjogMgo=", "'*'", "cloudInitNoCloud.networkDataBase64: is not base64"),
    ] {
        let error = message(&changed(from, to).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn joins_that_do_not_fit_are_refused() {
    for (from, to, expected) in [
        ("{name: other, bridge", "{name: bridge-net, bridge", "a second interface is called \"bridge-net\""),
        (
            "{name: other, bridge",
            "{name: stray, bridge",
            "interfaces[1].name: no network is called \"stray\"",
        ),
        (
            "- {name: other, multus",
            "- {name: bridge-net, multus",
            "a second network is called \"bridge-net\"",
        ),
        ("          - {name: other, bridge: {}}\n", "", "networks[0]: no interface is called \"other\""),
        ("{name: other, bridge: {}}", "{name: other}", "interfaces[1]: a binding is required"),
        (
            "other, bridge: {}}",
            "other, binding: {name: passt}}",
            "interfaces[1].binding.name: \"passt\" is not allowed: vhostuser",
        ),
        (
            "other, bridge: {}}",
            "other, bridge: {}, binding: {name: vhostuser}}",
            "bridge, masquerade, sriov and binding exclude one another",
        ),
        (
            "other, bridge: {}}",
            "other, bridge: {}, masquerade: {}}",
            "bridge, masquerade, sriov and binding exclude one another",
        ),
        (
            "other, bridge: {}}",
            "other, masquerade: {}}",
            "interfaces[1].masquerade: goes with the pod network",
        ),
        (
            "multus: {networkName: bridge-network}",
            "pod: {}",
            "interfaces[0].bridge: the pod network takes masq",
        ),
        ("multus: {networkName: default/blue}", "extra: 1", "networks[0]: exactly one of pod and multus"),
        ("{name: data, disk: {}}", "{name: cloudinitdisk}", "a second disk is called \"cloudinitdisk\""),
        ("{name: data, disk: {}}", "{name: stray}", "disks[1].name: no volume is called \"stray\""),
        ("- name: data", "- name: cloudinitdisk", "a second volume is called \"cloudinitdisk\""),
        (
            "hostDisk: {path: /var/lib/disk.img, type: Disk}",
            "cloudInitNoCloud: {userData: x}",
            "a second cloudInit",
        ),
        ("hostDisk: {path: /var/lib/disk.img, type: Disk}", "extra: 1", "exactly one of cloudInitNoCloud,"),
        ("networkDataBase64: dm", "userDataBase64: dm", "userData and userDataBase64 exclude one another"),
    ] {
        let error = message(&changed(from, to).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

/// The manual's VM on the pod network.
const POD: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: vmi}
spec:
  domain:
    memory: {guest: 64Mi}
    devices:
      interfaces: [{name: default, masquerade: {}, ports: [{port: 80}]}]
  networks: [{name: default, pod: {vmIPv6NetworkCIDR: 'fd10:0:2::2/120'}}]
";

#[test]
fn the_manuals_vm_on_the_pod_network_is_read_whole() {
    let Manifest { vm, ignored } = parsed(POD).unwrap();
    assert!(ignored.is_empty(), "{ignored:?}");
    let Binding::Masquerade(masquerade) = &vm.nics[0].binding else { panic!("{:?}", vm.nics) };
    assert_eq!(masquerade.v4, None);
    assert_eq!(masquerade.v6.unwrap().to_string(), "fd10:0:2::2/120");
    assert_eq!(masquerade.ports, [PortRange { protocol: Protocol::Tcp, first: 80, last: 80 }]);
    let twice = POD
        .replace("[{name: default, masq", "[{name: a, masquerade: {}}, {name: default, masq")
        .replace("[{name: default, pod", "[{name: a, pod: {}}, {name: default, pod");
    assert!(message(&parsed(&twice).unwrap_err()).contains("networks[1].pod: a second pod network"));
}

#[test]
fn what_a_binding_does_not_know_is_ignored_beside_it() {
    for (binding, expected) in [
        ("bridge: {}", &["machine", "ports"][..]),
        ("binding: {name: vhostuser}", &["machine", "ports", "dhcpOptions"][..]),
    ] {
        let more = format!("{binding}, ports: [{{port: 80}}], dhcpOptions: {{bootFileName: x}}}}");
        let Manifest { vm, ignored } = changed("bridge: {}}", &more).unwrap();
        let paths: Vec<_> = ignored.iter().map(|finding| finding.path.rsplit('.').next().unwrap()).collect();
        assert_eq!(paths, expected, "{binding}");
        assert!(vm.nics.iter().any(|nic| nic.dhcp.boot_file_name.as_deref() == Some("x")), "{binding}");
    }
}

#[test]
fn a_vm_without_interfaces_is_on_the_pod_network_unless_it_declines() {
    let text = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: vmi}
spec: {domain: {memory: {guest: 64Mi}, devices: {}}}
";
    let nics = parsed(text).unwrap().vm.nics;
    assert_eq!(
        (nics[0].name.as_str(), &nics[0].binding),
        ("default", &Binding::Masquerade(Masquerade::default()))
    );
    let declined = text.replace("devices: {}", "devices: {autoattachPodInterface: false}");
    assert!(parsed(&declined).unwrap().vm.nics.is_empty());
}

#[test]
fn other_kinds_are_named() {
    for text in
        ["apiVersion: v1\nkind: Pod", "kind: VirtualMachine", "apiVersion: kubevirt.io/v1", "[1]", "5"]
    {
        assert!(matches!(parsed(text), Err(ManifestError::Kind { .. })), "{text}");
    }
}

proptest::proptest! {
    /// Any field replaced by anything ends in a value or an error.
    #[test]
    fn no_manifest_makes_it_panic(line in 1usize..45, junk in "[ -~]{0,30}") {
        let text: String = MANUAL.lines().enumerate().map(|(index, original)| {
            let indent = original.len() - original.trim_start().len();
            if index == line { format!("{}{junk}\n", " ".repeat(indent)) } else { format!("{original}\n") }
        }).collect();
        if let Ok(documents) = crate::yaml::documents(&text) {
            documents.into_iter().for_each(|document| drop(parse(document)));
        }
    }
}
