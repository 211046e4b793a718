//! Kubernetes events: what users see in `kubectl describe`.
//!
//! Sent in the background and given up after one failure: they inform, nothing depends on them.

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::api::Api;

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regarding {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Sends events.
#[derive(Clone)]
pub(super) struct Events {
    api: Api,
}

impl Events {
    pub(super) fn new(api: Api) -> Self {
        Self { api }
    }

    /// Logs and sends a Warning.
    pub(super) fn warn(&self, regarding: &Regarding, reason: &'static str, message: String) {
        let Regarding { api_version, kind, namespace, name } = regarding;
        tracing::warn!(kind, namespace, name, reason, message);
        let now =
            OffsetDateTime::now_utc().replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok());
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{name}."), "namespace": namespace},
            "involvedObject": {"apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "macpool"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let (api, path) = (self.api.clone(), format!("/api/v1/namespaces/{namespace}/events"));
        tokio::spawn(async move {
            if let Err(error) = api.post::<_, serde::de::IgnoredAny>(&path, &event).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event could not be sent");
            }
        });
    }
}
