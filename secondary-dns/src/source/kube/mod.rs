//! `--source kube`: the VMIs of a cluster, listed once and then watched.
//!
//! One task. A list is read page by page into the next snapshot and published whole; after that every event is
//! published as it comes. A watch that ends is resumed where it stopped; only when the API server no longer knows
//! that point ("410 Gone") everything is listed again. While the API server is away the last good zone is served.
//!
//! The SOA serial is the resource version, which counts every change in the cluster: replicas that have seen the
//! same have the same serial, one that has seen more has a greater one, and a restart does not set it back.

mod api;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::Client;
use tokio::time::{sleep, timeout};

pub use api::ApiError;
use api::{Event, Kind, Object, RevisionError};

use super::State;
use crate::name::Name;
use crate::zone::{Policy, VmRecords, ZoneWriter, serial, vm_name};

/// Objects per page of a list: a few megabytes at most.
const PAGE: u32 = 1000;
/// Events that are applied together when they have come together.
const BATCH: usize = 512;
/// Silence after which a watch counts as dead. Bookmarks come about once a minute.
const SILENCE: Duration = Duration::from_secs(150);
/// Pause after the first failure; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Follows a cluster until it is dropped.
pub struct KubeSource {
    client: Client,
    policy: Policy,
    writer: ZoneWriter,
    state: Arc<State>,
    /// Where to go on watching; `None`: list first.
    position: Option<String>,
    published: bool,
}

impl KubeSource {
    /// A source that has read nothing yet.
    pub fn new(client: Client, policy: Policy, writer: ZoneWriter, state: Arc<State>) -> Self {
        Self { client, policy, writer, state, position: None, published: false }
    }

    /// Follows for ever; [`State`] tells how it goes.
    pub async fn run(mut self) {
        let mut pause = MIN_PAUSE;
        loop {
            match self.follow().await {
                Ok(()) => pause = MIN_PAUSE,
                Err(ApiError::Gone) => {
                    tracing::info!("the watch's position is too old: listing again");
                    self.position = None;
                }
                Err(error) => {
                    // It had worked until now: this is the first failure in a row.
                    if self.state.staleness().is_zero() {
                        pause = MIN_PAUSE;
                    }
                    self.state.disconnected();
                    tracing::warn!(error = %telemetry::chain(&error), retry_in = ?pause, "API server");
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// Lists everything once and returns: for `dump`.
    pub async fn read_once(&mut self) -> Result<(), ApiError> {
        self.list().await.map(drop)
    }

    /// Lists if need be, then watches until the watch ends.
    async fn follow(&mut self) -> Result<(), ApiError> {
        let position = match self.position.take() {
            Some(position) => position,
            None => self.list().await?,
        };
        self.watch(position).await
    }

    async fn list(&mut self) -> Result<String, ApiError> {
        let mut present = HashSet::new();
        let mut next = None;
        loop {
            let page = api::list(&self.client, PAGE, next.take()).await?;
            for object in &page.items {
                present.extend(self.apply(object));
            }
            match page.next {
                Some(token) => next = Some(token),
                None => {
                    self.writer.retain(&present);
                    self.publish(&page.revision)?;
                    self.state.connected();
                    tracing::info!(vms = present.len(), serial = self.writer.serial(), "listed");
                    self.state.synced();
                    return Ok(page.revision);
                }
            }
        }
    }

    async fn watch(&mut self, mut position: String) -> Result<(), ApiError> {
        // If anything fails from here on, the watch is resumed.
        self.position = Some(position.clone());
        let events = api::watch(&self.client, &position).await?;
        self.state.connected();
        let mut batches = std::pin::pin!(events.ready_chunks(BATCH));
        while let Ok(batch) = timeout(SILENCE, batches.next()).await {
            let Some(batch) = batch else { return Ok(()) };
            for event in batch {
                let event = event?;
                self.apply_event(&event);
                position = event.revision;
            }
            self.position = Some(position.clone());
            if self.writer.has_changes() {
                self.publish(&position)?;
            }
        }
        Err(ApiError::Silent)
    }

    fn apply_event(&mut self, event: &Event) {
        match &event.kind {
            Kind::Bookmark => {}
            Kind::Changed(object) => {
                self.apply(object);
            }
            Kind::Deleted { namespace, name } => {
                if let Ok(name) = vm_name(namespace, name) {
                    self.writer.set(&name, None);
                }
            }
        }
    }

    /// Applies an object; returns the name it has in the zone, if it can have one.
    fn apply(&mut self, object: &Object) -> Option<Name> {
        let Object { namespace, name, vmi } = object;
        let zone_name = match vm_name(namespace, name) {
            Ok(zone_name) => zone_name,
            Err(error) => {
                tracing::debug!(namespace, name, %error, "no name for this VM");
                return None;
            }
        };
        match vmi {
            Ok(vmi) => {
                let records = VmRecords::of(vmi, &self.policy).unwrap_or_else(|error| {
                    tracing::warn!(namespace, name, %error, "no name for this VM");
                    None
                });
                self.writer.set(&zone_name, records);
            }
            Err(error) => {
                tracing::warn!(namespace, name, %error, "an object nobody can read: kept as it was");
            }
        }
        Some(zone_name)
    }

    fn publish(&mut self, revision: &str) -> Result<(), RevisionError> {
        let revision = serial::of_revision(api::revision(revision)?);
        // The first one counts as it is: what was there before was never served.
        let last = self.writer.serial();
        let newer = !self.published || serial::is_newer(revision, last);
        if newer || self.writer.has_changes() {
            self.writer.publish(if newer { revision } else { last.wrapping_add(1) });
            self.published = true;
        }
        Ok(())
    }
}
