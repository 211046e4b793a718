//! The SOA serial: it only ever grows, in the circle of RFC 1982.
//!
//! A directory is read by one server, so its serial is time: hundredths of a second, which a restart cannot set
//! back, and at least one more than the last. A cluster is read by many replicas, so its serial is the cluster's own
//! counter of changes (see `source::kube`). The circle is 497 days round; a secondary forgets the zone after a
//! week (SOA expire), so it never compares across half of it.

use std::time::SystemTime;

/// The serial that follows `last` at `now`.
pub fn next(last: u32, now: SystemTime) -> u32 {
    let now = of_time(now);
    if is_newer(now, last) { now } else { last.wrapping_add(1) }
}

/// The serial that stands for a moment.
pub fn of_time(moment: SystemTime) -> u32 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let wrapped = (since.as_millis() / 10) % (1u128 << 32);
    u32::try_from(wrapped).unwrap_or_default()
}

/// The serial that stands for a resource version: its lower half, since serials go round in a circle anyway.
pub fn of_revision(revision: u64) -> u32 {
    u32::try_from(revision & u64::from(u32::MAX)).unwrap_or_default()
}

/// True if `a` comes after `b` (RFC 1982 section 3.2).
pub fn is_newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_changes_in_one_moment_and_a_clock_set_back_still_grow() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut serial = of_time(noon);
        for now in [noon, noon, noon - Duration::from_secs(3600), noon + Duration::from_secs(1)] {
            let following = next(serial, now);
            assert!(is_newer(following, serial));
            serial = following;
        }
        assert_eq!(serial, of_time(noon + Duration::from_secs(1)));
    }

    #[test]
    fn the_circle_closes_without_going_back() {
        assert!(is_newer(0, u32::MAX));
        assert!(!is_newer(u32::MAX, 0));
        let before_wrap = SystemTime::UNIX_EPOCH + Duration::from_millis(10 * ((1u64 << 32) - 1));
        assert!(is_newer(
            next(of_time(before_wrap), before_wrap + Duration::from_millis(10)),
            of_time(before_wrap)
        ));
    }
}
