//! What becomes of every field of a VM manifest: the one table.
//!
//! [`super::walk`] goes through a manifest with it before anything else looks at the fields; `docs/vm-fields.md` is
//! printed from it ([`markdown`]). A field is refused when leaving it out would give the user another machine,
//! another network or less safety than was asked for; it is ignored, with a warning, when the VM works as
//! described without it. A field that no row names is ignored as unknown.
//!
//! Meanings: `kubevirt.io/api/core/v1/types.go` and `schema.go`.

use std::fmt::{self, Write as _};

use self::Verdict::{Honoured, Ignored, Refused};

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It does what KubeVirt says it does, within the note's limits.
    Honoured,
    /// It does nothing; a warning says so, and `--strict` refuses it.
    Ignored,
    /// The manifest is refused.
    Refused,
}

/// One row: a path below the section's root, its verdict, and why or within which limits.
pub(super) type Row = (&'static str, Verdict, &'static str);

/// One part of a manifest and the rows of its fields.
pub(super) struct Section {
    title: &'static str,
    pub(super) rows: &'static [Row],
}

/// `metadata` of the VM and of its template.
pub(super) const METADATA: Section = Section {
    title: "metadata, and metadata of spec.template",
    rows: &[
        ("name", Honoured, "a DNS subdomain; ignored in a template"),
        ("namespace", Honoured, "a DNS label; `default` if absent; ignored in a template"),
        ("labels", Honoured, "the template's appear in the status"),
        ("annotations", Honoured, "the template's appear in the status"),
        ("creationTimestamp", Ignored, "set by the API server"),
        ("generation", Ignored, "set by the API server"),
        ("managedFields", Ignored, "set by the API server"),
        ("ownerReferences", Ignored, "nothing owns a VM here"),
        ("finalizers", Ignored, "`down` removes a VM at once"),
        ("resourceVersion", Ignored, "set by the API server"),
        ("uid", Ignored, "every instance gets a new one"),
    ],
};

/// `spec` of a `VirtualMachine`.
pub(super) const MACHINE: Section = Section {
    title: "spec of a VirtualMachine",
    rows: &[
        ("running", Honoured, "true = `Always`, false = `Halted`; not together with runStrategy"),
        ("runStrategy", Honoured, "Always, RerunOnFailure, Manual, Halted, Once"),
        ("template.metadata", Honoured, "as above"),
        ("template.spec", Honoured, "as below"),
        ("instancetype", Refused, "instance types live in the API server; write cpu and memory out"),
        ("preference", Ignored, "preferences live in the API server"),
        ("dataVolumeTemplates", Refused, "nothing here imports volumes; use hostDisk or containerDisk"),
        ("updateVolumesStrategy", Ignored, "volumes do not change while a VM runs"),
    ],
};

