//! One identity's lease as its holder sees it: what to ask of the API server next, and what an answer says. No I/O, no clock.
//!
//! [`super::tenure`] asks and sleeps.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::api::ApiError;
use super::objects::{LEASE_LABEL, Lease, LeaseSpec, Meta};
use crate::record::Identity;

/// What to ask next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Make the lease.
    Create(Lease),
    /// Write it again.
    Renew(Lease),
    /// Read it.
    Read,
}

/// What an answer says.
#[derive(Debug)]
pub(super) enum Said {
    /// We are in office, as of this moment.
    Renewed(Instant),
    /// Ask again at once.
    Continue,
    /// Ask again soon.
    Failed(ApiError),
    /// The lease is gone, and with it the identity.
    Gone(ApiError),
}

/// The life of one lease.
#[derive(Debug)]
pub(super) struct Renewal {
    /// As it was answered last; without a version before it was.
    stored: Meta,
    seconds: u32,
    /// What is stored has to be read before it can be written.
    unread: bool,
    /// When the last request began.
    asked: Instant,
}

impl Renewal {
    /// There is none yet. `seconds` are how long it is said to last, to people.
    pub(super) fn new(identity: &Identity, namespace: &str, seconds: u32, now: Instant) -> Self {
        let (label, value) = LEASE_LABEL;
        let stored = Meta {
            name: identity.to_string(),
            namespace: namespace.to_owned(),
            labels: [(label.to_owned(), value.to_owned())].into(),
            ..Meta::default()
        };
        Self { stored, seconds, unread: false, asked: now }
    }

    /// What to ask now.
    pub(super) fn ask(&mut self, now: Instant) -> Ask {
        self.asked = now;
        match (self.unread, self.is_made()) {
            (true, _) => Ask::Read,
            (false, false) => Ask::Create(self.lease()),
            (false, true) => Ask::Renew(self.lease()),
        }
    }

    fn is_made(&self) -> bool {
        !self.stored.resource_version.is_empty()
    }

    /// What came of it.
    pub(super) fn answered(&mut self, answer: Result<Lease, ApiError>) -> Said {
        match answer {
            Ok(lease) => {
                (self.stored.resource_version, self.stored.uid) =
                    (lease.metadata.resource_version, lease.metadata.uid);
                match std::mem::take(&mut self.unread) {
                    true => Said::Continue,
                    false => Said::Renewed(self.asked),
                }
            }
            // Of one that is still to be made it is the namespace that is missing.
            Err(error @ ApiError::NotFound { .. }) if self.unread || self.is_made() => Said::Gone(error),
            // Nobody else writes it: an answer of ours got lost.
            Err(ApiError::Conflict { .. }) => {
                self.unread = true;
                Said::Continue
            }
            // A write that may have happened is found out by the next one, as a conflict.
            Err(error) => Said::Failed(error),
        }
    }

