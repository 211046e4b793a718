//! A packet socket on the host's end of a guest's link, with a filter in the kernel.
//!
//! The filter lets through what [`sightings`] can read and nothing else, so that a guest's traffic costs a few
//! instructions a frame and no wake-up: ARP and neighbour discovery from the guest, DHCP answers to it. Frames
//! with a VLAN tag belong to another network than the NIC's and stay out.
#![expect(unsafe_code, reason = "sockaddr_ll and SO_ATTACH_FILTER have no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
    BPF_W, sock_filter, sock_fprog, sockaddr_ll, socklen_t,
};
use net_types::{IfName, Mac};

/// No frame of interest is longer.
pub(super) const FRAME_BYTES: usize = 1600;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    FromGuest,
    ToGuest,
}

/// A packet socket bound to one link.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: OwnedFd,
    own: Mac,
}

impl PacketSocket {
    /// Opens one on `link` of the calling thread's network namespace. Non-blocking.
    pub(super) fn open(link: &IfName) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers are passed. Protocol 0 receives nothing until bind, so the filter comes first.
        let socket = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the kernel has just returned it, so it is open and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let index = rustix::net::netdevice::name_to_index(&socket, link.as_str())?;
        attach_filter(&socket)?;
        let own = bind(&socket, index)?;
        Ok(Self { socket, own })
    }

    /// The MAC of the link itself, which is the host's, not the guest's.
    pub(super) fn own(&self) -> Mac {
        self.own
    }

    /// The next frame; `WouldBlock` if there is none.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<(&'a [u8], Direction)> {
        let mut from = address();
        let mut length = ADDRESS_BYTES;
        // SAFETY: buffer and address are valid for writes of the lengths given.
        let received = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let received = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
        let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
        let direction = if outgoing { Direction::ToGuest } else { Direction::FromGuest };
        Ok((buffer.get(..received).unwrap_or_default(), direction))
    }

    /// Sends a whole frame to the guest.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: frame is valid for reads of its length.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a structure of 20 bytes")]
const ADDRESS_BYTES: socklen_t = size_of::<sockaddr_ll>() as socklen_t;

fn address() -> sockaddr_ll {
    // SAFETY: all fields are integers, for which zero is a value.
    unsafe { MaybeUninit::<sockaddr_ll>::zeroed().assume_init() }
}

/// Binds to the link with `index`, for all protocols. Returns the link's own MAC.
fn bind(socket: &OwnedFd, index: u32) -> io::Result<Mac> {
    const ALL_PROTOCOLS: u16 = 0x0003u16.to_be();
    let mut link = address();
    link.sll_family = libc::AF_PACKET.try_into().map_err(io::Error::other)?;
    link.sll_protocol = ALL_PROTOCOLS;
    link.sll_ifindex = index.try_into().map_err(io::Error::other)?;
    // SAFETY: link is valid for reads of its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const link).cast(), ADDRESS_BYTES) })?;
    let mut length = ADDRESS_BYTES;
    // SAFETY: link is valid for writes of the length given.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut link).cast(), &raw mut length) })?;
    if usize::from(link.sll_halen) != 6 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the link is no Ethernet link"));
    }
    Mac::try_from(&link.sll_addr[..6]).map_err(io::Error::other)
}

fn attach_filter(socket: &OwnedFd) -> io::Result<()> {
    let mut program = filter();
    let len = program.len().try_into().map_err(io::Error::other)?;
    let program = sock_fprog { len, filter: program.as_mut_ptr() };
    #[expect(clippy::cast_possible_truncation, reason = "a structure of 16 bytes")]
    let length = size_of::<sock_fprog>() as socklen_t;
    // SAFETY: program and the instructions it points to are valid for reads; the kernel copies them.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    })?;
    Ok(())
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Offsets for the kernel's own knowledge of a frame (`linux/filter.h`, SKF_AD_*).
const AD: u32 = 0xffff_f000;
const AD_PACKET_TYPE: u32 = AD + 4;
const AD_VLAN_TAG_PRESENT: u32 = AD + 48;
const ACCEPT: u32 = 0xffff;
const DROP: u32 = 0;

/// The filter, in classic BPF. A jump skips `yes` or `no` instructions; every branch ends in one of two returns,
/// so offsets are computed from an instruction's own place.
fn filter() -> Vec<sock_filter> {
    /// Where the two returns are.
    const ACCEPT_AT: u8 = 27;
    const DROP_AT: u8 = 28;
    let to = |target: u8, from: u8| target - from - 1;
    let jump = |at: u8, test: u32, value: u32, yes: u8, no: u8| sock_filter {
        code: code(BPF_JMP | test | BPF_K),
        jt: to(yes, at),
        jf: to(no, at),
        k: value,
    };
    vec![
        load(BPF_W, AD_VLAN_TAG_PRESENT),
        jump(1, BPF_JEQ, 0, 2, DROP_AT),
        load(BPF_W, AD_PACKET_TYPE),
        jump(3, BPF_JEQ, libc::PACKET_OUTGOING.into(), 12, 4),
        // From the guest: ARP, neighbour solicitations and advertisements.
        load(BPF_H, 12),
        jump(5, BPF_JEQ, 0x0806, ACCEPT_AT, 6),
        jump(6, BPF_JEQ, 0x86dd, 7, DROP_AT),
        load(BPF_B, 14 + 6),
        jump(8, BPF_JEQ, 58, 9, DROP_AT),
        load(BPF_B, 14 + 40),
        jump(10, BPF_JEQ, 135, ACCEPT_AT, 11),
        jump(11, BPF_JEQ, 136, ACCEPT_AT, DROP_AT),
        // To the guest: DHCPv4 (port 68) and DHCPv6 (port 546).
        load(BPF_H, 12),
        jump(13, BPF_JEQ, 0x0800, 14, 22),
        load(BPF_B, 14 + 9),
        jump(15, BPF_JEQ, 17, 16, DROP_AT),
        load(BPF_H, 14 + 6),
        jump(17, BPF_JSET, 0x1fff, DROP_AT, 18),
        statement(BPF_LDX | BPF_B | BPF_MSH, 14),
        statement(BPF_LD | BPF_H | BPF_IND, 14 + 2),
        jump(20, BPF_JEQ, 68, ACCEPT_AT, 21),
        statement(BPF_RET | BPF_K, DROP),
        jump(22, BPF_JEQ, 0x86dd, 23, DROP_AT),
        load(BPF_B, 14 + 6),
        jump(24, BPF_JEQ, 17, 25, DROP_AT),
        load(BPF_H, 14 + 40 + 2),
        jump(26, BPF_JEQ, 546, ACCEPT_AT, DROP_AT),
        statement(BPF_RET | BPF_K, ACCEPT),
        statement(BPF_RET | BPF_K, DROP),
    ]
}

fn load(size: u32, offset: u32) -> sock_filter {
    statement(BPF_LD | size | BPF_ABS, offset)
}

fn statement(operation: u32, value: u32) -> sock_filter {
    sock_filter { code: code(operation), jt: 0, jf: 0, k: value }
}

#[expect(clippy::cast_possible_truncation, reason = "opcodes of classic BPF have 16 bits")]
fn code(operation: u32) -> u16 {
    operation as u16
}
