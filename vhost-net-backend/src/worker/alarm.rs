//! A worker's alarm: a signal every second, which ends a system call that waits for somebody else.
//!
//! There is one such call: the write to a call eventfd. We made it non-blocking, but its VMM has the same open file, and can
//! take that back and fill its counter. Nothing else reaches such a write; it ends with EINTR, and that guest's end of the
//! link with it. All other calls of a worker do not wait, or go on waiting. A worker that sleeps for longer has none.
#![expect(unsafe_code, reason = "a signal handler, and the timer that raises its signal")]

use std::io;

/// Seconds from one signal to the next.
const PERIOD: libc::time_t = 1;
/// Nobody misses it: it is ignored where nobody handles it.
const SIGNAL: libc::c_int = libc::SIGURG;

/// The calling thread's alarm, until dropped.
#[derive(Debug)]
pub(super) struct Alarm(libc::timer_t);

impl Alarm {
    /// Starts it.
    pub(super) fn set() -> io::Result<Self> {
        handle()?;
        // SAFETY: all zeros is a valid sigevent; the fields that matter are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are to variables of ours.
        let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let alarm = Self(timer);
        alarm.every(PERIOD)?;
        Ok(alarm)
    }

    /// Stops it, or has it go on.
    pub(super) fn turn(&self, on: bool) {
        if let Err(error) = self.every(if on { PERIOD } else { 0 }) {
            tracing::error!(%error, "cannot change an alarm");
        }
    }

    fn every(&self, seconds: libc::time_t) -> io::Result<()> {
        let period = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer is ours, and the times are a variable of ours.
        match unsafe { libc::timer_settime(self.0, 0, &raw const times, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: it was made, and nobody else deletes it.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Has the signal interrupt calls. Without `SA_RESTART` the kernel does not repeat them.
fn handle() -> io::Result<()> {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: all zeros is a valid sigaction: no flags, no other signals blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: a handler that does nothing is async-signal-safe.
    let result = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
