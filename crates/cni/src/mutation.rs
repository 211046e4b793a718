//! Where a plugin can die.

/// Says that a plugin just changed something outside itself.
///
/// In debug builds a test can end the process here without warning, as a power cut would: after the N-th change if
/// the environment has `GUESTWIRE_CRASH_AFTER=N`. Release builds do nothing.
pub fn mutated(what: &'static str) {
    tracing::debug!("done: {what}");
    #[cfg(debug_assertions)]
    crash::after(what);
}

#[cfg(debug_assertions)]
mod crash {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::{env, process};

    static CHANGES: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn after(what: &str) {
        let made = CHANGES.fetch_add(1, Ordering::Relaxed) + 1;
        let limit = env::var("GUESTWIRE_CRASH_AFTER").ok().and_then(|limit| limit.parse().ok());
        if limit == Some(made) {
            eprintln!("crashing after change {made}: {what}");
            process::abort();
        }
    }
}
