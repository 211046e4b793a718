//! What a VMM can write to the log.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use vhost::VhostBackend as _;
use vhost::vhost_user::VhostUserFrontend as _;

use super::super::fake_vm::{BASIC, Vm};
use super::Joined;

/// Lines that a log would have by default.
static LINES: AtomicUsize = AtomicUsize::new(0);

struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn event(&self, _event: &Event<'_>) {
        LINES.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[test]
fn a_vmm_cannot_fill_the_log() {
    tracing::subscriber::set_global_default(Log).unwrap();
    let joined = Joined::new();
    let mut vm = Vm::connect(&joined.socket("b"), BASIC);
    let before = LINES.load(Ordering::Relaxed);
    for base in 1..=1000 {
        vm.frontend.set_vring_base(0, base).unwrap();
        vm.frontend.set_vring_enable(0, true).unwrap();
    }
    assert_eq!(LINES.load(Ordering::Relaxed), before);
    // Comes, breaks the rules, and comes again.
    let begin = Instant::now();
    let mut came = 0;
    while came < 2000 && begin.elapsed() < Duration::from_secs(5) {
        let mut stream = UnixStream::connect(joined.socket("a")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stream.write_all(&[0; 12]).unwrap();
        came += usize::from(
            !matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock),
        );
    }
    // Some at once, then ten a second, of three lines each.
    let allowed = 256 + usize::try_from(begin.elapsed().as_millis()).unwrap() / 100 + 1;
    assert!(came <= allowed, "{came} connections, {allowed} allowed");
    let lines = LINES.load(Ordering::Relaxed) - before;
    assert!(lines <= 3 * (allowed + 1), "{lines} lines of {came} connections");
}
