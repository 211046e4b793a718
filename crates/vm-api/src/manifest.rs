//! VM manifests: `VirtualMachine` and `VirtualMachineInstance` in, a checked [`VmSpec`] out.
//!
//! [`parse`] is the one way in: it walks the document with the table of [`fields`] (what is refused ends it,
//! what is ignored is reported), reads the honoured fields into `raw` types and checks them into a
//! [`VmSpec`]. No I/O; images, disks and networks are looked up by the caller.

mod check;
mod dhcp_options;
mod disks;
pub mod fields;
mod masquerade;
mod nics;
mod raw;
mod spec;
#[cfg(test)]
mod tests;
mod walk;

use serde_json::Value;

pub use self::check::{FieldError, Problem};
use self::fields::Finding;
pub use self::spec::{
    Binding, DhcpOptions, Disk, DiskSource, ImageRef, KernelImage, Masquerade, Nic, PortRange, Protocol,
    RunStrategy, Seed, VmSpec,
};
use self::walk::Findings;

/// `kind` of a `VirtualMachine`.
pub const MACHINE_KIND: &str = "VirtualMachine";
/// `kind` of a `VirtualMachineInstance`.
pub const INSTANCE_KIND: &str = "VirtualMachineInstance";
/// The versions that are read; they differ in nothing that is honoured.
const API_VERSIONS: [&str; 2] = ["kubevirt.io/v1", "kubevirt.io/v1alpha3"];

/// A manifest that can be run.
#[derive(Debug)]
pub struct Manifest {
    /// What to run.
    pub vm: VmSpec,
    /// What of it is ignored; worth a warning each.
    pub ignored: Vec<Finding>,
}

/// Why a document cannot be run as a VM.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Another kind or version.
    #[error(
        "apiVersion {api_version:?}, kind {kind:?}; expected kubevirt.io/v1 {MACHINE_KIND} or {INSTANCE_KIND}"
    )]
    Kind {
        /// As given.
        api_version: String,
        /// As given.
        kind: String,
    },
    /// Fields that cannot be left out and are not offered.
    #[error("refused: {}", join(.0))]
    Refused(Vec<Finding>),
    /// A value of the wrong JSON type.
    #[error("{path}")]
    Shape {
        /// Where.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A value that is not allowed.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// Reads one document.
pub fn parse(document: Value) -> Result<Manifest, ManifestError> {
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if !API_VERSIONS.contains(&api_version.as_str()) {
        return Err(ManifestError::Kind { api_version, kind });
    }
    match kind.as_str() {
        MACHINE_KIND => {
            let ignored = accepted(Findings::of_machine(&document))?;
            let vm = check::machine(typed(document)?)?;
            Ok(Manifest { vm, ignored })
        }
        INSTANCE_KIND => {
            let ignored = accepted(Findings::of_instance(&document))?;
            let vm = check::standalone_instance(typed(document)?)?;
            Ok(Manifest { vm, ignored })
        }
        _ => Err(ManifestError::Kind { api_version, kind }),
    }
}

fn accepted(findings: Findings) -> Result<Vec<Finding>, ManifestError> {
    let Findings { ignored, refused } = findings;
    if refused.is_empty() { Ok(ignored) } else { Err(ManifestError::Refused(refused)) }
}

fn typed<T: serde::de::DeserializeOwned>(document: Value) -> Result<T, ManifestError> {
    serde_path_to_error::deserialize(without_nulls(document))
        .map_err(|error| ManifestError::Shape { path: error.path().to_string(), source: error.into_inner() })
}

/// Kubernetes treats a field set to null as absent; serde does so for options only.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// `a; b; c`.
pub fn join(findings: &[Finding]) -> String {
    findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("; ")
}
