//! Waiting for what announces itself nowhere.

use std::thread;
use std::time::{Duration, Instant};

/// Asks again until `probe` answers, and gives its answer.
///
/// For state of another process or the kernel that sends no event; where there is one, wait for that instead.
///
/// # Panics
/// If there is no answer within `limit`, naming `what` was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "still not so after {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
