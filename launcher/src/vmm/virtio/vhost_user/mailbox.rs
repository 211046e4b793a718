//! What others want of a device's thread, and what the thread has to say.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::control::{Event, QueuePairs};
use crate::vmm::virtio::queue::LentRing;

/// A driver that is ready: what it agreed to, and its rings.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) features: u64,
    pub(super) rings: Vec<LentRing>,
}

/// Where vCPUs and the main thread leave their wishes for the device's thread. Nobody waits here.
pub(crate) struct Mailbox {
    /// The device's place among the NICs of the configuration.
    pub(crate) nic: usize,
    pub(super) wake: OwnedFd,
    /// Signalled when the thread has followed.
    pub(super) followed: OwnedFd,
    wishes: Mutex<Wishes>,
}

#[derive(Default)]
struct Wishes {
    driver: Option<Arc<Driver>>,
    pairs: QueuePairs,
    /// How often driver and pairs were changed, and up to which change the thread has followed.
    changes: u64,
    followed: u64,
    socket: Option<OwnedFd>,
}

/// What the thread finds.
pub(super) struct Taken {
    pub(super) driver: Option<Arc<Driver>>,
    /// How many pairs of rings are to be served: the first ones.
    pub(super) pairs: QueuePairs,
    pub(super) socket: Option<OwnedFd>,
    change: u64,
}

impl Mailbox {
    pub(super) fn new(nic: usize) -> io::Result<Self> {
        Ok(Self { nic, wake: event()?, followed: event()?, wishes: Mutex::default() })
    }

    /// A new connection to the backend.
    pub(crate) fn connection(&self, socket: OwnedFd) {
        self.wishes().socket = Some(socket);
        self.ring();
    }

    /// The rings are to be served for this driver, at first one pair of them, or to be left alone.
    pub(super) fn want(&self, driver: Option<Driver>) {
        let mut wishes = self.wishes();
        wishes.driver = driver.map(Arc::new);
        wishes.pairs = QueuePairs::ONE;
        wishes.changes += 1;
        drop(wishes);
        self.ring();
    }

    /// So many pairs of the driver's rings are to be served.
    pub(super) fn use_pairs(&self, pairs: QueuePairs) {
        let mut wishes = self.wishes();
        wishes.pairs = pairs;
        wishes.changes += 1;
        drop(wishes);
        self.ring();
    }

    /// Whether the thread has yet to do what [`Mailbox::want`] or [`Mailbox::use_pairs`] was last called for.
    pub(super) fn is_behind(&self) -> bool {
        let wishes = self.wishes();
        wishes.changes != wishes.followed
    }

    pub(super) fn take(&self) -> Taken {
        // Cleared first: who rings from now on is heard next time.
        clear(&self.wake);
        let mut wishes = self.wishes();
        Taken {
            driver: wishes.driver.clone(),
            pairs: wishes.pairs,
            socket: wishes.socket.take(),
            change: wishes.changes,
        }
    }

    /// What was taken has been followed.
    pub(super) fn done(&self, taken: &Taken) {
        self.wishes().followed = taken.change;
        signal(&self.followed);
    }

    fn ring(&self) {
        signal(&self.wake);
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events for the supervisor, which the main thread sends.
pub(crate) struct Outbox {
    events: Mutex<Vec<Event>>,
    ready: OwnedFd,
}

impl Outbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { events: Mutex::default(), ready: event()? })
    }

    /// Has `event` sent. The supervisor brings about each by a connection that it makes, so there are few.
    pub(super) fn put(&self, event: Event) {
        self.events().push(event);
        signal(&self.ready);
    }

    /// All there is to send.
    pub(crate) fn take(&self) -> Vec<Event> {
        clear(&self.ready);
        std::mem::take(&mut *self.events())
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable once there is something to send.
impl AsRawFd for Outbox {
    fn as_raw_fd(&self) -> RawFd {
        self.ready.as_raw_fd()
    }
}

fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn signal(event: &OwnedFd) {
    // A full counter wakes as well.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn clear(event: &OwnedFd) {
    // Fails if it was clear.
    let _ = rustix::io::read(event, &mut [0; 8]);
}
