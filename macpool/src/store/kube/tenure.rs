//! The right to give from blocks: this process' identity, and the lease that keeps it (rules 1 and 4 of
//! [`crate::protocol`]).
//!
//! [`Tenure::keep`] runs for the life of the process and renews the lease; everybody else asks [`Tenure::current`]
//! under the pool's lock before giving. [`Tenure::depose_the_silent`] is the other side: it ends the
//! tenure of replicas that went silent.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::api::{Api, ApiError};
use super::objects::{LEASE_LABEL, Lease, LeaseSpec, Meta, leases};
use crate::record::Identity;
use crate::store::lock;

/// The times of the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// T: how long after sending a renewal we may give.
    pub validity: Duration,
    /// Between renewals.
    pub renew: Duration,
    /// How long a lease must be seen unchanged before its holder is deposed: T and a margin for clock rates.
    pub silence: Duration,
}

impl Default for Terms {
    /// Silence, and the time to notice it, stay below a webhook's default timeout of 10 s: a claim on a dead replica's
    /// block succeeds in time.
    fn default() -> Self {
        Self {
            validity: Duration::from_millis(3500),
            renew: Duration::from_secs(1),
            silence: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone)]
struct Session {
    identity: Identity,
    valid_until: Instant,
}

/// Who we are, and until when.
pub(super) struct Tenure {
    api: Api,
    namespace: String,
    pod: String,
    terms: Terms,
    session: Mutex<Session>,
}

impl Tenure {
    /// Not in office yet. `pod` begins every identity of this process.
    pub(super) fn new(api: Api, namespace: String, pod: String, terms: Terms) -> Self {
        let session = Session { identity: fresh_identity(&pod), valid_until: Instant::now() };
        Self { api, namespace, pod, terms, session: Mutex::new(session) }
    }

    /// Our identity, if we may give from its blocks now.
    pub(super) fn current(&self) -> Option<Identity> {
        let session = lock(&self.session);
        (Instant::now() < session.valid_until).then(|| session.identity.clone())
    }

    /// May `identity`, once ours, still give?
    pub(super) fn is_current(&self, identity: &Identity) -> bool {
        let session = lock(&self.session);
        session.identity == *identity && Instant::now() < session.valid_until
    }

    /// Our identity, whether it may give or not.
    pub(super) fn identity(&self) -> Identity {
        lock(&self.session).identity.clone()
    }

    /// Renews for ever. When the lease is gone, `deposed` is called before a new identity begins.
    pub(super) async fn keep(&self, mut deposed: impl FnMut()) {
        loop {
            let identity = self.identity();
            if let Err(error) = self.serve(&identity).await {
                tracing::warn!(%identity, error = &error as &dyn std::error::Error, "the lease is lost; beginning anew");
            }
            // Expired before forgotten: nobody gives in between.
            lock(&self.session).valid_until = Instant::now();
            deposed();
            lock(&self.session).identity = fresh_identity(&self.pod);
        }
    }

    /// Creates the lease of one identity and renews it until it is gone.
    async fn serve(&self, identity: &Identity) -> Result<(), ApiError> {
        let collection = leases(&self.namespace);
        let path = format!("{collection}/{identity}");
        let mut stored = Meta::default();
        loop {
            let sent = Instant::now();
            let lease = self.lease(identity, &stored);
            let answer: Result<Lease, ApiError> = match stored.uid.is_empty() {
                true => self.api.post(&collection, &lease).await,
                false => self.api.put(&path, &lease).await,
            };
            match answer {
                Ok(lease) => {
                    stored = lease.metadata;
                    lock(&self.session).valid_until = sent + self.terms.validity;
                    tokio::time::sleep(self.terms.renew).await;
                }
                Err(ApiError::NotFound { operation }) => return Err(ApiError::NotFound { operation }),
                // Nobody else writes it: an answer of ours got lost.
                Err(ApiError::Conflict { .. }) => match self.api.get::<Lease>(&path).await {
                    Ok(lease) => stored = lease.metadata,
                    Err(error @ ApiError::NotFound { .. }) => return Err(error),
                    Err(error) => self.pause(&error).await,
                },
                // A creation that may have happened is found out by the next one, as a conflict.
                Err(error) => self.pause(&error).await,
            }
        }
    }

    async fn pause(&self, error: &ApiError) {
        tracing::debug!(error = error as &dyn std::error::Error, "cannot renew");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    /// Leaves office in order: call when every block has gone back.
    pub(super) async fn resign(&self) -> Result<(), ApiError> {
        lock(&self.session).valid_until = Instant::now();
        let path = format!("{}/{}", leases(&self.namespace), self.identity());
        let lease: Lease = self.api.get(&path).await?;
        self.api.delete(&path, &lease.metadata.resource_version).await
    }

    /// The lease to write after the `stored` one. It names that one's uid: a PUT of a lease that is gone would make a new
    /// one otherwise (AllowCreateOnUpdate in kube-apiserver's strategy for leases), and undo that we were deposed.
    fn lease(&self, identity: &Identity, stored: &Meta) -> Lease {
        let (label, value) = LEASE_LABEL;
        let meta = Meta {
            name: identity.to_string(),
            namespace: self.namespace.clone(),
            resource_version: stored.resource_version.clone(),
            uid: stored.uid.clone(),
            labels: [(label.to_owned(), value.to_owned())].into(),
        };
        let now = OffsetDateTime::now_utc();
        // MicroTime wants exactly six digits behind the point.
        let now = now.replace_nanosecond(now.microsecond() * 1000 + 1).unwrap_or(now);
        let stamp = now.format(&Rfc3339).unwrap_or_default();
        let renew_time = stamp.get(..26).map(|head| format!("{head}Z")).unwrap_or_default();
        let seconds = u32::try_from(self.terms.silence.as_secs().max(1)).unwrap_or(u32::MAX);
        let spec =
            LeaseSpec { holder_identity: identity.to_string(), lease_duration_seconds: seconds, renew_time };
        Lease::new(meta, spec)
    }

    /// Looks at all leases and deposes replicas whose lease stays as it is; who still has one, by etcd's word.
    pub(super) async fn depose_the_silent(&self, seen: &mut Seen) -> Result<HashSet<Identity>, ApiError> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Lease>,
        }
        let (label, value) = LEASE_LABEL;
        let collection = leases(&self.namespace);
        // Without a resourceVersion, so that etcd answers; a cache could show a living lease as silent.
        let list: List = self
            .api
            .get(&format!("{collection}?labelSelector={}%3D{value}", label.replace('/', "%2F")))
            .await?;
        let me = self.identity();
        let now = Instant::now();
        let (mut next, mut living) = (HashMap::new(), HashSet::new());
        for Lease { metadata: Meta { name, resource_version, .. }, .. } in list.items {
            let since = match seen.0.get(&name) {
                Some((version, since)) if *version == resource_version => *since,
                _ => now,
            };
            if *name != *me.0 && now - since >= self.terms.silence {
                tracing::warn!(replica = name, "a replica went silent; its blocks are taken from it");
                match self.api.delete(&format!("{collection}/{name}"), &resource_version).await {
                    Ok(()) | Err(ApiError::NotFound { .. }) => continue,
                    // It has spoken.
                    Err(ApiError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            living.insert(Identity(name.as_str().into()));
            next.insert(name, (resource_version, since));
        }
        seen.0 = next;
        Ok(living)
    }
}

/// Leases as they were seen last, and since when they have been so.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<String, (String, Instant)>);

/// A name that was never used before and never will be.
fn fresh_identity(pod: &str) -> Identity {
    let random = crate::random();
    Identity(format!("{pod}-{random:016x}").into())
}
