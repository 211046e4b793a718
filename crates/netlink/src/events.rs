//! Waiting until something is so, woken by what the kernel announces.
//!
//! An [`Events`] is subscribed from the moment it is opened, so whoever opens it before acting misses nothing. What
//! an event says is not read: it is a reason to look again, and a lost one (`ENOBUFS`) is too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

use crate::Error;

/// `RTMGRP_LINK` (`linux/rtnetlink.h`).
const LINKS: u32 = 1;
/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const ADDRESSES: u32 = 0x10 | 0x100;
/// `RTMGRP_IPV6_ROUTE`
const ROUTES: u32 = 0x400;
/// The group the kernel itself sends uevents to (`lib/kobject_uevent.c`); udev's are in 2.
const DEVICES: u32 = 1;

/// A subscription to kernel events.
#[derive(Debug)]
pub struct Events {
    socket: OwnedFd,
}

impl Events {
    /// Changes of links of the calling thread's network namespace.
    pub fn of_links() -> Result<Self, Error> {
        // No protocol is protocol 0, NETLINK_ROUTE.
        Self::open(None, LINKS)
    }

    /// Addresses that come to links of the calling thread's network namespace, change and go.
    pub fn of_addresses() -> Result<Self, Error> {
        Self::open(None, ADDRESSES)
    }

    /// IPv6 routes that come and go in the calling thread's network namespace, those to its own addresses included.
    pub fn of_routes() -> Result<Self, Error> {
        Self::open(None, ROUTES)
    }

    /// Devices that come and go, and drivers that take and leave them. Links count as devices, in the calling thread's
    /// network namespace.
    pub fn of_devices() -> Result<Self, Error> {
        Self::open(Some(netlink::KOBJECT_UEVENT), DEVICES)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> Result<Self, Error> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let failed = |errno: rustix::io::Errno| Error::Open(errno.into());
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)
            .map_err(failed)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Asks `probe` now and after every event until it answers; none when `limit` is over.
    pub fn until<T, E: From<Error>>(
        &self,
        limit: Duration,
        mut probe: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = probe()? {
                return Ok(Some(answer));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left).map_err(Error::Events)?;
        }
    }

    /// Returns when there was an event, or no time is left.
    fn wait(&self, left: Duration) -> io::Result<()> {
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => self.drain(),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Forgets the events so far, for who waits for the descriptor to become readable and then looks for itself.
    ///
    /// # Errors
    /// If the socket fails; a lost event is none.
    pub fn drain(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok(_) | Err(rustix::io::Errno::INTR | rustix::io::Errno::NOBUFS) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Events {
    /// Non-blocking; readable when there was an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_so_already_is_not_waited_for() {
        let events = Events::of_links().unwrap();
        let answer: Result<_, Error> = events.until(Duration::ZERO, || Ok(Some(7)));
        assert_eq!(answer.unwrap(), Some(7));
    }

    #[test]
    fn what_never_becomes_so_ends_with_the_limit() {
        let events = Events::of_devices().unwrap();
        let mut asked = 0;
        let answer: Result<Option<()>, Error> = events.until(Duration::from_millis(5), || {
            asked += 1;
            Ok(None)
        });
        assert_eq!(answer.unwrap(), None);
        assert!(asked >= 2, "asked at the beginning and at the end");
    }
}
