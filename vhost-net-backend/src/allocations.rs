//! Counts allocations, in tests: what is said to allocate nothing, or to keep nothing, is held to it.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one hands every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that the process has.
static LIVE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    // Neither allocated nor destroyed: it is there in every call.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: usize) {
    COUNT.set(COUNT.get() + 1);
    LIVE.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: the system's allocator does everything; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread has allocated so far.
pub(crate) fn of_this_thread() -> u64 {
    COUNT.get()
}

/// How many bytes all threads together have allocated and not freed.
pub(crate) fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

#[test]
fn an_allocation_is_counted() {
    let before = of_this_thread();
    let kept = std::hint::black_box(Box::new(1));
    assert_eq!((of_this_thread() - before, *kept), (1, 1));
}
