#![expect(
    unsafe_code,
    reason = "recvmmsg and sendmmsg take arrays of pointers; no crate lends its buffers without allocating"
)]
//! Many datagrams per system call: `recvmmsg(2)` and `sendmmsg(2)` over buffers that are allocated once.
//!
//! A [`Batch`] belongs to one thread. [`Batch::receive`] fills its slots, the caller writes replies beside the
//! queries, [`Batch::send`] sends them to where the queries came from, and from the address they were sent to
//! (the packet-info control message is handed back), which matters when the socket listens on every address.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::ptr;

use crate::wire::MAX_UDP;

/// Datagrams per system call: enough to hide its cost, few enough to stay in the cache.
pub(super) const SLOTS: usize = 64;
/// The same as the kernel takes it.
const SLOTS_U32: libc::c_uint = 64;
const _: () = assert!(SLOTS_U32 as usize == SLOTS);
/// Octets of a query that are looked at; longer ones are cut and fail to parse. Signed queries take about 300.
const MAX_QUERY: usize = 2048;
/// Octets for one packet-info control message (`CMSG_SPACE(sizeof(struct in6_pktinfo))` is 40).
const CONTROL: usize = 64;

/// One datagram and its reply. Never moved once [`Batch::new`] has pointed at it.
#[repr(C)]
struct Slot {
    peer: libc::sockaddr_storage,
    control: Control,
    query: [u8; MAX_QUERY],
    reply: [u8; MAX_UDP],
    received: libc::iovec,
    to_send: libc::iovec,
}

/// Control messages must be aligned like their header.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Buffers for [`SLOTS`] datagrams.
pub(super) struct Batch {
    slots: Box<[Slot]>,
    incoming: Box<[libc::mmsghdr]>,
    outgoing: Box<[libc::mmsghdr]>,
    filled: usize,
    ready: usize,
    /// The socket listens on every address: replies must say which one they come from.
    wildcard: bool,
}

impl Batch {
    /// Allocates the buffers.
    pub(super) fn new(wildcard: bool) -> Self {
        // SAFETY: a slot is integers, byte arrays and nullable pointers, for all of which zero is a valid value.
        let empty = || unsafe { mem::zeroed::<Slot>() };
        // SAFETY: as above.
        let header = || unsafe { mem::zeroed::<libc::mmsghdr>() };
        Self {
            slots: (0..SLOTS).map(|_| empty()).collect(),
            incoming: (0..SLOTS).map(|_| header()).collect(),
            outgoing: (0..SLOTS).map(|_| header()).collect(),
            filled: 0,
            ready: 0,
            wildcard,
        }
    }

    /// Waits for datagrams; returns how many there are. Zero means that a signal came or the socket was shut down.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (slot, message) in self.slots.iter_mut().zip(self.incoming.iter_mut()) {
            slot.received = libc::iovec { iov_base: slot.query.as_mut_ptr().cast(), iov_len: MAX_QUERY };
            let header = &mut message.msg_hdr;
            header.msg_name = ptr::from_mut(&mut slot.peer).cast();
            header.msg_namelen = size_of_u32::<libc::sockaddr_storage>();
            header.msg_iov = &raw mut slot.received;
            header.msg_iovlen = 1;
            header.msg_control =
                if self.wildcard { slot.control.0.as_mut_ptr().cast() } else { ptr::null_mut() };
            header.msg_controllen = if self.wildcard { CONTROL } else { 0 };
        }
        (self.filled, self.ready) = (0, 0);
        // SAFETY: every header points at a name, one iovec and a control buffer inside `self.slots`, with their true
        // sizes; they live, and nobody else touches them, until the call returns.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.incoming.as_mut_ptr(),
                SLOTS_U32,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        match usize::try_from(got) {
            Ok(count) => {
                self.filled = count.min(SLOTS);
                Ok(self.filled)
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(0),
                error => Err(error),
            },
        }
    }

    /// The query in a slot, the buffer for its reply, and who asked.
    pub(super) fn slot(&mut self, at: usize) -> Option<(&[u8], &mut [u8], IpAddr)> {
        let message = self.incoming.get(at).filter(|_| at < self.filled)?;
        let slot = self.slots.get_mut(at)?;
        let query = slot.query.get(..usize::try_from(message.msg_len).ok()?)?;
        Some((query, &mut slot.reply, ip_of(&slot.peer)))
    }

    /// Marks the first `length` octets of a slot's reply buffer to be sent.
    pub(super) fn reply(&mut self, at: usize, length: usize) {
        let (Some(slot), Some(received), Some(message)) =
            (self.slots.get_mut(at), self.incoming.get(at), self.outgoing.get_mut(self.ready))
        else {
            return;
        };
        slot.to_send = libc::iovec { iov_base: slot.reply.as_mut_ptr().cast(), iov_len: length.min(MAX_UDP) };
        message.msg_hdr = received.msg_hdr;
        message.msg_hdr.msg_iov = &raw mut slot.to_send;
        message.msg_hdr.msg_flags = 0;
        if self.wildcard {
            forget_interface(&mut slot.control.0, message.msg_hdr.msg_controllen);
        }
        self.ready += 1;
    }

    /// Sends the marked replies. One that cannot be sent is dropped, as a network would drop it; returns how many.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> usize {
        let (mut at, mut dropped) = (0, 0);
        while let Some(rest) = self.outgoing.get_mut(at..self.ready).filter(|rest| !rest.is_empty()) {
            let count = libc::c_uint::try_from(rest.len()).unwrap_or_default();
            // SAFETY: `rest` are headers made by `reply`: their pointers lead into `self.slots`, whose contents the
            // call only reads.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            match usize::try_from(sent) {
                Ok(sent @ 1..) => at += sent,
                // The first of the rest failed (its route is gone, its port unreachable): go on after it.
                _ => {
                    at += 1;
                    dropped += 1;
                }
            }
        }
        self.ready = 0;
        dropped
    }
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or_default()
}

/// The peer's address; IPv4 clients of an IPv6 socket count as what they are.
fn ip_of(peer: &libc::sockaddr_storage) -> IpAddr {
    let address = ptr::from_ref(peer);
    match i32::from(peer.ss_family) {
        libc::AF_INET => {
            // SAFETY: a sockaddr_storage is large enough and aligned for every sockaddr, and the family says which.
            let v4 = unsafe { &*address.cast::<libc::sockaddr_in>() };
            IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*address.cast::<libc::sockaddr_in6>() };
            IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)).to_canonical()
        }
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// Clears the interface index in a packet-info message, so that the reply takes the route to the client, not the
/// interface the query came by. The layout is `struct cmsghdr` (16 octets), then `struct in_pktinfo` (index first)
/// or `struct in6_pktinfo` (index after the address).
fn forget_interface(control: &mut [u8; CONTROL], length: usize) {
    const HEADER: usize = 16;
    let word = |at: usize| control.get(at..)?.first_chunk::<4>().map(|four| i32::from_ne_bytes(*four));
    let index = match (word(8), word(12)) {
        (Some(libc::IPPROTO_IP), Some(libc::IP_PKTINFO)) => HEADER,
        (Some(libc::IPPROTO_IPV6), Some(libc::IPV6_PKTINFO)) => HEADER + 16,
        _ => return,
    };
    if let Some(place) = control.get_mut(index..index + 4).filter(|_| length >= index + 4) {
        place.fill(0);
    }
}
