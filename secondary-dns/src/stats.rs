//! Counters of what was answered, cheap enough for the hot path, and their Prometheus text.
//!
//! Every UDP thread counts in a [`Stats`] of its own, so that no cache line travels between cores; TCP has one.
//! Latency is measured per batch: from the moment it was received until its replies were handed to the kernel.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::Allowance;
use crate::wire::{TYPE_A, TYPE_AAAA, TYPE_ANY, TYPE_NS, TYPE_PTR, TYPE_SOA};

/// Types counted by name; the last is for all others.
const TYPES: [(u16, &str); 7] = [
    (TYPE_A, "A"),
    (TYPE_AAAA, "AAAA"),
    (TYPE_PTR, "PTR"),
    (TYPE_SOA, "SOA"),
    (TYPE_NS, "NS"),
    (TYPE_ANY, "ANY"),
    (0, "other"),
];
/// Response codes counted by name; the last is for all others.
const CODES: [(u16, &str); 7] = [
    (0, "NOERROR"),
    (1, "FORMERR"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (9, "NOTAUTH"),
    (u16::MAX, "other"),
];
/// Upper bounds of the latency buckets in microseconds; the last is infinity.
const BUCKETS: [u64; 8] = [10, 25, 50, 100, 250, 1000, 10_000, u64::MAX];

/// Counters of one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    answered: [[AtomicU64; CODES.len()]; TYPES.len()],
    latency: [AtomicU64; BUCKETS.len()],
    latency_sum: AtomicU64,
    truncated_by_limit: AtomicU64,
    dropped_by_limit: AtomicU64,
    transfers: AtomicU64,
}

impl Stats {
    /// Counts an answer by its question's type and its response code.
    pub fn answered(&self, kind: u16, rcode: u16) {
        let place = |known: &[(u16, &str)], wanted| {
            known.iter().position(|(number, _)| *number == wanted).unwrap_or(known.len() - 1)
        };
        let row = self.answered.get(place(&TYPES, kind));
        if let Some(counter) = row.and_then(|row| row.get(place(&CODES, rcode))) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts `queries` that took this long together.
    pub fn took(&self, queries: usize, duration: Duration) {
        let queries = u64::try_from(queries).unwrap_or_default();
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = BUCKETS.iter().position(|bound| micros <= *bound).unwrap_or(BUCKETS.len() - 1);
        if let Some(bucket) = self.latency.get(place) {
            bucket.fetch_add(queries, Ordering::Relaxed);
        }
        self.latency_sum.fetch_add(micros.saturating_mul(queries), Ordering::Relaxed);
    }

    /// Counts a query that was over the rate limit.
    pub fn limited(&self, allowance: Allowance) {
        match allowance {
            Allowance::Answer => {}
            Allowance::Truncate => drop(self.truncated_by_limit.fetch_add(1, Ordering::Relaxed)),
            Allowance::Drop => drop(self.dropped_by_limit.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Counts a zone transfer.
    pub fn transferred(&self) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
    }
}

/// All threads' counters.
#[derive(Debug, Default, Clone)]
pub struct AllStats {
    /// One per UDP thread.
    pub udp: Vec<Arc<Stats>>,
    /// All TCP connections.
    pub tcp: Arc<Stats>,
}

impl AllStats {
    /// Appends the counters in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let sum = |all: &[Arc<Stats>], field: &dyn Fn(&Stats) -> &AtomicU64| {
            all.iter().map(|stats| field(stats).load(Ordering::Relaxed)).sum::<u64>()
        };
        let tcp = std::slice::from_ref(&self.tcp);
        let transports: [(&str, &[Arc<Stats>]); 2] = [("udp", &self.udp), ("tcp", tcp)];
        header(out, "queries_total", "counter", "Queries answered.");
        for (transport, all) in transports {
            for (row, (_, kind)) in TYPES.iter().enumerate() {
                for (column, (_, rcode)) in CODES.iter().enumerate() {
                    let count = sum(all, &|stats| &stats.answered[row][column]);
                    if count > 0 {
                        let labels = format!("transport=\"{transport}\",type=\"{kind}\",rcode=\"{rcode}\"");
                        line(out, "queries_total", &labels, count);
                    }
                }
            }
        }
        header(
            out,
            "query_duration_seconds",
            "histogram",
            "From receiving a query to handing over its reply.",
        );
        for (transport, all) in transports {
            let mut below = 0;
            for (place, bound) in BUCKETS.iter().enumerate() {
                below += sum(all, &|stats| &stats.latency[place]);
                let bound = if *bound == u64::MAX { "+Inf".to_owned() } else { seconds(*bound).to_string() };
                let labels = format!("transport=\"{transport}\",le=\"{bound}\"");
                line(out, "query_duration_seconds_bucket", &labels, below);
            }
            let labels = format!("transport=\"{transport}\"");
            line(out, "query_duration_seconds_sum", &labels, seconds(sum(all, &|stats| &stats.latency_sum)));
            line(out, "query_duration_seconds_count", &labels, below);
        }
        header(out, "rate_limited_total", "counter", "Queries over the rate limit.");
        line(out, "rate_limited_total", "action=\"truncate\"", sum(&self.udp, &|s| &s.truncated_by_limit));
        line(out, "rate_limited_total", "action=\"drop\"", sum(&self.udp, &|s| &s.dropped_by_limit));
        header(out, "transfers_total", "counter", "Zone transfers begun.");
        line(out, "transfers_total", "", sum(tcp, &|stats| &stats.transfers));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a metric's sum of seconds needs no more than 53 bits")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Begins a metric.
pub fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ok = writeln!(out, "# HELP secondary_dns_{name} {help}\n# TYPE secondary_dns_{name} {kind}");
}

/// One sample.
pub fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ok = match labels {
        "" => writeln!(out, "secondary_dns_{name} {value}"),
        labels => writeln!(out, "secondary_dns_{name}{{{labels}}} {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let all = AllStats { udp: vec![Arc::default(), Arc::default()], tcp: Arc::default() };
        all.udp[0].answered(TYPE_A, 0);
        all.udp[1].answered(TYPE_A, 0);
        all.udp[1].answered(99, 3);
        all.udp[0].took(5, Duration::from_micros(30));
        all.udp[0].limited(Allowance::Drop);
        let mut text = String::new();
        all.render(&mut text);
        for expected in [
            "secondary_dns_queries_total{transport=\"udp\",type=\"A\",rcode=\"NOERROR\"} 2",
            "secondary_dns_queries_total{transport=\"udp\",type=\"other\",rcode=\"NXDOMAIN\"} 1",
            "secondary_dns_query_duration_seconds_bucket{transport=\"udp\",le=\"0.000025\"} 0",
            "secondary_dns_query_duration_seconds_bucket{transport=\"udp\",le=\"0.00005\"} 5",
            "secondary_dns_query_duration_seconds_sum{transport=\"udp\"} 0.00015",
            "secondary_dns_rate_limited_total{action=\"drop\"} 1",
            "secondary_dns_transfers_total 0",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} in\n{text}");
        }
    }
}
