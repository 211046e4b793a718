//! A device's thread: the only one that waits for the backend.
//!
//! It follows the mailbox: a new connection replaces the one before, a driver that is ready gets its rings served, one
//! that is gone gets them back. When a connection is lost, the rings stay where they are in guest memory; the next
//! backend goes on at their used index, for backends complete buffers in order.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier};
use std::thread as threads;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::{Bytes as _, GuestAddress};

use super::connection::Connection;
use super::mailbox::{Driver, Mailbox, Outbox, Taken};
use super::session::{Session, SessionError};
use super::{LINK_UP, STATUS};
use crate::control::{Event, QueuePairs};
use crate::vmm::VmmError;
use crate::vmm::memory::GuestRam;
use crate::vmm::outcome::{DeathWatch, End, Outcome};
use crate::vmm::virtio::device_config::DeviceConfig;

/// Where the used index is in a used ring (struct virtq_used).
const USED_INDEX: u64 = 2;

/// The thread's state.
pub(super) struct Thread {
    mailbox: Arc<Mailbox>,
    config: Arc<DeviceConfig>,
    ram: Arc<GuestRam>,
    outbox: Arc<Outbox>,
    /// How many queue pairs the device has.
    pairs: QueuePairs,
    patience: Duration,
    session: Option<Session>,
    /// Whose rings the backend has, and how many pairs of them it serves.
    serving: Option<(Arc<Driver>, QueuePairs)>,
    /// Whose rings a backend has had, and how far they were when it gave them back; empty if it did not.
    served: Option<(Arc<Driver>, Vec<u16>)>,
}

impl Thread {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        config: Arc<DeviceConfig>,
        ram: Arc<GuestRam>,
        outbox: Arc<Outbox>,
        (pairs, patience): (QueuePairs, Duration),
    ) -> Self {
        let (session, serving, served) = (None, None, None);
        Self { mailbox, config, ram, outbox, pairs, patience, session, serving, served }
    }

    /// Begins a session; returns what the backend offers. Without success the connection is lost.
    pub(super) fn connect(&mut self, socket: OwnedFd) -> Option<u64> {
        self.give_back();
        match Session::open(Connection::new(socket, self.patience), self.pairs.count()) {
            Ok(session) => {
                let features = session.features;
                self.session = Some(session);
                Some(features)
            }
            Err(error) => {
                self.lose(&crate::chain(&error).to_string());
                None
            }
        }
    }

    /// Starts the thread, and waits until it is through its beginnings. It ends with the process.
    pub(super) fn spawn(mut self, end: End) -> io::Result<()> {
        const NAME: &str = "vhost-user";
        let ready = Arc::new(Barrier::new(2));
        let begun = Arc::clone(&ready);
        threads::Builder::new().name(NAME.into()).spawn(move || {
            begun.wait();
            let _watch = DeathWatch::new(end.clone(), VmmError::DeviceDied { name: NAME });
            let source = self.run();
            end.come(Outcome::Failed(VmmError::Epoll(source)));
        })?;
        ready.wait();
        Ok(())
    }

    /// Follows the mailbox until waiting fails.
    fn run(&mut self) -> io::Error {
        if self.session.is_some() {
            self.tell_connected();
        }
        loop {
            match self.wait() {
                Ok(true) => self.lose("the backend hung up, or spoke out of turn"),
                Ok(false) => {}
                Err(error) => return error,
            }
            let mut taken = self.mailbox.take();
            let connected = taken.socket.take().is_some_and(|socket| self.connect(socket).is_some());
            self.follow(&taken);
            self.mailbox.done(&taken);
            if connected && self.session.is_some() {
                self.tell_connected();
            }
        }
    }

    /// Waits for the mailbox; true if the backend has moved too, which it never does of its own accord.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&self.mailbox.wake, PollFlags::IN)];
        fds.extend(self.session.iter().map(|session| PollFd::new(&session.connection, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(fds.get(1).is_some_and(|backend| !backend.revents().is_empty()))
    }

    /// Has the backend serve the driver that is there now, and no other, and as many pairs as it wants.
    fn follow(&mut self, taken: &Taken) {
        let same = match (&self.serving, &taken.driver) {
            (Some((serving, _)), Some(wanted)) => Arc::ptr_eq(serving, wanted),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.give_back();
        }
        let followed = match &taken.driver {
            Some(driver) if same => self.enable(driver, taken.pairs),
            Some(driver) => self.start(driver, taken.pairs),
            None => Ok(()),
        };
        if let Err(error) = followed {
            self.lose(&crate::chain(&error).to_string());
        }
    }

    fn enable(&mut self, driver: &Driver, pairs: QueuePairs) -> Result<(), SessionError> {
        let (Some(session), Some((_, served))) = (&mut self.session, &mut self.serving) else {
            return Ok(());
        };
        if *served != pairs {
            session.enable(driver, pairs)?;
            *served = pairs;
        }
        Ok(())
    }

    fn start(&mut self, driver: &Arc<Driver>, pairs: QueuePairs) -> Result<(), SessionError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let (bases, again) = match &self.served {
            Some((served, bases)) if Arc::ptr_eq(served, driver) => match bases.as_slice() {
                [] => (used_indexes(driver, &self.ram), true),
                bases => (bases.to_vec(), true),
            },
            _ => (vec![0; driver.rings.len()], false),
        };
        self.served = Some((Arc::clone(driver), Vec::new()));
        session.start(driver, pairs, &bases, &self.ram)?;
        self.serving = Some((Arc::clone(driver), pairs));
        if again {
            // What the last backend did, but did not say, and what the guest said to nobody.
            for ring in &driver.rings {
                let _ = ring.call.write(1);
                let _ = ring.kick.write(1);
            }
        }
        Ok(())
    }

    /// Takes the rings back from the backend, if it has any.
    fn give_back(&mut self) {
        let (Some((driver, _)), Some(session)) = (self.serving.take(), &mut self.session) else { return };
        match session.stop(&driver) {
            Ok(bases) => self.served = Some((driver, bases)),
            Err(error) => self.lose(&crate::chain(&error).to_string()),
        }
    }

    fn tell_connected(&self) {
        self.set_link(LINK_UP);
        self.outbox.put(Event::BackendConnected { nic: self.mailbox.nic });
    }

    /// Drops the connection: the guest's link goes down, and the supervisor brings another.
    fn lose(&mut self, reason: &str) {
        self.session = None;
        self.serving = None;
        self.set_link(0);
        self.outbox.put(Event::BackendLost { nic: self.mailbox.nic, reason: reason.to_owned() });
    }

    fn set_link(&self, status: u16) {
        self.config.change(STATUS, &status.to_le_bytes());
    }
}

/// How far the rings of a backend that is gone are: it has given back what the guest finds in their used rings.
fn used_indexes(driver: &Driver, ram: &GuestRam) -> Vec<u16> {
    let used = driver.rings.iter().map(|ring| {
        // The ring was checked to be in memory, which does not go away.
        ram.read_obj::<u16>(GuestAddress(ring.used + USED_INDEX)).unwrap_or_default()
    });
    used.collect()
}
