//! Lists and watches of VMIs, as far as a name server needs them.
//!
//! kube makes the requests; objects are parsed here one by one, so that one that nobody can read costs its own name
//! and not the list.

use std::io;

use futures_util::{AsyncBufReadExt as _, Stream, StreamExt as _};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use vm_api::vmi::Vmi;

/// Where VMIs are.
const PATH: &str = "/apis/kubevirt.io/v1/virtualmachineinstances";
/// Seconds after which the API server ends a watch, to be resumed.
const WATCH_SECONDS: u32 = 290;

/// Why a list or watch failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request failed.
    #[error("{operation} VMIs")]
    Request {
        /// `list` or `watch`.
        operation: &'static str,
        /// What kube says.
        source: Box<kube::Error>,
    },
    /// A request could not be put together.
    #[error("request for VMIs")]
    Build(#[from] kube::core::request::Error),
    /// The answer is no list, or a line of a watch no event.
    #[error("{operation} VMIs: an answer nobody understands")]
    Json {
        /// `list` or `watch`.
        operation: &'static str,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// The stream broke.
    #[error("watch VMIs")]
    Stream(#[source] io::Error),
    /// The API server ended the watch.
    #[error("watch VMIs: {message} ({code})")]
    Status {
        /// HTTP status code.
        code: u16,
        /// For people.
        message: String,
    },
    /// The position to go on from is too old.
    #[error("watch VMIs: the position is too old")]
    Gone,
    /// Nothing came for too long.
    #[error("watch VMIs: nothing came for too long")]
    Silent,
    /// A resource version is no number.
    #[error(transparent)]
    Revision(#[from] RevisionError),
}

/// A resource version that is not a number. Kubernetes' are (KEP-5504).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the resource version {0:?} is not a number")]
pub struct RevisionError(String);

/// A resource version as the number it is.
pub(super) fn revision(text: &str) -> Result<u64, RevisionError> {
    text.parse().map_err(|_not_a_number| RevisionError(text.to_owned()))
}

/// One VMI.
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) name: String,
    /// What it says, if that can be read.
    pub(super) vmi: Result<Vmi, serde_json::Error>,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Object>,
    /// The resource version of the whole list.
    pub(super) revision: String,
    /// The next page's token, if there is one.
    pub(super) next: Option<String>,
}

/// One event of a watch.
pub(super) struct Event {
    /// The resource version it brings.
    pub(super) revision: String,
    pub(super) kind: Kind,
}

/// What happened.
pub(super) enum Kind {
    Changed(Box<Object>),
    Deleted { namespace: String, name: String },
    Bookmark,
}

#[derive(Deserialize)]
struct RawList<'a> {
    metadata: ListMetadata,
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    r#type: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// What is read even of an object that makes no sense otherwise.
#[derive(Deserialize)]
struct Identified {
    metadata: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// Reads one page.
pub(super) async fn list(client: &Client, limit: u32, next: Option<String>) -> Result<Page, ApiError> {
    let parameters = ListParams { limit: Some(limit), continue_token: next, ..ListParams::default() };
    let request = Request::new(PATH).list(&parameters)?;
    let text = client.request_text(request).await.map_err(request_error("list"))?;
    let list: RawList<'_> = serde_json::from_str(&text).map_err(json("list"))?;
    let items = list.items.into_iter().map(|raw| Ok(object(raw, identify(raw)?)));
    let items = items.collect::<Result<_, serde_json::Error>>().map_err(json("list"))?;
    let ListMetadata { resource_version: revision, r#continue: next } = list.metadata;
    Ok(Page { items, revision, next: (!next.is_empty()).then_some(next) })
}

/// Watches from a position on.
pub(super) async fn watch(
    client: &Client,
    position: &str,
) -> Result<impl Stream<Item = Result<Event, ApiError>> + use<>, ApiError> {
    let parameters = WatchParams { timeout: Some(WATCH_SECONDS), bookmarks: true, ..WatchParams::default() };
    let request = Request::new(PATH).watch(&parameters, position)?;
    let stream = client.request_stream(request).await.map_err(request_error("watch"))?;
    Ok(stream.lines().map(|line| event(&line.map_err(ApiError::Stream)?)))
}

fn event(line: &str) -> Result<Event, ApiError> {
    let RawEvent { r#type, object: raw } = serde_json::from_str(line).map_err(json("watch"))?;
    if r#type == "ERROR" {
        let Status { code, message } = serde_json::from_str(raw.get()).map_err(json("watch"))?;
        return Err(if code == 410 { ApiError::Gone } else { ApiError::Status { code, message } });
    }
    let identity = identify(raw).map_err(json("watch"))?;
    let revision = identity.resource_version.clone();
    let kind = match r#type.as_str() {
        "BOOKMARK" => Kind::Bookmark,
        "DELETED" => Kind::Deleted { namespace: identity.namespace, name: identity.name },
        _ => Kind::Changed(Box::new(object(raw, identity))),
    };
    Ok(Event { revision, kind })
}

fn identify(raw: &RawValue) -> Result<Identity, serde_json::Error> {
    serde_json::from_str::<Identified>(raw.get()).map(|identified| identified.metadata)
}

fn object(raw: &RawValue, identity: Identity) -> Object {
    let Identity { name, namespace, .. } = identity;
    Object { namespace, name, vmi: serde_json::from_str(raw.get()) }
}

fn request_error(operation: &'static str) -> impl FnOnce(kube::Error) -> ApiError {
    move |error| match error {
        kube::Error::Api(status) if status.code == 410 => ApiError::Gone,
        error => ApiError::Request { operation, source: Box::new(error) },
    }
}

fn json(operation: &'static str) -> impl FnOnce(serde_json::Error) -> ApiError {
    move |source| ApiError::Json { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_nobody_can_read_still_has_its_name() {
        let line = r#"{"type":"MODIFIED","object":{"metadata":{"name":"vm1","namespace":"ns1","resourceVersion":"7"},
            "status":{"interfaces":[{"mac":"not a MAC"}]}}}"#;
        let Event { revision, kind: Kind::Changed(object) } = event(line).unwrap() else {
            panic!("an object")
        };
        assert_eq!((revision.as_str(), object.name.as_str(), object.vmi.is_err()), ("7", "vm1", true));
    }

    #[test]
    fn a_position_that_is_too_old_is_told_apart() {
        let line =
            r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}"#;
        assert!(matches!(event(line), Err(ApiError::Gone)));
        let line = r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}"#;
        assert!(matches!(event(line), Err(ApiError::Status { code: 500, .. })));
        assert!(matches!(event("{"), Err(ApiError::Json { .. })));
    }

    #[test]
    fn bookmarks_bring_a_position_and_deletions_a_name() {
        let line = r#"{"type":"BOOKMARK","object":{"kind":"VirtualMachineInstance","metadata":{"resourceVersion":"9"}}}"#;
        assert!(matches!(event(line).unwrap(), Event { kind: Kind::Bookmark, revision } if revision == "9"));
        let line =
            r#"{"type":"DELETED","object":{"metadata":{"name":"a","namespace":"b","resourceVersion":"10"}}}"#;
        assert!(matches!(event(line).unwrap().kind, Kind::Deleted { name, .. } if name == "a"));
    }
}
