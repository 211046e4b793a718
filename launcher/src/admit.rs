//! Admission as in a cluster: a VM is shown to a webhook before it is started, and changed as the webhook answers.
//!
//! `up --admit URL` posts the AdmissionReview (admission.k8s.io/v1) that kube-apiserver would post for the creation of the
//! VirtualMachine, over TLS 1.3, and applies the JSON patch in the answer. One request per VM and `up`, so there is no
//! connection to keep. What `macpool` serves on one machine is made for this; any webhook will do.

mod exchange;
mod patch;

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use vm_api::manifest::MACHINE_KIND;

pub(crate) use self::exchange::{Endpoint, ExchangeError};
pub(crate) use self::patch::PatchError;

/// Where VMs are reviewed; both or none.
#[derive(Debug, clap::Args)]
pub(crate) struct AdmitArgs {
    /// Webhook that VMs of the manifest are shown to first, such as macpool's: https://HOST:PORT/mutate-virtualmachines.
    #[arg(long, value_name = "URL", requires = "admit_ca")]
    admit: Option<Endpoint>,
    /// Certificate (PEM) that verifies the webhook.
    #[arg(long, value_name = "FILE", requires = "admit")]
    admit_ca: Option<PathBuf>,
}

/// Why a VM was not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("the webhook's answer is no AdmissionReview")]
    Answer(#[source] serde_json::Error),
    #[error("the webhook answers another request than the one it was sent")]
    OtherRequest,
    #[error("refused: {0}")]
    Refused(String),
    #[error("the patch in the webhook's answer is not base64")]
    Base64(#[source] base64::DecodeError),
    #[error("patch type {0:?}; only JSONPatch is known")]
    PatchType(String),
    #[error("the patch in the webhook's answer cannot be applied")]
    Patch(#[from] PatchError),
}

#[derive(Deserialize)]
struct Review {
    response: Response,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(default)]
    status: Option<Status>,
    #[serde(default)]
    patch_type: Option<String>,
    #[serde(default)]
    patch: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
}

impl AdmitArgs {
    /// The object as it is to be run: unchanged, if no webhook was named or it is no VirtualMachine.
    pub(crate) fn admit(&self, mut machine: Value) -> Result<Value, AdmitError> {
        let (Some(endpoint), Some(ca)) = (&self.admit, &self.admit_ca) else { return Ok(machine) };
        if machine["kind"] != MACHINE_KIND {
            return Ok(machine);
        }
        // As the API server completes an object before it shows it around.
        if let Some(metadata) = machine.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.entry("namespace").or_insert_with(|| "default".into());
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let answer = exchange::post(endpoint, ca, review(&uid, &machine).to_string())?;
        let Review { response } = serde_json::from_slice(&answer).map_err(AdmitError::Answer)?;
        if response.uid != uid {
            return Err(AdmitError::OtherRequest);
        }
        for warning in response.warnings {
            tracing::warn!(vm = %machine["metadata"]["name"], "{warning}");
        }
        if !response.allowed {
            let reason = response.status.map(|status| status.message).unwrap_or_default();
            return Err(AdmitError::Refused(reason));
        }
        let Some(encoded) = response.patch else { return Ok(machine) };
        match response.patch_type.as_deref() {
            Some("JSONPatch") => {}
            other => return Err(AdmitError::PatchType(other.unwrap_or_default().to_owned())),
        }
        patch::apply(&mut machine, &STANDARD.decode(encoded).map_err(AdmitError::Base64)?)?;
        Ok(machine)
    }
}

/// The review of a creation.
fn review(uid: &str, machine: &Value) -> Value {
    let (name, namespace) = (&machine["metadata"]["name"], &machine["metadata"]["namespace"]);
    let kind = json!({"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"});
    let resource = json!({"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"});
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": kind, "requestKind": kind, "resource": resource, "requestResource": resource,
            "name": name, "namespace": namespace, "operation": "CREATE",
            "userInfo": {"username": "vm-launcher"},
            "object": machine, "oldObject": null, "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}
