//! Response rate limiting: a spoofed source must not make this server flood its victim.
//!
//! Each client network (IPv4 /24, IPv6 /56) may have so many replies a second, and a second's worth at once. Beyond
//! that every other query is answered truncated, so that real clients come back by TCP, which cannot be spoofed,
//! and the rest is dropped. State is one word per slot of a fixed table: nothing a flood of sources does makes it
//! grow. Networks that share a slot share its allowance.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slots in the table: half a megabyte.
const SLOTS: usize = 1 << 16;
/// How many seconds' worth may come at once.
const BURST: Duration = Duration::from_secs(1);

/// What to do with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Answer it.
    Answer,
    /// Answer "truncated" and nothing else.
    Truncate,
    /// Say nothing.
    Drop,
}

/// The generic cell rate algorithm, one cell per slot: the word is the time, in nanoseconds since `start`, at which
/// all replies so far would have been due.
#[derive(Debug)]
pub struct RateLimit {
    due: Box<[AtomicU64]>,
    start: Instant,
    /// Nanoseconds per reply.
    interval: u64,
    hasher: RandomState,
    /// Counts what was not answered: every other one is told to use TCP.
    refused: AtomicU64,
}

impl RateLimit {
    /// Allows so many replies a second to each client network.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self {
            due: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            start: Instant::now(),
            interval: 1_000_000_000 / u64::from(per_second.get()),
            hasher: RandomState::new(),
            refused: AtomicU64::new(0),
        }
    }

    /// Judges a query that came from `peer` at `now`.
    pub fn judge(&self, peer: IpAddr, now: Instant) -> Allowance {
        let hash = self.hasher.hash_one(network(peer));
        let place = usize::try_from(hash).unwrap_or_default() % SLOTS;
        let Some(slot) = self.due.get(place) else { return Allowance::Answer };
        let now = nanoseconds(now.saturating_duration_since(self.start));
        let due = slot.load(Ordering::Relaxed).max(now) + self.interval;
        if due <= now + nanoseconds(BURST) {
            // Two threads may read the same word and count two replies as one: it evens out.
            slot.store(due, Ordering::Relaxed);
            Allowance::Answer
        } else if self.refused.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            Allowance::Truncate
        } else {
            Allowance::Drop
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn network(peer: IpAddr) -> u128 {
    match peer {
        IpAddr::V4(v4) => u128::from(u32::from(v4) >> 8),
        IpAddr::V6(v6) => u128::from(v6) >> 72,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(limit: &RateLimit, peer: &str, from: Instant, count: u32, apart: Duration) -> u32 {
        let peer = peer.parse().unwrap();
        let judged = (0..count).map(|n| limit.judge(peer, from + apart * n));
        judged.filter(|allowance| *allowance == Allowance::Answer).count().try_into().unwrap()
    }

    #[test]
    fn a_flood_is_cut_to_the_rate_and_half_of_the_rest_sent_to_tcp() {
        let limit = RateLimit::new(NonZeroU32::new(100).unwrap());
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(answered(&limit, "192.0.2.1", now, 1000, Duration::ZERO), 100);
        let peer = "192.0.2.200".parse().unwrap();
        let rest = [limit.judge(peer, now), limit.judge(peer, now)];
        assert!(rest.contains(&Allowance::Truncate) && rest.contains(&Allowance::Drop), "{rest:?}: same /24");
        // Ten seconds of ten times the rate: one second's worth for each second.
        let later = now + Duration::from_secs(10);
        let got = answered(&limit, "192.0.2.1", later, 10_000, Duration::from_millis(1));
        assert!((1000..=1101).contains(&got), "{got}");
    }

    #[test]
    fn a_client_within_the_rate_never_notices() {
        let limit = RateLimit::new(NonZeroU32::new(100).unwrap());
        assert_eq!(answered(&limit, "2001:db8::1", Instant::now(), 5000, Duration::from_millis(11)), 5000);
    }
}
