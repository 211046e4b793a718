//! Bytes and descriptors over a SOCK_SEQPACKET socket: one message at a time, bounded, no copies kept.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};

use super::{ControlError, Received};

/// The largest message in bytes.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;

/// The most descriptors in one message: the kernel's SCM_MAX_FD (`include/net/scm.h`).
pub(super) const MAX_DESCRIPTORS: usize = 253;

/// The most descriptors of a configuration: more than a guest with the most queues needs.
const MAX_ALL: usize = 2048;

/// A message that says no more than that its descriptors belong to the next.
const MORE: &[u8] = br#"{"more":true}"#;

/// A message's bytes and descriptors.
type Parts = (Vec<u8>, Vec<OwnedFd>);

/// Whether to wait for a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Forever,
    No,
}

pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (domain, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(domain, kind, SocketFlags::CLOEXEC, None)?)
}

pub(super) fn check(socket: &OwnedFd) -> io::Result<()> {
    if sockopt::socket_type(socket)? == SocketType::SEQPACKET {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket of another type"))
    }
}

pub(super) fn send(
    socket: &OwnedFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    if message.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(ControlError::TooLarge);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(ControlError::TooLarge);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|error| ControlError::Send(error.into()))?;
    Ok(())
}

/// Sends a message with more descriptors than one may have: those that do not fit go before it.
pub(super) fn send_all(
    socket: &OwnedFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let mut rest = descriptors;
    while let Some((first, more)) =
        rest.split_at_checked(MAX_DESCRIPTORS).filter(|(_, more)| !more.is_empty())
    {
        send(socket, MORE, first)?;
        rest = more;
    }
    send(socket, message, rest)
}

/// Waits for what [`send_all`] sent.
pub(super) fn receive_all(socket: &OwnedFd) -> Result<Received<Parts>, ControlError> {
    let mut all = Vec::new();
    loop {
        let (message, descriptors) = match receive(socket, Wait::Forever)? {
            Received::Message(parts) => parts,
            Received::Nothing => return Ok(Received::Nothing),
            Received::Closed => return Ok(Received::Closed),
        };
        // Each of them has some, so there is an end.
        let without = descriptors.is_empty();
        all.extend(descriptors);
        if message != MORE {
            return Ok(Received::Message((message, all)));
        }
        if without || all.len() > MAX_ALL {
            return Err(ControlError::TooLarge);
        }
    }
}

/// One message and its descriptors. Those that do not fit are closed by the kernel.
pub(super) fn receive(socket: &OwnedFd, wait: Wait) -> Result<Received<Parts>, ControlError> {
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = match wait {
        Wait::Forever => RecvFlags::CMSG_CLOEXEC,
        Wait::No => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags)
    });
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Received::Nothing),
        // Closed with something of ours unread, which is closed all the same.
        Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
        Err(error) => return Err(ControlError::Receive(error.into())),
    };
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(ControlError::TooLarge);
    }
    // Neither side sends empty messages, so no bytes means the end.
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(Received::Closed);
    }
    message.truncate(received.bytes);
    Ok(Received::Message((message, descriptors)))
}
