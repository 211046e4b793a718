//! Publishes what is known of the VM: its `VirtualMachineInstance` in the status directory.
//!
//! Written when something changed and only then. A write that fails is logged and tried again with the next change;
//! the VM does not depend on it.

use std::net::IpAddr;
use std::time::SystemTime;

use vm_api::manifest::{Binding, INSTANCE_KIND, Masquerade};
use vm_api::status_dir::StatusDir;
use vm_api::vmi::{
    Condition, Interface, Metadata, MultusNetwork, Network, NetworkSource, Phase, PodNetwork, Spec, Status,
    Vmi,
};

use crate::vm::record::{Record, ToGuest};

/// The status of one VM.
#[derive(Debug)]
pub(super) struct Publisher {
    directory: StatusDir,
    vmi: Vmi,
    written: Option<Vmi>,
}

impl Publisher {
    /// Of a VM whose guest has not been started. Publishes nothing yet.
    pub(super) fn new(directory: StatusDir, record: &Record) -> Self {
        let plan = &record.plan;
        let networks =
            plan.nics.iter().map(|nic| Network { name: nic.name.clone(), source: source(&nic.binding) });
        let vmi = Vmi {
            api_version: "kubevirt.io/v1".to_owned(),
            kind: INSTANCE_KIND.to_owned(),
            metadata: Metadata {
                name: plan.id.name.clone(),
                namespace: plan.id.namespace.clone(),
                labels: plan.labels.clone(),
                annotations: plan.annotations.clone(),
                ..Metadata::default()
            },
            spec: Spec { networks: networks.collect() },
            status: Status { interfaces: interfaces(record), ..Status::default() },
        };
        Self { directory, vmi, written: None }
    }

    /// A NIC was plugged or unplugged: the others keep what is known of them.
    pub(super) fn interfaces(&mut self, record: &Record) {
        let mut now = interfaces(record);
        for interface in &mut now {
            let mut before = self.vmi.status.interfaces.iter();
            if let Some(known) = before.find(|known| known.name == interface.name) {
                interface.clone_from(known);
            }
        }
        self.vmi.status.interfaces = now;
        self.publish();
    }

    /// A new instance of the VM is about to be started.
    pub(super) fn new_instance(&mut self) {
        self.vmi.metadata.uid = uuid::Uuid::new_v4().to_string();
        self.vmi.metadata.creation_timestamp = Some(now());
        self.restarting();
    }

    /// The instance is about to be started again, because its guest asked for it.
    pub(super) fn restarting(&mut self) {
        self.set(Phase::Scheduled, "", "GuestNotRunning", "the VMM is being started");
    }

    /// The guest runs.
    pub(super) fn running(&mut self) {
        self.set(Phase::Running, "", "", "");
    }

    /// The guest was asked to shut down.
    pub(super) fn stopping(&mut self) {
        let phase = self.vmi.status.phase;
        self.set(phase, "Stopping", "GuestNotRunning", "the guest is shutting down");
    }

    /// The guest does not run any more. What it had as addresses is gone.
    pub(super) fn ended(&mut self, phase: Phase, reason: &str) {
        for interface in &mut self.vmi.status.interfaces {
            show_addresses(interface, &[], "");
            "up".clone_into(&mut interface.link_state);
        }
        self.set(phase, reason, "GuestNotRunning", reason);
    }

    /// NIC `index` has these addresses: a masqueraded one its pod's, any other those its guest uses.
    pub(super) fn addresses(&mut self, index: usize, addresses: &[IpAddr]) {
        let network = self.vmi.spec.networks.get(index);
        let is_pod = network.is_some_and(|network| network.source.pod.is_some());
        if let Some(interface) = self.interface(index) {
            show_addresses(interface, addresses, if is_pod { "pod" } else { "wire" });
        }
        self.publish();
    }

    /// NIC `index` has a link, or has none for now.
    pub(super) fn link(&mut self, index: usize, up: bool) {
        if let Some(interface) = self.interface(index) {
            interface.link_state = if up { "up" } else { "down" }.to_owned();
        }
        self.publish();
    }

    /// What is shown of NIC `index`; none while it is unplugged, when those behind it move up.
    fn interface(&mut self, index: usize) -> Option<&mut Interface> {
        // One network each, of the same name.
        let name = &self.vmi.spec.networks.get(index)?.name;
        self.vmi.status.interfaces.iter_mut().find(|interface| interface.name == *name)
    }

    /// `not_ready` is why the VM is not ready; empty if it is.
    fn set(&mut self, phase: Phase, reason: &str, not_ready: &str, message: &str) {
        let status = if not_ready.is_empty() { "True" } else { "False" };
        let before = self.vmi.status.conditions.first();
        let since = before
            .filter(|ready| ready.status == status)
            .and_then(|ready| ready.last_transition_time.clone());
        self.vmi.status.conditions = vec![Condition {
            kind: "Ready".to_owned(),
            status: status.to_owned(),
            reason: not_ready.to_owned(),
            message: message.to_owned(),
            last_transition_time: Some(since.unwrap_or_else(now)),
        }];
        self.vmi.status.phase = phase;
        reason.clone_into(&mut self.vmi.status.reason);
        self.publish();
    }

    fn publish(&mut self) {
        if self.written.as_ref() == Some(&self.vmi) {
            return;
        }
        match self.directory.write(&self.vmi) {
            Ok(()) => self.written = Some(self.vmi.clone()),
            Err(error) => tracing::error!("cannot publish the status: {}", crate::chain(&error)),
        }
    }
}

fn interfaces(record: &Record) -> Vec<Interface> {
    let nics = record.plan.nics.iter().zip(&record.nics);
    // As KubeVirt does, what is unplugged is left out.
    let nics = nics.filter(|(_, wired)| wired.to_guest != ToGuest::Unplugged);
    nics.map(|(planned, wired)| {
        let mut interface = Interface {
            name: planned.name.clone(),
            mac: Some(wired.mac),
            pod_interface_name: wired.pod_interface.to_string(),
            queue_count: match wired.to_guest {
                ToGuest::Tap { .. } | ToGuest::VhostUser { .. } => Some(u16::from(planned.pairs).into()),
                // What queues a function of the hardware has is between it and the guest.
                ToGuest::Function(_) | ToGuest::Unplugged => None,
            },
            link_state: "up".to_owned(),
            ..Interface::default()
        };
        show_addresses(&mut interface, &[], "");
        interface
    })
    .collect()
}

fn source(binding: &Binding) -> NetworkSource {
    match binding {
        Binding::Bridge(nad) | Binding::Sriov(nad) | Binding::VhostUser(nad) => NetworkSource {
            multus: Some(MultusNetwork { network_name: nad.to_string(), default: false }),
            ..NetworkSource::default()
        },
        Binding::Masquerade(Masquerade { v4, v6, ports: _ }) => NetworkSource {
            pod: Some(PodNetwork {
                vm_network_cidr: v4.map(|net| net.to_string()),
                vm_ipv6_network_cidr: v6.map(|net| net.to_string()),
            }),
            ..NetworkSource::default()
        },
    }
}

fn show_addresses(interface: &mut Interface, addresses: &[IpAddr], seen: &str) {
    interface.ip_addresses = addresses.iter().map(IpAddr::to_string).collect();
    interface.ip_address = interface.ip_addresses.first().cloned().unwrap_or_default();
    // The NIC itself is known because it was made here, its addresses because they were seen.
    interface.info_source = match addresses {
        [] => "domain".to_owned(),
        [..] => format!("domain, {seen}"),
    };
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}
