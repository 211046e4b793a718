//! Notices that an interface was deleted under a socket that only receives.
//!
//! A send says so; a poll does not: the kernel wakes whoever polls an AF_XDP socket whose interface goes away, and then
//! reports no event (`xsk_poll` in `net/xdp/xsk.c`). So changes of links are listened to, by netlink, and every one is a
//! reason to look at the socket, which knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

/// `RTMGRP_LINK` (`linux/rtnetlink.h`).
const LINK_CHANGES: u32 = 1;

/// Becomes readable when a link of the namespace it was made in changes.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Listens in this network namespace.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_CHANGES))?;
        Ok(Self(socket))
    }

    /// Forgets what was heard so far.
    pub fn drain(&self) {
        // What a message says does not matter, nor that some were lost: both are a reason to look.
        while let Ok(_) | Err(Errno::NOBUFS) = rustix::net::recv(&self.0, &mut [0_u8; 1], RecvFlags::DONTWAIT)
        {
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
