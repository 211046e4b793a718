//! Sleeping until a guest kicks, a frame arrives, or the worker is called: epoll, edge-triggered.
//!
//! Edges need no read of the eventfd, so a kick costs one system call, not two. A descriptor must be removed before
//! it is dropped: the VMM holds the same open file, which would go on making events.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::fault::Fault;

/// What became readable: a source queue of an end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// The link's place in the worker.
    pub link: usize,
    /// Which end.
    pub side: usize,
    /// Which source queue.
    pub queue: usize,
}

/// How a wait has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// There were events, or it was only a look.
    Out,
    /// By a signal.
    Interrupted,
}

/// The token of the worker's own eventfd.
const CALL: u64 = u64::MAX;

impl Token {
    fn pack(self) -> u64 {
        (self.link as u64) << 32 | (self.side as u64) << 16 | self.queue as u64
    }

    fn unpack(data: u64) -> Option<Self> {
        (data != CALL).then_some(Self {
            link: (data >> 32) as usize,
            side: (data >> 16 & 0xffff) as usize,
            queue: (data & 0xffff) as usize,
        })
    }
}

/// A worker's epoll.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    call: OwnedFd,
}

impl Poller {
    /// A new one, and the eventfd that calls it.
    pub fn new() -> Result<(Self, OwnedFd), Fault> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(Fault::io("epoll_create"))?;
        let call =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(Fault::io("eventfd"))?;
        epoll::add(&epoll, &call, EventData::new_u64(CALL), EventFlags::IN | EventFlags::ET)
            .map_err(Fault::io("epoll_ctl"))?;
        let caller = call.try_clone().map_err(|source| Fault::Io { operation: "dup", source })?;
        Ok((Self { epoll, call }, caller))
    }

    /// Watches a descriptor.
    pub fn add(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), Fault> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.pack()), EventFlags::IN | EventFlags::ET)
            .map_err(Fault::io("epoll_ctl"))
    }

    /// Stops watching it.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::debug!(%error, "a descriptor was not watched");
        }
    }

    /// Waits for events, or only looks for some, and hands each to `wake`.
    pub fn wait(&self, sleep: bool, mut wake: impl FnMut(Token)) -> Waited {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 64];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, &mut events, (!sleep).then_some(&now)) {
            Ok((ready, _)) => {
                ready.iter().filter_map(|event| Token::unpack(event.data.u64())).for_each(&mut wake);
            }
            Err(rustix::io::Errno::INTR) => return Waited::Interrupted,
            Err(error) => tracing::error!(%error, "epoll_wait failed"),
        }
        Waited::Out
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }
}
