//! The reply to a review: allowed with a JSON patch (RFC 6902), or refused with a reason.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use net_types::Mac;
use serde::Serialize;

/// One operation of a patch. `add` on a member that exists replaces it (RFC 6902, 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PatchOp {
    op: &'static str,
    path: String,
    value: String,
}

impl PatchOp {
    /// Sets the address of a VM's interface, counted from 0.
    pub fn interface_mac(index: usize, mac: Mac) -> Self {
        let path = format!("/spec/template/spec/domain/devices/interfaces/{index}/macAddress");
        Self { op: "add", path, value: mac.to_string() }
    }

    /// Sets an annotation that exists; `/` and `~` in its key are escaped.
    pub fn annotation(key: &str, value: String) -> Self {
        let key = key.replace('~', "~0").replace('/', "~1");
        Self { op: "replace", path: format!("/metadata/annotations/{key}"), value }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    message: &'a str,
}

fn write(response: Response<'_>) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Review { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response })
}

/// Allows the request, with these changes and with warnings that `kubectl` shows to the user.
pub fn allow(uid: &str, patch: &[PatchOp], warnings: &[String]) -> Result<Vec<u8>, serde_json::Error> {
    let patch = (!patch.is_empty()).then(|| serde_json::to_vec(patch)).transpose()?;
    write(Response {
        uid,
        allowed: true,
        patch_type: patch.is_some().then_some("JSONPatch"),
        patch: patch.map(|patch| BASE64_STANDARD.encode(patch)),
        status: None,
        warnings,
    })
}

/// Refuses the request. `code` is the HTTP status that the user's client gets; `message` what it shows.
pub fn refuse(uid: &str, code: u16, message: &str) -> Result<Vec<u8>, serde_json::Error> {
    let status = Some(Status { code, message });
    write(Response { uid, allowed: false, patch_type: None, patch: None, status, warnings: &[] })
}
