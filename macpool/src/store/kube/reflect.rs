//! Following a collection: list, then watch, for ever.
//!
//! One task per collection feeds a [`Sink`]. The list comes from the API server's cache (`resourceVersion=0`), which spares etcd;
//! nothing that decides about giving or freeing may rest on it. A watch that ends is resumed where it stopped; a version
//! that is too old means a new list.

use std::time::Duration;

use futures_util::io::{AsyncBufRead, AsyncBufReadExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::api::{Api, ApiError, TIMEOUT};
use super::items::{Items, ListError, ListMeta};
use super::objects::Named;

/// The API server sends a bookmark every minute; a watch that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// The API server ends a watch after this.
const WATCH_SECONDS: u32 = 290;
// It outlasts a bookmark that is late, and ends before the API server would end the watch.
const _: () = assert!(SILENCE.as_secs() > 2 * 60 && SILENCE.as_secs() < WATCH_SECONDS as u64);
/// A big list takes the API server a while to begin.
const LIST_BEGINS: Duration = TIMEOUT.saturating_mul(20);
/// The longest line of a watch.
const MAX_LINE: usize = 16 << 20;

/// Takes what a collection consists of.
pub(super) trait Sink: Send + 'static {
    /// A list begins: what it does not show, by [`Self::listed`], is gone.
    fn listing(&mut self);
    /// An object exists, as this JSON says.
    fn put(&mut self, json: &[u8]) -> Result<(), serde_json::Error>;
    /// An object is gone; this was its last state.
    fn gone(&mut self, json: &[u8]) -> Result<(), serde_json::Error>;
    /// The list is complete.
    fn listed(&mut self);
}

/// Why a collection cannot be followed for the moment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReflectError {
    /// A request failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The list is no list.
    #[error(transparent)]
    List(#[from] ListError),
    /// The connection broke.
    #[error("the connection broke")]
    Read(#[source] std::io::Error),
    /// An event cannot be read.
    #[error("an event cannot be read")]
    Event(#[source] serde_json::Error),
    /// A line that no object can explain.
    #[error("an event is larger than {MAX_LINE} bytes")]
    TooLarge,
    /// The API server reports an error in the watch.
    #[error("the watch reports: {0}")]
    Reported(String),
    /// The API server does not answer on another connection, and perhaps not on this one.
    #[error("another request had no answer in time")]
    Stalled,
    /// Nothing came, not even a bookmark.
    #[error("nothing came for {SILENCE:?}")]
    Silent,
}

/// A path with one more parameter.
fn with(path: &str, parameters: &str) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}{parameters}")
}