    /// The lease to write after the stored one. It names that one's uid: a PUT of a lease that is gone would make a new one
    /// otherwise (AllowCreateOnUpdate in kube-apiserver's strategy for leases), and undo that we were deposed.
    fn lease(&self) -> Lease {
        let now = OffsetDateTime::now_utc();
        // MicroTime wants exactly six digits behind the point.
        let now = now.replace_nanosecond(now.microsecond() * 1000 + 1).unwrap_or(now);
        let stamp = now.format(&Rfc3339).unwrap_or_default();
        let renew_time = stamp.get(..26).map(|head| format!("{head}Z")).unwrap_or_default();
        let holder_identity = self.stored.name.clone();
        let spec = LeaseSpec { holder_identity, lease_duration_seconds: self.seconds, renew_time };
        Lease::new(self.stored.clone(), spec)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn conflict() -> ApiError {
        ApiError::Conflict { operation: "PUT".to_owned() }
    }

    fn not_found() -> ApiError {
        ApiError::NotFound { operation: "PUT".to_owned() }
    }

    fn unheard() -> ApiError {
        ApiError::Timeout { operation: "PUT".to_owned(), patience: Duration::ZERO }
    }

    /// The API server's answer to a write, or what it has stored.
    fn stored(lease: Lease, version: &str) -> Lease {
        let Lease { metadata, spec, .. } = lease;
        Lease::new(Meta { resource_version: version.to_owned(), uid: "u-1".to_owned(), ..metadata }, spec)
    }

    struct Clock(Instant);

    impl Clock {
        fn later(&mut self) -> Instant {
            self.0 += Duration::from_millis(700);
            self.0
        }
    }

    fn begin() -> (Renewal, Clock) {
        let now = Instant::now();
        (Renewal::new(&Identity("me".into()), "macpool", 5, now), Clock(now))
    }

    #[track_caller]
    fn create(renewal: &mut Renewal, now: Instant) -> Lease {
        let Ask::Create(lease) = renewal.ask(now) else { panic!("not created") };
        assert_eq!((&*lease.metadata.uid, &*lease.metadata.resource_version), ("", ""));
        lease
    }

    #[track_caller]
    fn renew(renewal: &mut Renewal, now: Instant) -> Lease {
        let Ask::Renew(lease) = renewal.ask(now) else { panic!("not renewed") };
        lease
    }

    #[test]
    fn office_is_counted_from_when_it_was_asked_for() {
        let (mut renewal, mut clock) = begin();
        let asked = clock.later();
        let lease = create(&mut renewal, asked);
        clock.later();
        assert!(matches!(renewal.answered(Ok(stored(lease, "1"))), Said::Renewed(since) if since == asked));
        let asked = clock.later();
        let lease = renew(&mut renewal, asked);
        assert!(matches!(renewal.answered(Ok(stored(lease, "2"))), Said::Renewed(since) if since == asked));
    }

    #[test]
    fn a_renewal_means_the_lease_that_was_made_at_the_version_that_was_answered() {
        let (mut renewal, mut clock) = begin();
        let lease = create(&mut renewal, clock.later());
        renewal.answered(Ok(stored(lease, "1")));
        for (version, next) in [("1", "2"), ("2", "3")] {
            let lease = renew(&mut renewal, clock.later());
            assert_eq!((&*lease.metadata.uid, &*lease.metadata.resource_version), ("u-1", version));
            renewal.answered(Ok(stored(lease, next)));
        }
    }

    #[test]
    fn a_write_that_nobody_heard_of_is_read_and_done_again() {
        let (mut renewal, mut clock) = begin();
        let lease = create(&mut renewal, clock.later());
        // It happened: the next one is refused, and what is read gives no right.
        assert!(matches!(renewal.answered(Err(unheard())), Said::Failed(_)));
        create(&mut renewal, clock.later());
        assert!(matches!(renewal.answered(Err(conflict())), Said::Continue));
        assert_eq!(renewal.ask(clock.later()), Ask::Read);
        assert!(matches!(renewal.answered(Err(unheard())), Said::Failed(_)));
        assert_eq!(renewal.ask(clock.later()), Ask::Read, "still to be read");
        assert!(matches!(renewal.answered(Ok(stored(lease, "7"))), Said::Continue));
        let asked = clock.later();
        let lease = renew(&mut renewal, asked);
        assert_eq!((&*lease.metadata.uid, &*lease.metadata.resource_version), ("u-1", "7"));
        assert!(matches!(renewal.answered(Ok(stored(lease, "8"))), Said::Renewed(since) if since == asked));
    }

    #[test]
    fn a_lease_that_is_gone_ends_it() {
        let (mut renewal, mut clock) = begin();
        create(&mut renewal, clock.later());
        assert!(matches!(renewal.answered(Err(not_found())), Said::Failed(_)), "there is no namespace yet");
        let lease = create(&mut renewal, clock.later());
        renewal.answered(Ok(stored(lease, "1")));
        renew(&mut renewal, clock.later());
        assert!(matches!(renewal.answered(Err(not_found())), Said::Gone(_)));
        assert!(matches!(renewal.answered(Err(conflict())), Said::Continue));
        assert_eq!(renewal.ask(clock.later()), Ask::Read);
        assert!(matches!(renewal.answered(Err(not_found())), Said::Gone(_)));
    }
}
