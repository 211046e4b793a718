//! `status`: what is known of one VM.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use vm_api::names::NameError;
use vm_api::status_dir::StatusDirError;
use vm_api::vmi::{Interface, Network, NetworkSource, Phase, Vmi};
use vm_api::yaml;

use super::{Directories, Target};
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::{Lock, Locking};

/// Shows a VM.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    target: Target,
    /// How: the whole object, or what a person wants to know.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    directories: Directories,
}

/// How a status is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// The VirtualMachineInstance in JSON.
    Json,
    /// The VirtualMachineInstance in YAML.
    Yaml,
}

/// Why a status cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatusError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error(transparent)]
    Status(#[from] StatusDirError),
    #[error("there is no VM {0}")]
    NotFound(VmId),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

impl Status {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), StatusError> {
        let id = self.target.id()?;
        let layout = self.directories.layout().map_err(StatusError::WorkingDirectory)?;
        let Some(mut vmi) = layout.status().read(&id.namespace, &id.name)? else {
            return Err(StatusError::NotFound(id));
        };
        let owned = is_owned(&layout, &vmi);
        if !owned {
            tell_dead(&mut vmi);
        }
        let text = match self.output {
            Output::Text => for_people(&vmi),
            Output::Json => {
                serde_json::to_string_pretty(&vmi).map_err(|error| StatusError::Print(error.into()))? + "\n"
            }
            Output::Yaml => {
                yaml::to_string(&vmi).map_err(|error| StatusError::Print(io::Error::other(error)))?
            }
        };
        io::stdout().lock().write_all(text.as_bytes()).map_err(StatusError::Print)
    }
}

/// Whether a supervisor keeps this status up to date.
pub(super) fn is_owned(layout: &Layout, vmi: &Vmi) -> bool {
    let Ok(id) = VmId::new(&vmi.metadata.namespace, &vmi.metadata.name) else { return false };
    let path = layout.lock(&id);
    // Not there: nobody has it. (Trying to lock would make it.)
    path.exists() && matches!(Lock::try_lock(&path), Ok(Locking::Busy(_)))
}

/// The status of a VM whose supervisor died is the last it wrote; this is what became of the VM since.
fn tell_dead(vmi: &mut Vmi) {
    vmi.status.phase = Phase::Failed;
    DEAD.clone_into(&mut vmi.status.reason);
    for condition in &mut vmi.status.conditions {
        if condition.kind == "Ready" {
            "False".clone_into(&mut condition.status);
            DEAD.clone_into(&mut condition.message);
        }
    }
    for interface in &mut vmi.status.interfaces {
        interface.ip_address.clear();
        interface.ip_addresses.clear();
    }
}

const DEAD: &str = "its supervisor died; `vm-launcher gc` removes what is left";

/// The phase, as `list` shows it.
pub(super) fn phase(vmi: &Vmi, owned: bool) -> String {
    if owned { format!("{:?}", vmi.status.phase) } else { "Failed".to_owned() }
}

/// The Ready condition's status.
pub(super) fn ready(vmi: &Vmi, owned: bool) -> &str {
    let ready = vmi.status.conditions.iter().find(|condition| condition.kind == "Ready");
    if owned { ready.map_or("Unknown", |ready| &ready.status) } else { "False" }
}

fn network_name(network: &Network) -> &str {
    match &network.source {
        NetworkSource { multus: Some(multus), .. } => &multus.network_name,
        NetworkSource { pod: Some(_), .. } => "pod",
        NetworkSource { pod: None, multus: None } => "-",
    }
}

fn for_people(vmi: &Vmi) -> String {
    let Vmi { metadata, status, spec, .. } = vmi;
    let mut lines = vec![
        format!("Name:       {}", metadata.name),
        format!("Namespace:  {}", metadata.namespace),
        format!("Phase:      {:?}", status.phase),
        format!("Ready:      {}", ready(vmi, true)),
    ];
    if !status.reason.is_empty() {
        lines.push(format!("Reason:     {}", status.reason));
    }
    if let Some(created) = &metadata.creation_timestamp {
        lines.push(format!("Started:    {created}"));
    }
    for Interface { name, mac, ip_addresses, pod_interface_name, link_state, .. } in &status.interfaces {
        let network = spec.networks.iter().find(|network| network.name == *name);
        lines.push(format!("Interface {name}:"));
        lines.push(format!("  network:    {}", network.map_or("-", network_name)));
        lines.push(format!("  MAC:        {}", mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string())));
        if link_state == "down" {
            lines.push("  link:       down, its backend is away".to_owned());
        }
        let addresses =
            if ip_addresses.is_empty() { "none seen yet".to_owned() } else { ip_addresses.join(", ") };
        lines.push(format!("  addresses:  {addresses}"));
        lines.push(format!("  in the pod: {pod_interface_name}"));
    }
    let is_there = |network: &&Network| status.interfaces.iter().any(|known| known.name == network.name);
    for network in spec.networks.iter().filter(|network| !is_there(network)) {
        lines.push(format!("Interface {}:", network.name));
        lines.push(format!("  network:    {}", network_name(network)));
        lines.push("  unplugged".to_owned());
    }
    lines.join("\n") + "\n"
}
