//! Which addresses a guest uses on one NIC, seen on the wire.
//!
//! One [`Observer`] per NIC and start of the guest, run by the supervisor. It listens on the guest's tap, asks the
//! guest now and then whether it still uses what it used, and publishes the list whenever it changes. What a
//! manifest says about addresses is at most a reason to ask: nothing is published that the guest did not show.
//!
//! The guest is hostile: frames are parsed by [`sightings`] without trust, [`table`] is bounded, and at most
//! [`FRAMES_PER_WINDOW`] frames are read per [`WINDOW`]; the kernel drops the rest.

mod socket;
mod table;

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use net_types::{IfName, Mac};
use netns::{NetNs, NetNsError};
use tokio::sync::watch;
use tokio::time::sleep_until;

use self::socket::{Direction, FRAME_BYTES, PacketSocket};
use self::table::Table;
use crate::ready::Ready;

/// Frames read in one [`WINDOW`].
const FRAMES_PER_WINDOW: u32 = 64;
/// See [`FRAMES_PER_WINDOW`].
const WINDOW: Duration = Duration::from_millis(100);
/// How long to wait when the list of deadlines is empty; any time will do.
const IDLE: Duration = Duration::from_secs(3600);

/// Watches the addresses of one NIC.
#[derive(Debug)]
pub(crate) struct Observer {
    socket: Ready<PacketSocket>,
    guest: Mac,
    table: Table,
    updates: watch::Sender<Vec<IpAddr>>,
    window: Window,
}

/// Why a link cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ObserverError {
    /// Its namespace cannot be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// No packet socket.
    #[error("cannot open a packet socket on {link}")]
    Open {
        /// The link.
        link: IfName,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket failed later.
    #[error("cannot receive on the packet socket")]
    Receive(#[source] io::Error),
}

impl Observer {
    /// Listens on `link` in `netns`, at whose other end the guest has the MAC `guest`. `expected` are addresses the
    /// guest was configured to use, if known. To be called inside a Tokio runtime.
    pub(crate) fn new(
        netns: &NetNs,
        link: &IfName,
        guest: Mac,
        expected: &[IpAddr],
    ) -> Result<Self, ObserverError> {
        let failed = |source| ObserverError::Open { link: link.clone(), source };
        let socket = netns.run(|| PacketSocket::open(link))?.map_err(failed)?;
        let mut table = Table::default();
        let now = Instant::now();
        expected.iter().for_each(|address| table.expect(now, *address));
        Ok(Self {
            socket: Ready::new(socket).map_err(failed)?,
            guest,
            table,
            updates: watch::Sender::default(),
            window: Window::new(now),
        })
    }

    /// The addresses in use, now and at every change: IPv4 first, link-local IPv6 last.
    pub(crate) fn addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.updates.subscribe()
    }

    /// Watches until the socket fails.
    pub(crate) async fn run(mut self) -> ObserverError {
        loop {
            let deadline = self.table.deadline().unwrap_or_else(|| Instant::now() + IDLE);
            let wake = if self.window.is_spent() { deadline.min(self.window.end) } else { deadline };
            tokio::select! {
                ready = self.socket.readable(), if !self.window.is_spent() => if let Err(error) = ready {
                    return ObserverError::Receive(error);
                },
                () = sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            self.window.turn(now);
            let changed = match self.receive(now) {
                Ok(changed) => changed,
                Err(error) => return ObserverError::Receive(error),
            };
            let due = self.table.due(now);
            due.questions.into_iter().for_each(|address| self.ask(address));
            if changed || due.changed {
                let addresses = self.table.addresses();
                self.updates.send_if_modified(|known| {
                    let differs = *known != addresses;
                    *known = addresses;
                    differs
                });
            }
        }
    }

    /// Reads what there is, within the window. True if the addresses changed.
    fn receive(&mut self, now: Instant) -> io::Result<bool> {
        let mut buffer = [0; FRAME_BYTES];
        let mut changed = false;
        while self.window.take() {
            let (frame, direction) = match self.socket.get().receive(&mut buffer) {
                Ok(received) => received,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(changed),
                    // Said once when the link goes down; it may come up again.
                    io::ErrorKind::NetworkDown | io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                },
            };
            let sighting = match direction {
                Direction::FromGuest => sightings::from_guest(frame, self.guest),
                Direction::ToGuest => sightings::to_guest(frame, self.guest),
            };
            if let Some(sighting) = sighting {
                tracing::trace!(?sighting, "frame");
                changed |= self.table.heard(now, sighting);
            }
        }
        Ok(changed)
    }

    fn ask(&self, address: IpAddr) {
        let socket = self.socket.get();
        // A link that is down or full loses the question; the table asks again.
        if let Err(error) = socket.send(&sightings::question(address, socket.own())) {
            tracing::debug!(%address, "cannot ask: {error}");
        }
    }
}

/// How many frames may still be read until when.
#[derive(Debug)]
struct Window {
    left: u32,
    end: Instant,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { left: FRAMES_PER_WINDOW, end: now + WINDOW }
    }

    fn turn(&mut self, now: Instant) {
        if now >= self.end {
            *self = Self::new(now);
        }
    }

    fn is_spent(&self) -> bool {
        self.left == 0
    }

    fn take(&mut self) -> bool {
        let taken = self.left > 0;
        self.left = self.left.saturating_sub(1);
        taken
    }
}

#[cfg(test)]
mod tests;
