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
use tokio::time::Instant;

use super::api::{Api, ApiError};
use super::objects::{LEASE_LABEL, Lease, Meta, leases};
use super::renewal::{Ask, Renewal, Said};
use crate::record::Identity;
use crate::store::lock;

/// Between a renewal that failed and the next try.
const RETRY: Duration = Duration::from_millis(200);

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

    /// Our identity, whether it may give or not.
    pub(super) fn identity(&self) -> Identity {
        lock(&self.session).identity.clone()
    }

    /// Renews for ever. When the lease is gone, `deposed` is called with what begins a new identity, that may not give yet.
    pub(super) async fn keep(&self, deposed: impl Fn(&dyn Fn())) {
        loop {
            let identity = self.identity();
            let error = self.serve(&identity).await;
            tracing::warn!(%identity, error = &error as &dyn std::error::Error, "the lease is lost; beginning anew");
            deposed(&|| {
                *lock(&self.session) =
                    Session { identity: fresh_identity(&self.pod), valid_until: Instant::now() };
            });
        }
    }

    /// Creates the lease of one identity and renews it until it is gone; what told so.
    async fn serve(&self, identity: &Identity) -> ApiError {
        let collection = leases(&self.namespace);
        let path = format!("{collection}/{identity}");
        let seconds = u32::try_from(self.terms.silence.as_secs().max(1)).unwrap_or(u32::MAX);
        let mut renewal = Renewal::new(identity, &self.namespace, seconds, Instant::now());
        loop {
            let answer: Result<Lease, ApiError> = match renewal.ask(Instant::now()) {
                Ask::Create(lease) => self.api.post(&collection, &lease).await,
                Ask::Renew(lease) => self.api.put(&path, &lease).await,
                Ask::Read => self.api.get(&path).await,
            };
            match renewal.answered(answer) {
                Said::Renewed(since) => {
                    lock(&self.session).valid_until = since + self.terms.validity;
                    tokio::time::sleep(self.terms.renew).await;
                }
                Said::Continue => {}
                Said::Failed(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot renew");
                    tokio::time::sleep(RETRY).await;
                }
                Said::Gone(error) => return error,
            }
        }
    }

    /// Leaves office in order: call when every block has gone back.
    pub(super) async fn resign(&self) -> Result<(), ApiError> {
        lock(&self.session).valid_until = Instant::now();
        let path = format!("{}/{}", leases(&self.namespace), self.identity());
        let lease: Lease = self.api.get(&path).await?;
        self.api.delete(&path, &lease.metadata.resource_version).await
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
        let named = |Meta { name, resource_version, .. }: Meta| (Identity(name.into()), resource_version);
        let leases: HashMap<_, _> = list.items.into_iter().map(|lease| named(lease.metadata)).collect();
        let mut living: HashSet<_> = leases.keys().cloned().collect();
        for (replica, version) in seen.silent(leases, &self.identity(), self.terms.silence, Instant::now()) {
            tracing::warn!(%replica, "a replica went silent; its blocks are taken from it");
            match self.api.delete(&format!("{collection}/{replica}"), &version).await {
                Ok(()) | Err(ApiError::NotFound { .. }) => drop(living.remove(&replica)),
                // It has spoken.
                Err(ApiError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(living)
    }
}

/// Leases at the versions that were seen last, and since when they have been so.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<Identity, (String, Instant)>);

impl Seen {
    /// Takes what the leases are like now. Of those that have been so for `silence` all but our own, which we can renew.
    fn silent(
        &mut self,
        leases: HashMap<Identity, String>,
        me: &Identity,
        silence: Duration,
        now: Instant,
    ) -> Vec<(Identity, String)> {
        let since = |identity: &Identity, version: &String| {
            let known = self.0.get(identity).filter(|(known, _)| known == version);
            known.map_or(now, |(_, since)| *since)
        };
        let leases = leases.into_iter().map(|(identity, version)| {
            let since = since(&identity, &version);
            (identity, (version, since))
        });
        self.0 = leases.collect();
        let silent =
            self.0.iter().filter(|(identity, (_, since))| *identity != me && now - *since >= silence);
        silent.map(|(identity, (version, _))| (identity.clone(), version.clone())).collect()
    }
}

/// A name that was never used before and never will be.
fn fresh_identity(pod: &str) -> Identity {
    let random = crate::random();
    Identity(format!("{pod}-{random:016x}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(5);

    fn look(seen: &mut Seen, leases: &[(&str, &str)], now: Instant) -> Vec<String> {
        let leases = leases.iter().map(|(name, version)| (Identity((*name).into()), (*version).to_owned()));
        let silent = seen.silent(leases.collect(), &Identity("me".into()), SILENCE, now);
        silent.into_iter().map(|(identity, version)| format!("{identity} at {version}")).collect()
    }

    #[test]
    fn a_replica_is_silent_when_its_lease_has_been_one_version_for_the_whole_time() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let nothing: [&str; 0] = [];
        assert_eq!(look(&mut seen, &[("a", "1"), ("b", "1"), ("me", "1")], start), nothing);
        let later = start + SILENCE - Duration::from_nanos(1);
        assert_eq!(look(&mut seen, &[("a", "1"), ("b", "2"), ("me", "1")], later), nothing);
        let leases = [("a", "1"), ("b", "2"), ("me", "1"), ("new", "1")];
        // Our own is as old: whoever can tell can renew.
        assert_eq!(look(&mut seen, &leases, start + SILENCE), ["a at 1"]);
        assert_eq!(look(&mut seen, &leases[1..], later + SILENCE), ["b at 2"]);
    }

    #[test]
    fn a_lease_that_was_gone_in_between_is_another() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        look(&mut seen, &[("a", "1")], start);
        look(&mut seen, &[], start + SILENCE / 2);
        assert!(look(&mut seen, &[("a", "1")], start + SILENCE).is_empty());
    }
}
