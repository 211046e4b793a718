//! Counts a thread's allocations, in tests: what is said to allocate nothing is held to it.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one hands every call on")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Neither allocated nor destroyed: it is there in every call.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    COUNT.set(COUNT.get() + 1);
}

// SAFETY: the system's allocator does everything; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
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

#[test]
fn an_allocation_is_counted() {
    let before = of_this_thread();
    let kept = std::hint::black_box(Box::new(1));
    assert_eq!((of_this_thread() - before, *kept), (1, 1));
}