/// Follows the collection at `path`, which may have a selector, until dropped.
pub(super) async fn follow(api: Api, path: String, mut sink: impl Sink) {
    let path = path.as_str();
    let mut pause = Duration::from_millis(100);
    loop {
        match list(&api, &with(path, "resourceVersion=0"), &mut sink).await {
            Ok(version) => {
                pause = Duration::from_millis(100);
                let error = watch_on(&api, path, version, &mut sink).await;
                tracing::info!(path, error = &error as &dyn std::error::Error, "listing again");
            }
            Err(error) => {
                tracing::warn!(path, error = &error as &dyn std::error::Error, "cannot list");
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn list(api: &Api, path: &str, sink: &mut impl Sink) -> Result<String, ReflectError> {
    sink.listing();
    let meta = read_list(api, path, |json| sink.put(json)).await?;
    sink.listed();
    Ok(meta.resource_version)
}

/// Reads one list, or page of a list, item by item.
pub(super) async fn read_list(
    api: &Api,
    path: &str,
    mut each: impl FnMut(&[u8]) -> Result<(), serde_json::Error>,
) -> Result<ListMeta, ReflectError> {
    let mut body = std::pin::pin!(api.open(path, LIST_BEGINS).await?);
    let mut items = Items::default();
    loop {
        let bytes = tokio::time::timeout(SILENCE, body.fill_buf())
            .await
            .map_err(|_elapsed| ReflectError::Silent)?
            .map_err(ReflectError::Read)?;
        if bytes.is_empty() {
            return Ok(items.finish()?);
        }
        let length = bytes.len();
        items.feed(bytes, |json| each(json).map_err(|error| ReflectError::List(error.into())))?;
        body.as_mut().consume(length);
    }
}

/// Watches from a version, over any number of connections, until only a new list helps.
async fn watch_on(api: &Api, path: &str, mut version: String, sink: &mut impl Sink) -> ReflectError {
    // A watch begins at once, but not by a connection that has died unnoticed, of which the client may have several at hand:
    // giving up one attempt throws one away.
    let mut patience = TIMEOUT;
    loop {
        let parameters = format!(
            "watch=1&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}"
        );
        let url = with(path, &parameters);
        let opened = match api.open(&url, patience).await {
            Ok(body) => {
                patience = TIMEOUT;
                watch(body, SILENCE, api.stalls(), &mut version, sink).await
            }
            Err(error) => {
                patience = (patience * 2).min(LIST_BEGINS);
                Err(error.into())
            }
        };
        match opened {
            Ok(()) => {}
            Err(
                ReflectError::Api(ApiError::Failed { .. } | ApiError::Timeout { .. })
                | ReflectError::Read(_)
                | ReflectError::Stalled,
            ) => {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            Err(error) => return error,
        }
    }
}

/// See [`Api::stalls`].
type Stalls = tokio::sync::watch::Receiver<u64>;

#[derive(Deserialize)]
struct Event<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

async fn watch(
    body: impl AsyncBufRead,
    silence: Duration,
    mut stalls: Stalls,
    version: &mut String,
    sink: &mut impl Sink,
) -> Result<(), ReflectError> {
    let mut body = std::pin::pin!(body);
    let mut line = Vec::new();
    while read_line(body.as_mut(), silence, &mut stalls, &mut line).await? {
        let event: Event<'_> = serde_json::from_slice(&line).map_err(ReflectError::Event)?;
        let json = event.object.get().as_bytes();
        match event.r#type {
            "ADDED" | "MODIFIED" => sink.put(json).map_err(ReflectError::Event)?,
            "DELETED" => sink.gone(json).map_err(ReflectError::Event)?,
            "BOOKMARK" => {}
            other => return Err(ReflectError::Reported(format!("{other}: {}", event.object.get()))),
        }
        let named: Named<'_> = serde_json::from_slice(json).map_err(ReflectError::Event)?;
        version.clear();
        version.push_str(&named.metadata.resource_version);
        line.clear();
    }
    Ok(())
}

/// Reads up to a line's end; false at the end of the stream.
async fn read_line(
    mut body: std::pin::Pin<&mut impl AsyncBufRead>,
    silence: Duration,
    stalls: &mut Stalls,
    line: &mut Vec<u8>,
) -> Result<bool, ReflectError> {
    loop {
        let bytes = tokio::select! {
            biased;
            read = tokio::time::timeout(silence, body.fill_buf()) => {
                read.map_err(|_elapsed| ReflectError::Silent)?.map_err(ReflectError::Read)?
            }
            Ok(()) = stalls.changed() => return Err(ReflectError::Stalled),
        };
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        line.extend_from_slice(&bytes[..taken]);
        body.as_mut().consume(taken);
        if line.len() > MAX_LINE {
            return Err(ReflectError::TooLarge);
        }
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::io::BufReader;

    use super::*;

    /// Notes what it is told.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl Sink for Told {
        fn listing(&mut self) {}

        fn put(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
            self.0.push(format!("put {}", serde_json::from_slice::<Named<'_>>(json)?.metadata.key()));
            Ok(())
        }

        fn gone(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
            self.0.push(format!("gone {}", serde_json::from_slice::<Named<'_>>(json)?.metadata.key()));
            Ok(())
        }

        fn listed(&mut self) {}
    }

    fn event(kind: &str, version: &str) -> String {
        let metadata = serde_json::json!({"name": "vm", "namespace": "ns", "resourceVersion": version});
        format!("{}\n", serde_json::json!({"type": kind, "object": {"metadata": metadata}}))
    }

    /// What a watch makes of these lines when nothing comes after them, or the stream ends.
    fn watched(lines: &[String], ends: bool) -> (Result<(), ReflectError>, String, Vec<String>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (mut version, mut told) = ("1".to_owned(), Told::default());
        let (_stalls, receiver) = tokio::sync::watch::channel(0);
        let text = futures_util::io::Cursor::new(lines.concat());
        let outcome = runtime.block_on(async {
            let rest = Duration::from_millis(1);
            match ends {
                true => watch(text, rest, receiver, &mut version, &mut told).await,
                false => {
                    let body = futures_util::AsyncReadExt::chain(text, Mute);
                    watch(BufReader::new(body), rest, receiver, &mut version, &mut told).await
                }
            }
        });
        (outcome, version, told.0)
    }

    /// Nothing ever comes.
    struct Mute;

    impl futures_util::io::AsyncRead for Mute {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut [u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::task::Poll::Pending
        }
    }

    #[test]
    fn a_watch_that_falls_silent_is_given_up() {
        let (outcome, version, told) = watched(&[event("ADDED", "5"), event("BOOKMARK", "9")], false);
        assert!(matches!(outcome, Err(ReflectError::Silent)), "{outcome:?}");
        assert_eq!((version.as_str(), told), ("9", vec!["put ns/vm".to_owned()]), "to go on where it was");
    }

    #[test]
    fn a_watch_that_ends_goes_on_where_it_was() {
        let (outcome, version, told) = watched(&[event("MODIFIED", "5"), event("DELETED", "6")], true);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!((version.as_str(), told.join(", ").as_str()), ("6", "put ns/vm, gone ns/vm"));
        let (outcome, version, _) = watched(&[event("ADDED", "5"), event("ERROR", "")], true);
        assert!(matches!(outcome, Err(ReflectError::Reported(_))), "{outcome:?}");
        assert_eq!(version, "5");
    }
}
