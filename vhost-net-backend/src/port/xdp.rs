//! A NIC as a link's end, by AF_XDP. It takes finished frames only; the link finishes the others.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use super::{Polled, Pushed};
use crate::fault::Fault;
use crate::frame::{BATCH, Batch, Header, MIN_FRAME, Offloads};
use crate::memory::copy;
use crate::port::Unfit;
use crate::xdp::{Attachment, Flushed, LinkWatch, Sent, Socket, XdpError, XdpSettings};

/// How long a NIC that takes no frame is called again and again: much longer than any that works needs for one. Then the
/// worker may sleep, until the next frame, or a change of the interface such as its cable's.
const PATIENCE: Duration = Duration::from_secs(10);

/// Our program on an interface, and a socket for each of its queues that we use.
#[derive(Debug)]
pub struct XdpPort {
    /// `None` after a fault.
    sockets: Vec<Option<Socket>>,
    /// After the sockets it delivers to.
    attachment: Option<Attachment>,
    watch: LinkWatch,
    /// Some socket has frames that the kernel did not take yet.
    behind: bool,
    /// Since when, as far as is known, so many frames wait.
    stalled: Option<(Instant, u32)>,
}

impl XdpPort {
    /// Attaches to an interface.
    pub fn open(settings: &XdpSettings) -> Result<Self, XdpError> {
        // First: what happens to the interface from now on is heard.
        let watch = LinkWatch::new().map_err(|source| XdpError::Io {
            operation: "listen to changes of links",
            interface: settings.interface.clone(),
            source,
        })?;
        let attachment = Attachment::new(settings)?;
        let mut sockets = Vec::new();
        for queue in settings.queues.0..=settings.queues.1 {
            let socket = Socket::bind(&attachment, settings, queue)?;
            let (interface, mode) = (settings.interface.as_str(), attachment.mode);
            tracing::info!(interface, queue, ?mode, zero_copy = socket.is_zero_copy(), "AF_XDP");
            sockets.push(Some(socket));
        }
        Ok(Self { sockets, attachment: Some(attachment), watch, behind: false, stalled: None })
    }

    pub(super) fn queues(&self) -> usize {
        self.sockets.len()
    }

    /// The socket; for the first queue, also what tells that the interface is gone.
    pub(super) fn fds(&self, queue: usize) -> [Option<BorrowedFd<'_>>; 2] {
        let socket = self.sockets.get(queue).and_then(Option::as_ref).map(Socket::as_fd);
        let watch = (queue == 0 && socket.is_some()).then(|| self.watch.as_fd());
        [socket, watch]
    }

    pub(super) fn accepts(&self) -> Option<Offloads> {
        self.attachment.is_some().then_some(Offloads::NONE)
    }

    pub(super) fn close(&mut self) {
        self.sockets.fill_with(|| None);
        self.attachment = None;
        self.behind = false;
    }

    /// Calls the kernel once more for frames that it did not take.
    ///
    /// # Returns
    /// Whether it is to be called again; not while the interface is down, whose changes wake its first queue.
    #[cold]
    fn catch_up(&mut self) -> Result<bool, Fault> {
        self.behind = false;
        let mut busy = false;
        for socket in self.sockets.iter().flatten() {
            let flushed = socket.kick(1).map_err(not_sent)?;
            self.behind |= flushed != Flushed::All;
            busy |= flushed == Flushed::Busy;
        }
        if !busy {
            self.stalled = None;
        }
        Ok(busy)
    }

    /// Whether a busy NIC has taken a frame, or got one to take, within our patience.
    fn moves(&mut self) -> bool {
        let waiting = self.sockets.iter().flatten().map(Socket::waiting).sum();
        let same = self.stalled.filter(|(_, before)| *before == waiting);
        let (since, _) = *self.stalled.insert(same.unwrap_or_else(|| (Instant::now(), waiting)));
        since.elapsed() < PATIENCE
    }

    /// Whether frames are waiting, to be received or to be sent.
    ///
    /// # Errors
    /// The interface is gone.
    pub(super) fn has_frames(&mut self, queue: usize) -> Result<bool, Fault> {
        let busy = self.behind && self.catch_up()? && self.moves();
        let Some(socket) = self.sockets.get(queue).and_then(Option::as_ref) else { return Ok(false) };
        if queue == 0 {
            self.watch.drain();
        }
        socket.check().map_err(|source| Fault::Io { operation: "receive from the AF_XDP socket", source })?;
        Ok(busy || socket.received() > 0)
    }

    #[inline]
    pub(super) fn poll(
        &mut self,
        queue: usize,
        deliver: &mut dyn FnMut(&Batch<'_>) -> usize,
    ) -> Result<Polled, Fault> {
        if self.behind {
            self.catch_up()?;
        }
        let Some(socket) = self.sockets.get_mut(queue).and_then(Option::as_mut) else {
            return Ok(Polled::default());
        };
        #[expect(clippy::cast_possible_truncation, reason = "BATCH fits")]
        let received = socket.received().min(BATCH as u32);
        let mut batch = Batch::new();
        for ahead in 0..received {
            let frame = socket.frame(ahead);
            if frame.len() < MIN_FRAME {
                if batch.is_empty() {
                    drop(batch);
                    socket.give_back(1);
                    return Ok(Polled { unfit: Some(Unfit::Short), ..Polled::default() });
                }
                break;
            }
            if batch.push(Header::NONE, Offloads::NONE, frame.len(), &[frame]).is_err() {
                break;
            }
        }
        let lent = batch.len();
        if lent == 0 {
            return Ok(Polled::default());
        }
        let taken = deliver(&batch).min(lent);
        drop(batch);
        #[expect(clippy::cast_possible_truncation, reason = "at most BATCH")]
        socket.give_back(taken as u32);
        Ok(Polled { lent, taken, unfit: None })
    }

    #[inline]
    pub(super) fn push(&mut self, queue: usize, batch: &Batch<'_>) -> Result<Pushed, Fault> {
        let count = self.sockets.len().max(1);
        let Some(socket) = self.sockets.get_mut(queue % count).and_then(Option::as_mut) else {
            return Ok(Pushed::default());
        };
        socket.reclaim();
        let mut pushed = Pushed::default();
        for (frame, pieces) in batch.iter() {
            let sent = socket.send(frame.length, |mut target| {
                for piece in pieces {
                    target = target.skip(copy(*piece, target));
                }
            });
            match sent {
                Sent::Queued => {}
                Sent::Full => break,
                Sent::TooLong => pushed.refused += 1,
            }
            pushed.taken += 1;
        }
        self.behind |= socket.flush().map_err(not_sent)? != Flushed::All;
        Ok(pushed)
    }
}

fn not_sent(source: std::io::Error) -> Fault {
    Fault::Io { operation: "send to the AF_XDP socket", source }
}
