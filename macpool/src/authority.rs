//! The life of the own authority: when a new one is made, trusted, used, and when the old one goes.
//!
//! A state and the time give the next state; replicas share the state in a Secret and change it by compare-and-swap
//! ([`crate::store::kube`]), so any of them may do it. A new authority is trusted for the overlap before it signs,
//! and the old one for the overlap after, so that no certificate is ever shown to a client that does not trust it yet.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::certs::{self, CertError, Pair};

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority's. It signs for half of it.
    pub authority: Duration,
    /// Between being trusted and signing; between being replaced and being forgotten.
    pub overlap: Duration,
}

impl Lifetimes {
    /// Of an authority that is good for so long. The overlap is a day, or an eighth if that is less.
    pub fn of(authority: Duration) -> Self {
        Self { authority, overlap: Duration::min(authority / 8, Duration::DAY) }
    }
}

/// One authority and when it was made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Certificate and key.
    #[serde(flatten)]
    pub pair: Pair,
    /// Unix time, seconds.
    pub made: i64,
}

/// All that replicas share.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Signs.
    pub current: Generation,
    /// Will sign; trusted already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Generation>,
    /// Signed before; still trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Generation>,
}

impl State {
    /// The first authority.
    pub fn first(now: OffsetDateTime, lifetimes: Lifetimes) -> Result<Self, CertError> {
        Ok(Self { current: Generation::new(now, lifetimes)?, next: None, previous: None })
    }

    /// The state that is due now, if it is another one.
    pub fn step(&self, now: OffsetDateTime, lifetimes: Lifetimes) -> Result<Option<Self>, CertError> {
        let age = |generation: &Generation| Duration::seconds(now.unix_timestamp() - generation.made);
        let mut state = self.clone();
        match &self.next {
            None if age(&self.current) >= lifetimes.authority / 2 => {
                state.next = Some(Generation::new(now, lifetimes)?);
            }
            Some(next) if age(next) >= lifetimes.overlap => {
                state.previous = Some(std::mem::replace(&mut state.current, next.clone()));
                state.next = None;
            }
            // Counted from when its successor, the current one, was made and then waited its overlap.
            None if self.previous.is_some() && age(&self.current) >= lifetimes.overlap * 2 => {
                state.previous = None;
            }
            None | Some(_) => return Ok(None),
        }
        Ok(Some(state))
    }

    /// The certificates that clients are to trust, as PEM.
    pub fn bundle(&self) -> String {
        let all = [Some(&self.current), self.next.as_ref(), self.previous.as_ref()];
        all.into_iter()
            .flatten()
            .map(|generation| generation.pair.cert.trim_end().to_owned() + "\n")
            .collect()
    }
}

impl Generation {
    fn new(now: OffsetDateTime, lifetimes: Lifetimes) -> Result<Self, CertError> {
        Ok(Self { pair: certs::authority(now, lifetimes.authority)?, made: now.unix_timestamp() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_trusted_before_it_signs_and_after() {
        let lifetimes = Lifetimes::of(Duration::days(365));
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let mut state = State::first(start, lifetimes).unwrap();
        let (mut changes, mut trusted, mut signers) = (0, state.bundle(), 1);
        let mut replaced = None;
        // Two years, hour by hour.
        for hour in 1..2 * 365 * 24 {
            let now = start + Duration::hours(hour);
            if let Some((since, old)) = &replaced
                && now - *since < lifetimes.overlap
            {
                assert!(state.bundle().contains(old), "leaves of it are shown for a while");
            }
            let Some(next) = state.step(now, lifetimes).unwrap() else {
                trusted = state.bundle();
                continue;
            };
            changes += 1;
            assert!(next.bundle().contains(next.current.pair.cert.trim_end()));
            if next.current != state.current {
                signers += 1;
                replaced = Some((now, state.current.pair.cert.trim_end().to_owned()));
                assert!(trusted.contains(next.current.pair.cert.trim_end()), "it signs before it is trusted");
                assert!(
                    next.bundle().contains(state.current.pair.cert.trim_end()),
                    "leaves of it are around"
                );
            }
            let age = now.unix_timestamp() - next.current.made;
            assert!(age < lifetimes.authority.whole_seconds(), "an authority in use has expired");
            state = next;
        }
        assert_eq!((signers, changes), (4, 9));
    }
}
