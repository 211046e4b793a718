//! The frontend's side of a vhost-user connection: requests out, replies in (vhost-user protocol, "Message Specification").
//!
//! Own code, because a reply may never come: the vhost crate's frontend takes a receive that timed out for one to be
//! repeated, for ever. Here each wait has an end; the socket's own limits, which the supervisor has set, bound each call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;

use crate::control::BACKEND_PATIENCE;

const HEADER: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Requests, with their names for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[expect(non_camel_case_types, reason = "the names of the specification")]
pub(super) enum Request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
}

/// Why a request was not answered as it must be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The socket.
    #[error("{request:?}: the connection broke")]
    Io {
        /// What was asked.
        request: Request,
        /// What the kernel said.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{0:?}: the backend does not answer within {limit} s", limit = BACKEND_PATIENCE.as_secs())]
    Stalled(Request),
    /// The end of the stream.
    #[error("{0:?}: the backend hung up")]
    HungUp(Request),
    /// A reply to something else.
    #[error(
        "{request:?}: the reply has request {number}, flags {flags:#x} and {length} bytes; {expected} were expected"
    )]
    Reply {
        /// What was asked.
        request: Request,
        /// What came.
        number: u32,
        /// Its flags.
        flags: u32,
        /// How long it says it is.
        length: u32,
        /// How long it should be.
        expected: usize,
    },
    /// Told by an acknowledgement.
    #[error("{request:?}: the backend refuses: {code}")]
    Refused {
        /// What was asked.
        request: Request,
        /// What the backend says.
        code: u64,
    },
}

/// The connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    /// Whether every request is acknowledged.
    pub(super) acknowledged: bool,
    patience: Duration,
    /// Until when the backend may answer.
    deadline: Instant,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, patience: Duration) -> Self {
        Self { socket: socket.into(), acknowledged: false, patience, deadline: Instant::now() + patience }
    }

    /// What is asked from now on belongs together: for all of it the backend has as much time as it had for what was
    /// asked before. One that is slow at each of a thousand requests must not hold up a guest's reset for hours.
    pub(super) fn begin(&mut self) {
        self.deadline = Instant::now() + self.patience;
    }

    /// Sends a request that has no reply of its own; waits for its acknowledgement if there are any.
    pub(super) fn tell(
        &mut self,
        request: Request,
        body: &[u8],
        descriptors: &[RawFd],
    ) -> Result<(), ConnectionError> {
        let flags = if self.acknowledged { VERSION | NEED_REPLY } else { VERSION };
        self.send(request, flags, body, descriptors)?;
        if !self.acknowledged {
            return Ok(());
        }
        match u64::from_le_bytes(self.reply(request)?) {
            0 => Ok(()),
            code => Err(ConnectionError::Refused { request, code }),
        }
    }

    /// Sends a request, and waits for the eight bytes of its reply.
    pub(super) fn ask(&mut self, request: Request, body: &[u8]) -> Result<[u8; 8], ConnectionError> {
        self.send(request, VERSION, body, &[])?;
        self.reply(request)
    }

    fn send(
        &mut self,
        request: Request,
        flags: u32,
        body: &[u8],
        descriptors: &[RawFd],
    ) -> Result<(), ConnectionError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock => ConnectionError::Stalled(request),
            _ => ConnectionError::Io { request, source },
        };
        if Instant::now() > self.deadline {
            return Err(ConnectionError::Stalled(request));
        }
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut message: Vec<u8> =
            [request as u32, flags, length].iter().flat_map(|word| word.to_le_bytes()).collect();
        message.extend_from_slice(body);
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            // Descriptors go with the first byte.
            let with = if rest.len() == message.len() { descriptors } else { &[] };
            let sent = match self.socket.send_with_fds(&[rest], with) {
                Ok(sent) => sent,
                Err(error) if error.errno() == libc::EINTR => 0,
                Err(error) => return Err(failed(error.into())),
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Every reply has the request's number and eight bytes; descriptors that come with it are closed by the kernel.
    fn reply(&mut self, request: Request) -> Result<[u8; 8], ConnectionError> {
        let mut message = [0; HEADER + 8];
        let mut filled = 0;
        while filled < message.len() {
            // read(2): the filter on system calls has no recv.
            match rustix::io::retry_on_intr(|| rustix::io::read(&self.socket, &mut message[filled..])) {
                Ok(0) => return Err(ConnectionError::HungUp(request)),
                Ok(more) => filled += more,
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(ConnectionError::Stalled(request)),
                Err(errno) => return Err(ConnectionError::Io { request, source: errno.into() }),
            }
            // One that says a byte now and then does not answer either.
            if filled < message.len() && Instant::now() > self.deadline {
                return Err(ConnectionError::Stalled(request));
            }
            let (head, _) = message.as_chunks::<4>();
            let [number, flags, length] = [0, 1, 2].map(|word: usize| u32::from_le_bytes(head[word]));
            let expected = message.len() - HEADER;
            // Looked at as soon as it is there: what is shorter than it should be never fills the message.
            if filled >= HEADER
                && (number != request as u32
                    || flags & (REPLY | 3) != REPLY | VERSION
                    || usize::try_from(length) != Ok(expected))
            {
                return Err(ConnectionError::Reply { request, number, flags, length, expected });
            }
        }
        let mut body = [0; 8];
        body.copy_from_slice(&message[HEADER..]);
        Ok(body)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
