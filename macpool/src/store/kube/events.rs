//! Kubernetes events: what users see in `kubectl describe`.
//!
//! Sent in the background and given up after one failure: they inform, nothing depends on them.

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

use super::api::{Api, ApiError};

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regarding {
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Empty if it is not known.
    pub(super) uid: String,
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

    /// Logs and sends a Warning. Replicas that see the same thing say it once: `what` makes the event's name, with the object's
    /// uid, since one that is made again under its name is another. Who is about to end waits for what is returned.
    pub(super) fn warn(
        &self,
        regarding: &Regarding,
        reason: &'static str,
        what: &str,
        message: String,
    ) -> JoinHandle<()> {
        let Regarding { api_version, kind, namespace, name, uid } = regarding;
        tracing::warn!(kind, namespace, name, reason, message);
        // The first part of a uid is random enough.
        let which = uid.split('-').next().filter(|part| !part.is_empty()).map(|part| format!(".{part}"));
        let event_name = format!("{name}.{what}{}", which.unwrap_or_default());
        let now =
            OffsetDateTime::now_utc().replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok());
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event_name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": api_version, "kind": kind, "namespace": namespace, "name": name, "uid": uid,
            },
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
            let sent = api.post::<_, serde::de::IgnoredAny>(&path, &event).await;
            if let Err(error) = sent
                && !matches!(error, ApiError::Conflict { .. })
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event could not be sent");
            }
        })
    }
}
