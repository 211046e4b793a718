//! Counters of reviews, in Prometheus' text format (0.0.4). The store adds its gauges when the page is made.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::admit::Answer;

/// Where a review came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// `/mutate-virtualmachines`.
    VirtualMachine,
    /// `/mutate-pods`.
    Pod,
}

const RESOURCES: [&str; 2] = ["virtualmachines", "pods"];
const OUTCOMES: [&str; 4] = ["allowed", "refused", "bad", "unavailable"];
/// Upper bounds of the buckets, in microseconds.
const BOUNDS: [u64; 8] = [50, 100, 250, 1000, 5000, 25_000, 250_000, 2_500_000];

/// Everything counted since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    reviews: [[AtomicU64; OUTCOMES.len()]; RESOURCES.len()],
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Metrics {
    /// Counts a review, and the time it took us to answer.
    pub fn review(&self, path: Path, answer: &Answer, time: Duration) {
        let resource = match path {
            Path::VirtualMachine => 0,
            Path::Pod => 1,
        };
        let outcome = match answer {
            Answer::Allowed(_) => 0,
            Answer::Refused(_) => 1,
            Answer::Bad(_) => 2,
            Answer::Unavailable(_) => 3,
        };
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        if let Some(counter) = self.reviews.get(resource).and_then(|outcomes| outcomes.get(outcome)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(counter) = self.buckets.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.microseconds.fetch_add(micros, Ordering::Relaxed);
    }

    /// The page.
    pub fn render(&self) -> String {
        let mut page = String::new();
        header(&mut page, "macpool_reviews_total", "counter", "Reviews answered.");
        for (resource, outcomes) in RESOURCES.iter().zip(&self.reviews) {
            for (outcome, count) in OUTCOMES.iter().zip(outcomes) {
                let count = count.load(Ordering::Relaxed);
                let labels = format!("resource=\"{resource}\",outcome=\"{outcome}\"");
                sample(&mut page, "macpool_reviews_total", &labels, count);
            }
        }
        header(
            &mut page,
            "macpool_review_seconds",
            "histogram",
            "Time from a review's last byte to its answer.",
        );
        let mut total = 0;
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&self.buckets) {
            total += count.load(Ordering::Relaxed);
            sample(&mut page, "macpool_review_seconds_bucket", &format!("le=\"{bound}\""), total);
        }
        let sum = seconds(self.microseconds.load(Ordering::Relaxed));
        sample(&mut page, "macpool_review_seconds_sum", "", sum);
        sample(&mut page, "macpool_review_seconds_count", "", total);
        page
    }
}

fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// Begins a metric.
pub fn header(page: &mut String, name: &str, kind: &str, help: &str) {
    // Writing into a String cannot fail.
    let _infallible = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

/// Adds one sample. `labels` as `name="value",…`, with values that need no escapes.
pub fn sample(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _infallible = match labels.is_empty() {
        true => writeln!(page, "{name} {value}"),
        false => writeln!(page, "{name}{{{labels}}} {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_are_counted_by_outcome_and_time() {
        let metrics = Metrics::default();
        metrics.review(Path::Pod, &Answer::Allowed(Vec::new()), Duration::from_micros(60));
        metrics.review(Path::Pod, &Answer::Allowed(Vec::new()), Duration::from_secs(3));
        let page = metrics.render();
        for line in [
            "macpool_reviews_total{resource=\"pods\",outcome=\"allowed\"} 2\n",
            "macpool_reviews_total{resource=\"virtualmachines\",outcome=\"allowed\"} 0\n",
            "macpool_review_seconds_bucket{le=\"0.000050\"} 0\n",
            "macpool_review_seconds_bucket{le=\"0.000100\"} 1\n",
            "macpool_review_seconds_bucket{le=\"2.500000\"} 1\n",
            "macpool_review_seconds_bucket{le=\"+Inf\"} 2\n",
            "macpool_review_seconds_sum 3.000060\n",
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
    }

    #[test]
    fn the_histogram_counts_what_is_at_most_its_bound_and_adds_up() {
        let metrics = Metrics::default();
        let times: Vec<u64> = BOUNDS.iter().flat_map(|bound| [*bound, bound + 1]).collect();
        for (at, micros) in times.iter().enumerate() {
            let path = if at % 2 == 0 { Path::Pod } else { Path::VirtualMachine };
            metrics.review(path, &Answer::Bad(String::new()), Duration::from_micros(*micros));
        }
        let page = metrics.render();
        let value = |name: &str| {
            let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.unwrap_or_else(|| panic!("{name} is missing in\n{page}"))
        };
        for bound in BOUNDS {
            let below = times.iter().filter(|micros| **micros <= bound).count();
            let le = format!("{}.{:06}", bound / 1_000_000, bound % 1_000_000);
            assert_eq!(value(&format!("macpool_review_seconds_bucket{{le=\"{le}\"}}")), below.to_string());
        }
        let count = times.len().to_string();
        assert_eq!(value("macpool_review_seconds_bucket{le=\"+Inf\"}"), count);
        assert_eq!(value("macpool_review_seconds_count"), count);
        let sum = value("macpool_review_seconds_sum").replace('.', "");
        assert_eq!(sum.parse(), Ok(times.iter().sum::<u64>()));
        assert_eq!(
            page.lines().filter(|line| line.starts_with("macpool_review_seconds_bucket")).count(),
            BOUNDS.len() + 1
        );
    }
}