/// `spec` of a `VirtualMachineInstance`, and `spec.template.spec` of a `VirtualMachine`.
pub(super) const INSTANCE: Section = Section {
    title: "spec of a VirtualMachineInstance, and spec.template.spec",
    rows: &[
        ("hostname", Honoured, "a DNS label; the VM's name up to its first dot if absent"),
        ("subdomain", Ignored, "there is no headless service"),
        ("terminationGracePeriodSeconds", Honoured, "0 to 86400, 30 if absent: from power button to stop"),
        ("networks[].name", Honoured, "joined with interfaces by name, one to one"),
        (
            "networks[].multus.networkName",
            Honoured,
            "`<namespace>/<name>`, or `<name>` in the VM's namespace",
        ),
        ("networks[].multus.default", Ignored, "the network is one beside the pod network"),
        ("networks[].pod.vmNetworkCIDR", Honoured, "/8 to /30; 10.0.2.0/24 if absent"),
        ("networks[].pod.vmIPv6NetworkCIDR", Honoured, "/8 to /126; fd10:0:2::/120 if absent"),
        ("volumes[].name", Honoured, "joined with disks by name"),
        ("volumes[].cloudInitNoCloud.userData", Honoured, "not together with userDataBase64"),
        ("volumes[].cloudInitNoCloud.userDataBase64", Honoured, ""),
        ("volumes[].cloudInitNoCloud.networkData", Honoured, "not together with networkDataBase64"),
        ("volumes[].cloudInitNoCloud.networkDataBase64", Honoured, ""),
        ("volumes[].cloudInitNoCloud.secretRef", Refused, "secrets live in the API server; write userData"),
        ("volumes[].cloudInitNoCloud.networkDataSecretRef", Refused, "secrets live in the API server"),
        (
            "volumes[].containerDisk.image",
            Honoured,
            "an unpacked image below `--images`; writes are thrown away",
        ),
        (
            "volumes[].containerDisk.path",
            Honoured,
            "the disk inside the image; the one file in /disk if absent",
        ),
        ("volumes[].containerDisk.imagePullPolicy", Ignored, "images are never pulled"),
        ("volumes[].containerDisk.imagePullSecret", Ignored, "images are never pulled"),
        ("volumes[].containerDisk.hotpluggable", Ignored, "disks do not change while a VM runs"),
        ("volumes[].hostDisk.path", Honoured, "an absolute path to a raw image"),
        ("volumes[].hostDisk.type", Honoured, "Disk; DiskOrCreate is refused"),
        ("volumes[].hostDisk.capacity", Ignored, "only DiskOrCreate needs it"),
        ("volumes[].hostDisk.shared", Ignored, "one VM opens the disk"),
        ("volumes[].cloudInitConfigDrive", Refused, "use cloudInitNoCloud"),
        ("volumes[].sysprep", Refused, "needs ConfigMaps or Secrets of the API server"),
        ("volumes[].persistentVolumeClaim", Refused, "needs a cluster's storage; use hostDisk"),
        ("volumes[].dataVolume", Refused, "needs a cluster's storage; use hostDisk"),
        ("volumes[].ephemeral", Refused, "needs a cluster's storage; use containerDisk"),
        ("volumes[].emptyDisk", Refused, "not offered yet; use hostDisk"),
        ("volumes[].configMap", Refused, "needs the API server"),
        ("volumes[].secret", Refused, "needs the API server"),
        ("volumes[].downwardAPI", Refused, "needs the API server"),
        ("volumes[].serviceAccount", Refused, "needs the API server"),
        ("volumes[].downwardMetrics", Refused, "not offered"),
        ("volumes[].memoryDump", Refused, "not offered"),
        ("domain.cpu.cores", Honoured, "vCPUs = cores x sockets x threads, at most 254"),
        ("domain.cpu.sockets", Honoured, ""),
        ("domain.cpu.threads", Honoured, ""),
        ("domain.cpu.maxSockets", Ignored, "CPUs are not hot-plugged"),
        ("domain.cpu.model", Ignored, "the guest sees the host's CPU"),
        ("domain.cpu.features", Ignored, "the guest sees the host's CPU"),
        ("domain.cpu.dedicatedCpuPlacement", Ignored, "vCPUs are not pinned"),
        ("domain.cpu.isolateEmulatorThread", Ignored, "vCPUs are not pinned"),
        ("domain.cpu.numa", Ignored, "the guest sees one NUMA node"),
        ("domain.cpu.realtime", Ignored, "vCPUs are scheduled as any thread"),
        ("domain.memory.guest", Honoured, "at least 32Mi; rounded up to whole MiB"),
        ("domain.memory.maxGuest", Ignored, "memory is not hot-plugged"),
        ("domain.memory.hugepages", Ignored, "memory is of ordinary pages"),
        ("domain.resources.requests.memory", Honoured, "the guest's memory if domain.memory.guest is absent"),
        ("domain.resources.requests.cpu", Ignored, "nothing is scheduled here; vCPUs come from domain.cpu"),
        ("domain.resources.limits.memory", Honoured, "the guest's memory if neither other is there"),
        ("domain.resources.limits.cpu", Ignored, "nothing limits the VM's CPU time"),
        ("domain.resources.overcommitGuestOverhead", Ignored, "nothing is scheduled here"),
        ("domain.firmware.kernelBoot.container.image", Honoured, "an unpacked image below `--images`"),
        ("domain.firmware.kernelBoot.container.kernelPath", Honoured, "the kernel's path in the image"),
        ("domain.firmware.kernelBoot.container.initrdPath", Honoured, "the initrd's path in the image"),
        ("domain.firmware.kernelBoot.container.imagePullPolicy", Ignored, "images are never pulled"),
        ("domain.firmware.kernelBoot.container.imagePullSecret", Ignored, "images are never pulled"),
        ("domain.firmware.kernelBoot.kernelArgs", Honoured, "also with `--kernel`; at most 1500 bytes"),
        ("domain.firmware.bootloader", Refused, "there is no firmware; kernels are booted directly"),
        ("domain.firmware.uuid", Ignored, "the guest sees no SMBIOS"),
        ("domain.firmware.serial", Ignored, "the guest sees no SMBIOS"),
        ("domain.firmware.acpi", Refused, "own ACPI tables are not offered"),
        ("domain.machine", Ignored, "there is one machine type"),
        ("domain.chassis", Ignored, "the guest sees no SMBIOS"),
        ("domain.clock", Ignored, "the guest gets the host's clock, in UTC"),
        ("domain.features", Ignored, "ACPI and APIC are always there, nothing else is"),
        ("domain.ioThreadsPolicy", Ignored, "devices have threads of their own"),
        ("domain.ioThreads", Ignored, "devices have threads of their own"),
        ("domain.launchSecurity", Refused, "encrypted guests are not offered"),
        ("domain.devices.disks[].name", Honoured, "joined with volumes by name"),
        ("domain.devices.disks[].serial", Honoured, "at most 20 printable ASCII characters"),
        ("domain.devices.disks[].disk.bus", Honoured, "virtio, also when absent; any other is refused"),
        ("domain.devices.disks[].disk.readonly", Honoured, ""),
        ("domain.devices.disks[].disk.pciAddress", Ignored, "the VMM places devices"),
        ("domain.devices.disks[].bootOrder", Ignored, "the kernel is booted directly"),
        ("domain.devices.disks[].cache", Ignored, "the host's page cache is used"),
        ("domain.devices.disks[].io", Ignored, "there is one way of I/O"),
        ("domain.devices.disks[].dedicatedIOThread", Ignored, "devices have threads of their own"),
        ("domain.devices.disks[].tag", Ignored, "tags reach a guest by config drive only"),
        ("domain.devices.disks[].blockSize", Ignored, "sectors have 512 bytes"),
        ("domain.devices.disks[].errorPolicy", Ignored, "errors are reported to the guest"),
        ("domain.devices.disks[].cdrom", Refused, "there is no CD-ROM; use disk with bus virtio"),
        ("domain.devices.disks[].lun", Refused, "there is no SCSI; use disk with bus virtio"),
        ("domain.devices.disks[].shareable", Refused, "one VM opens a disk"),
        ("domain.devices.interfaces[].name", Honoured, "letters, digits, '-' and '_', at most 63"),
        ("domain.devices.interfaces[].bridge", Honoured, "with a multus network"),
        ("domain.devices.interfaces[].masquerade", Honoured, "with the pod network"),
        ("domain.devices.interfaces[].sriov", Honoured, "with a multus network of VFs that vfio-pci drives"),
        (
            "domain.devices.interfaces[].macAddress",
            Honoured,
            "unicast; 02:00:00:00:00:01, with dashes, or 0200.0000.0001",
        ),
        ("domain.devices.interfaces[].model", Honoured, "virtio, also when absent; any other is refused"),
        (
            "domain.devices.interfaces[].state",
            Honoured,
            "up; absent: the VM starts without it; any other is refused",
        ),
        (
            "domain.devices.interfaces[].ports[].port",
            Honoured,
            "with masquerade; every port if none is listed; not 49152 and 49153 of TCP",
        ),
        ("domain.devices.interfaces[].ports[].protocol", Honoured, "TCP if absent, UDP, SCTP"),
        ("domain.devices.interfaces[].ports[].name", Honoured, "for people"),
        ("domain.devices.interfaces[].portRanges[].start", Honoured, "with masquerade, beside ports"),
        ("domain.devices.interfaces[].portRanges[].end", Honoured, ""),
        ("domain.devices.interfaces[].portRanges[].protocol", Honoured, "TCP if absent, UDP, SCTP"),
        ("domain.devices.interfaces[].bootOrder", Ignored, "the kernel is booted directly"),
        ("domain.devices.interfaces[].pciAddress", Honoured, "0000:00:01.0 to 0000:00:1f.0"),
        ("domain.devices.interfaces[].acpiIndex", Ignored, "the VMM numbers devices"),
        ("domain.devices.interfaces[].tag", Ignored, "tags reach a guest by config drive only"),
        (
            "domain.devices.interfaces[].dhcpOptions.bootFileName",
            Honoured,
            "with masquerade, and with a bridge whose network gives addresses; as all of these",
        ),
        ("domain.devices.interfaces[].dhcpOptions.tftpServerName", Honoured, ""),
        ("domain.devices.interfaces[].dhcpOptions.ntpServers", Honoured, "IPv4 addresses"),
        ("domain.devices.interfaces[].dhcpOptions.privateOptions[].option", Honoured, "224 to 254"),
        ("domain.devices.interfaces[].dhcpOptions.privateOptions[].value", Honoured, "1 to 255 bytes"),
        ("domain.devices.interfaces[].slirp", Refused, "not offered; use bridge"),
        ("domain.devices.interfaces[].macvtap", Refused, "not offered; use bridge"),
        ("domain.devices.interfaces[].passt", Refused, "not offered; use bridge"),
        ("domain.devices.interfaces[].passtBinding", Refused, "not offered; use bridge"),
        (
            "domain.devices.interfaces[].binding.name",
            Honoured,
            "vhostuser, with a multus network that ends in the plugin vhost-user; any other is refused",
        ),
        ("domain.devices.rng", Honoured, "a virtio entropy device, which is always there"),
        (
            "domain.devices.autoattachPodInterface",
            Honoured,
            "unless false, a VM without interfaces gets one on the pod network, masqueraded",
        ),
        ("domain.devices.autoattachSerialConsole", Ignored, "the serial console is always there"),
        ("domain.devices.autoattachGraphicsDevice", Ignored, "there is no graphics device"),
        ("domain.devices.autoattachMemBalloon", Ignored, "there is no balloon"),
        ("domain.devices.autoattachInputDevice", Ignored, "there is no graphics device"),
        ("domain.devices.autoattachVSOCK", Refused, "vsock is not offered yet"),
        ("domain.devices.logSerialConsole", Ignored, "the console is always logged, bounded"),
        (
            "domain.devices.networkInterfaceMultiqueue",
            Honoured,
            "a virtio NIC has as many queue pairs as there are vCPUs, on a vhost-user backend at most the plugin's `queues`; all together at most 1024",
        ),
        ("domain.devices.blockMultiQueue", Ignored, "disks have one queue"),
        ("domain.devices.disableHotplug", Ignored, "nothing is hot-plugged"),
        ("domain.devices.useVirtioTransitional", Refused, "devices are virtio 1.x only"),
        ("domain.devices.inputs", Ignored, "there is no graphics device"),
        ("domain.devices.watchdog", Refused, "there is no watchdog device yet"),
        ("domain.devices.filesystems", Refused, "virtiofs is not offered"),
        ("domain.devices.gpus", Refused, "not offered"),
        ("domain.devices.hostDevices", Refused, "not offered"),
        ("domain.devices.tpm", Refused, "not offered"),
        ("domain.devices.sound", Refused, "not offered"),
        ("domain.devices.clientPassthrough", Refused, "not offered"),
        ("domain.devices.downwardMetrics", Refused, "not offered"),
        ("readinessProbe", Ignored, "probes are not run yet: Ready means the guest runs"),
        ("livenessProbe", Ignored, "probes are not run yet"),
        ("startStrategy", Refused, "a guest that starts paused is not offered"),
        ("accessCredentials", Refused, "needs the API server; use cloudInitNoCloud"),
        ("affinity", Ignored, "there is one node"),
        ("architecture", Ignored, "the guest's is the host's"),
        ("dnsConfig", Ignored, "there is no pod"),
        ("dnsPolicy", Ignored, "there is no pod"),
        ("evictionStrategy", Ignored, "there is one node"),
        ("nodeSelector", Ignored, "there is one node"),
        ("priorityClassName", Ignored, "nothing is scheduled here"),
        ("resourceClaims", Refused, "needs the API server"),
        ("schedulerName", Ignored, "nothing is scheduled here"),
        ("tolerations", Ignored, "there is one node"),
        ("topologySpreadConstraints", Ignored, "there is one node"),
    ],
};

