//! The range's ConfigMap in the cluster: read at the start, made if there is none, followed ever after.
//!
//! A bad one is reported as a Warning event on it, and the range in use stays; at the start there is none, and macpool ends.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::KubeStore;
use super::api::{Api, ApiError};
use super::events::{Events, Regarding};
use super::objects::Meta;
use super::reflect::{self, Sink};
use crate::range::Ranges;
use crate::range_config::{self, ConfigError, NAME};

/// A ConfigMap, as far as we write it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigMap {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: Meta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// Why there is no range to begin with.
#[derive(Debug, thiserror::Error)]
pub enum InitialError {
    /// It could not be read or made.
    #[error("read the range from ConfigMap {NAME}")]
    Api(#[source] Box<ApiError>),
    /// It says nonsense, and there is no older range to keep.
    #[error("ConfigMap {NAME}")]
    Config(#[from] ConfigError),
}

/// Reads the range; picks one at random and writes it if nobody has yet.
pub async fn initial(client: &kube::Client, namespace: &str) -> Result<Ranges, InitialError> {
    let api = Api::new(client.clone());
    loop {
        match attempt(&api, namespace).await {
            Ok(map) => {
                match range_config::parse(&map.data) {
                    Ok(Some(ranges)) => return Ok(ranges),
                    // Somebody has just emptied it.
                    Ok(None) => {}
                    Err(error) => {
                        let told = tell(
                            &Events::new(api),
                            map.metadata,
                            format!("{error}; no range is left to keep"),
                        );
                        // A task that panicked, which does not happen, would have told nothing.
                        let _told = told.await;
                        return Err(error.into());
                    }
                }
            }
            // Another replica was faster: its choice counts.
            Err(ApiError::Conflict { .. }) => {}
            Err(error @ (ApiError::Timeout { .. } | ApiError::Failed { .. })) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the range yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(InitialError::Api(Box::new(error))),
        }
    }
}

/// The Warning about a ConfigMap that cannot be used.
fn tell(events: &Events, map: Meta, message: String) -> JoinHandle<()> {
    let Meta { name, namespace, resource_version, .. } = map;
    let regarding = Regarding { api_version: "v1", kind: "ConfigMap", namespace, name, uid: String::new() };
    events.warn(&regarding, "InvalidRange", &format!("range-{resource_version}"), message)
}

async fn attempt(api: &Api, namespace: &str) -> Result<ConfigMap, ApiError> {
    let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
    let path = format!("{collection}/{NAME}");
    let mut map = match api.get::<ConfigMap>(&path).await {
        Ok(map) => map,
        Err(ApiError::NotFound { .. }) => {
            let metadata = Meta { name: NAME.to_owned(), namespace: namespace.to_owned(), ..Meta::default() };
            let (api_version, kind) = ("v1".to_owned(), "ConfigMap".to_owned());
            let map = ConfigMap { api_version, kind, metadata, data: range_config::random() };
            return api.post(&collection, &map).await;
        }
        Err(error) => return Err(error),
    };
    match range_config::parse(&map.data) {
        Ok(None) => {
            map.data.extend(range_config::random());
            api.put(&path, &map).await
        }
        Ok(Some(_)) | Err(_) => Ok(map),
    }
}

/// What the ConfigMap says.
pub(super) async fn data(api: &Api, namespace: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let map: ConfigMap = api.get(&format!("/api/v1/namespaces/{namespace}/configmaps/{NAME}")).await?;
    Ok(map.data)
}

/// Follows the ConfigMap for the life of the process.
pub fn follow(client: kube::Client, namespace: String, store: KubeStore) {
    let api = Api::new(client);
    let path = format!("/api/v1/namespaces/{namespace}/configmaps?fieldSelector=metadata.name%3D{NAME}");
    let sink = ConfigSink { events: Events::new(api.clone()), store };
    tokio::spawn(reflect::follow(api, path, sink));
}

struct ConfigSink {
    events: Events,
    store: KubeStore,
}

impl Sink for ConfigSink {
    fn listing(&mut self) {}

    fn put(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        let map: ConfigMap = serde_json::from_slice(json)?;
        let read =
            range_config::parse(&map.data).and_then(|ranges| Ok((ranges, range_config::domains(&map.data)?)));
        match read {
            Ok((ranges, domains)) => {
                self.store.set_domains(domains);
                match ranges {
                    Some(ranges) => self.store.set_ranges(ranges),
                    None => tracing::warn!("ConfigMap {NAME} names no range any more; the old one stays"),
                }
            }
            Err(error) => {
                let _told_meanwhile =
                    tell(&self.events, map.metadata, format!("{error}; what was valid before stays"));
            }
        }
        Ok(())
    }

    fn gone(&mut self, _json: &[u8]) -> Result<(), serde_json::Error> {
        tracing::warn!("ConfigMap {NAME} is gone; the range stays");
        Ok(())
    }

    fn listed(&mut self) {}
}
