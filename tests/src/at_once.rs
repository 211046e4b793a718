//! Two things that begin at the same moment.

use std::sync::Barrier;
use std::thread;

/// Does both at once, and gives what came of each.
///
/// # Panics
/// If one of them does.
#[track_caller]
pub fn at_once<A: Send, B>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B) -> (A, B) {
    let ready = Barrier::new(2);
    // Threads are in the sandbox of the one that starts them.
    thread::scope(|scope| {
        let a = scope.spawn(|| {
            ready.wait();
            a()
        });
        ready.wait();
        let b = b();
        (a.join().unwrap(), b)
    })
}
