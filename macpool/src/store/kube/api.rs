//! Requests to the API server: reading, and writes that compare.
//!
//! A thin layer over `kube`'s client (TLS, credentials, in-cluster settings) that gives every failure the meaning it has for
//! the protocol: refused by comparison, absent, or unknown.

use std::sync::Arc;
use std::time::Duration;

use futures_util::io::AsyncBufRead;
use hyper::http::{self, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

/// How long an answer may take. Shorter than the lease, so that a stuck connection costs no tenure.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);

/// What became of a request.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The object is not the one that was read, or exists already. Nothing was written.
    #[error("{operation}: the object has changed")]
    Conflict {
        /// The request.
        operation: String,
    },
    /// There is no such object.
    #[error("{operation}: there is none")]
    NotFound {
        /// The request.
        operation: String,
    },
    /// The version asked for is no longer known (410).
    #[error("{operation}: the version has expired")]
    Expired {
        /// The request.
        operation: String,
    },
    /// The request could not be made. Nothing was written.
    #[error("{operation}: the request cannot be written")]
    Request {
        /// The request.
        operation: String,
        /// Why.
        source: http::Error,
    },
    /// The body could not be made. Nothing was written.
    #[error("{operation}: the body cannot be written")]
    Body {
        /// The request.
        operation: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Any other failure. A write may have happened.
    #[error("{operation} failed")]
    Failed {
        /// The request.
        operation: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// No answer in time. A write may have happened.
    #[error("{operation}: no answer for {patience:?}")]
    Timeout {
        /// The request.
        operation: String,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    client: kube::Client,
    /// Changes whenever a request has no answer in time.
    stalls: Arc<watch::Sender<u64>>,
}

impl Api {
    /// Through this client.
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, stalls: Arc::default() }
    }

    /// Changes whenever a request has no answer in time: long answers on other connections may have stopped as well, and
    /// would be waited for in vain.
    pub(super) fn stalls(&self) -> watch::Receiver<u64> {
        self.stalls.subscribe()
    }

    /// Reads an object, from etcd rather than a cache.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call("GET", path, Vec::new(), "").await
    }

    /// Creates an object, unless it exists. `collection` is the path without the name.
    pub(super) async fn post<T: Serialize, U: DeserializeOwned>(
        &self,
        collection: &str,
        object: &T,
    ) -> Result<U, ApiError> {
        self.write("POST", collection, object, "application/json").await
    }

    /// Replaces an object, if it still has the `resourceVersion` that it carries.
    pub(super) async fn put<T: Serialize, U: DeserializeOwned>(
        &self,
        path: &str,
        object: &T,
    ) -> Result<U, ApiError> {
        self.write("PUT", path, object, "application/json").await
    }

    /// Deletes an object, if it still has this version.
    pub(super) async fn delete(&self, path: &str, version: &str) -> Result<(), ApiError> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": version},
        });
        let _status: serde::de::IgnoredAny = self.write("DELETE", path, &options, "application/json").await?;
        Ok(())
    }

    /// Opens a long answer, a list or a watch, which has to begin within `patience`.
    pub(super) async fn open(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<impl AsyncBufRead + use<>, ApiError> {
        let operation = || format!("GET {path}");
        let request = Request::get(path)
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|source| ApiError::Request { operation: operation(), source })?;
        match tokio::time::timeout(patience, self.client.request_stream(request)).await {
            Ok(answer) => answer.map_err(|error| meaning(operation(), error)),
            Err(_elapsed) => Err(ApiError::Timeout { operation: operation(), patience }),
        }
    }

    async fn write<T: Serialize, U: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        object: &T,
        content: &str,
    ) -> Result<U, ApiError> {
        let body = serde_json::to_vec(object)
            .map_err(|source| ApiError::Body { operation: format!("{method} {path}"), source })?;
        self.call(method, path, body, content).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        content: &str,
    ) -> Result<T, ApiError> {
        let operation = || format!("{method} {path}");
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content);
        }
        let request =
            request.body(body).map_err(|source| ApiError::Request { operation: operation(), source })?;
        match tokio::time::timeout(TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| meaning(operation(), error)),
            Err(_elapsed) => {
                self.stalls.send_modify(|count| *count += 1);
                Err(ApiError::Timeout { operation: operation(), patience: TIMEOUT })
            }
        }
    }
}

fn meaning(operation: String, error: kube::Error) -> ApiError {
    let (code, reason) = match &error {
        kube::Error::Api(status) => (status.code, &*status.reason),
        _ => (0, ""),
    };
    match code {
        // An API server that has just started answers "404 page not found" to the path of a custom resource that it does
        // not serve yet. That says nothing about the object.
        404 if reason == "NotFound" => ApiError::NotFound { operation },
        409 => ApiError::Conflict { operation },
        410 => ApiError::Expired { operation },
        _ => ApiError::Failed { operation, source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_the_api_servers_word_on_an_object_means_that_there_is_none() {
        let meaning = |reason: &str| {
            let status = Status::failure("the message", reason).with_code(404).boxed();
            meaning("GET /x".to_owned(), kube::Error::Api(status))
        };
        assert!(matches!(meaning("NotFound"), ApiError::NotFound { .. }));
        // What kube makes of a body that is no Status.
        assert!(matches!(meaning("Failed to parse error data"), ApiError::Failed { .. }));
    }
}