/// A field of a manifest that is not honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it stands: `spec.template.spec.domain.devices.disks[0].cdrom`.
    pub path: String,
    /// Why it is not honoured.
    pub reason: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// The table as `docs/vm-fields.md` shows it.
pub fn markdown() -> String {
    let mut text = String::from(
        "# Which fields of a VM manifest do what\n\n\
         `vm-launcher up` reads `VirtualMachine` and `VirtualMachineInstance` of `kubevirt.io/v1`. Each field is\n\
         **honoured**, **ignored** (with a warning; `--strict` refuses it) or **refused** (nothing is started).\n\
         A field that is not listed is ignored as unknown. Printed from the table the launcher itself uses:\n\
         `cargo run -p vm-api --example vm-fields > docs/vm-fields.md`.\n",
    );
    for Section { title, rows } in [METADATA, MACHINE, INSTANCE] {
        let _infallible = write!(text, "\n## {title}\n\n| field | verdict | note |\n| --- | --- | --- |\n");
        for (path, verdict, note) in rows {
            let verdict = match verdict {
                Honoured => "honoured",
                Ignored => "ignored",
                Refused => "refused",
            };
            let _infallible = writeln!(text, "| `{path}` | {verdict} | {note} |");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documented_table_is_the_one_in_use() {
        let documented = include_str!("../../../../docs/vm-fields.md");
        assert!(documented == markdown(), "run: cargo run -p vm-api --example vm-fields > docs/vm-fields.md");
    }

    #[test]
    fn no_field_has_two_verdicts() {
        for section in [METADATA, MACHINE, INSTANCE] {
            let paths: BTreeSet<_> = section.rows.iter().map(|(path, _, _)| path).collect();
            assert_eq!(paths.len(), section.rows.len(), "{}", section.title);
            for (path, _, _) in section.rows {
                assert!(
                    !super::super::walk::is_parent(path, section.rows),
                    "{path} has a verdict and rows below it"
                );
            }
        }
    }
}
