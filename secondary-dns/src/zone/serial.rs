//! The SOA serial: it only ever grows, in the circle of RFC 1982.
//!
//! A directory is read by one server, so its serial is time, in milliseconds: never ahead of the clock, so that a restart
//! cannot set it back (unless the clock itself was). The circle is 49 days round and a serial is a day old at most, while a
//! secondary forgets the zone after a week (SOA expire), so it never compares across half of it. A cluster is read by many
//! replicas, so its serial is the cluster's own counter of changes (see `source::kube`).

use std::thread;
use std::time::{Duration, SystemTime};

/// What a serial counts.
const TICK: Duration = Duration::from_millis(1);
/// Ticks behind the last serial from which on the clock must have been set back.
const SET_BACK: u32 = 10;

/// The serial that follows `last` now. Of two changes in one tick the second waits for the next.
pub fn follow(last: u32) -> u32 {
    loop {
        match next(last, SystemTime::now()) {
            Some(serial) => return serial,
            None => thread::sleep(TICK),
        }
    }
}

/// The serial that follows `last` at `now`; none if that would be ahead of the clock. After that was set back there is no
/// other way than ahead.
fn next(last: u32, now: SystemTime) -> Option<u32> {
    let now = of_time(now);
    if is_newer(now, last) {
        return Some(now);
    }
    (last.wrapping_sub(now) > SET_BACK).then(|| last.wrapping_add(1))
}

/// The serial that stands for a moment.
pub fn of_time(moment: SystemTime) -> u32 {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let wrapped = (since.as_millis() / TICK.as_millis()) % (1u128 << 32);
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
    fn no_number_of_changes_puts_it_ahead_of_the_clock() {
        let mut serial = of_time(SystemTime::now());
        for _ in 0..50 {
            let following = follow(serial);
            assert!(is_newer(following, serial));
            assert!(!is_newer(following, of_time(SystemTime::now())), "a restart now would set it back");
            serial = following;
        }
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_set_it_back() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let serial = of_time(noon);
        assert_eq!(next(serial, noon), None);
        assert_eq!(next(serial, noon - Duration::from_secs(3600)), Some(serial.wrapping_add(1)));
        assert_eq!(next(serial, noon + Duration::from_secs(1)), Some(serial.wrapping_add(1000)));
    }

    #[test]
    fn the_circle_closes_without_going_back() {
        assert!(is_newer(0, u32::MAX));
        assert!(!is_newer(u32::MAX, 0));
        let before_wrap = SystemTime::UNIX_EPOCH + TICK * u32::MAX;
        assert_eq!(next(of_time(before_wrap), before_wrap + TICK), Some(0));
    }
}
