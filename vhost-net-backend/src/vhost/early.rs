//! Rings that are enabled before anything was negotiated.
//!
//! QEMU sends SET_VRING_ENABLE before SET_FEATURES, never again, and waits for its acknowledgement; DPDK's virtio-user
//! does so when it reconnects. The vhost crate refuses it, as the protocol lets it, says nothing to the frontend, and keeps
//! the message to itself. So each message's front is looked at before the crate takes it, and such a one is carried out.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut as _};

use super::session::Session;

/// `VHOST_USER_SET_VRING_ENABLE`.
const SET_VRING_ENABLE: u32 = 18;
/// Bytes of it: request, flags, size; then the ring's index and whether to enable it.
const MESSAGE: usize = 20;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A request to enable or disable a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Enable {
    flags: u32,
    index: u32,
    enable: bool,
}

impl Enable {
    /// Waits for a message and looks at it, without taking it. `None` if it is another, or not all there.
    pub(super) fn peek(stream: &UnixStream) -> Option<Self> {
        let mut message = [0; MESSAGE];
        let (length, _) = recv(stream, &mut message, RecvFlags::PEEK).ok()?;
        let [request, flags, _size, index, state] = message.as_chunks::<4>().0 else { return None };
        let whole = length == MESSAGE && u32::from_le_bytes(*request) == SET_VRING_ENABLE;
        whole.then_some(Self {
            flags: u32::from_le_bytes(*flags),
            index: u32::from_le_bytes(*index),
            enable: u32::from_le_bytes(*state) == 1,
        })
    }

    /// Does it, and tells the frontend, if it waits for that.
    pub(super) fn carry_out(self, session: &mut Session, mut stream: &UnixStream) -> Result<()> {
        let Self { flags, index, enable } = self;
        session.set_vring_enable(index, enable)?;
        if flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let mut reply = Vec::with_capacity(MESSAGE);
        for field in [SET_VRING_ENABLE, VERSION | REPLY, 8] {
            reply.extend(field.to_le_bytes());
        }
        // 0: success.
        reply.extend(0_u64.to_le_bytes());
        stream.write_all(&reply).map_err(Error::ReqHandlerError)
    }
}
