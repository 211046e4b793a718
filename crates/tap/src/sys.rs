//! The ioctls of `/dev/net/tun`, each as one safe function over a borrowed descriptor.
//!
//! Numbers and semantics: `include/uapi/linux/if_tun.h` and `drivers/net/tun.c`. Nothing here keeps state.
#![expect(unsafe_code, reason = "ioctls that take pointers to ifreq and int have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_ulong};
use net_types::IfName;

/// `_IOW('T', 217, int)`, which libc does not have.
const TUNSETQUEUE: c_ulong = 0x4004_54d9;

/// Flags of a tap queue as TUNSETIFF takes and TUNGETIFF reports them.
pub(crate) mod flags {
    /// Ethernet frames.
    pub(crate) const TAP: u16 = 0x0002;
    /// No extra protocol header in front of a frame.
    pub(crate) const NO_PI: u16 = 0x1000;
    /// A virtio-net header in front of each frame.
    pub(crate) const VNET_HDR: u16 = 0x4000;
    /// More than one queue may be opened.
    pub(crate) const MULTI_QUEUE: u16 = 0x0100;
    /// TUNSETQUEUE: frames may come on the queue.
    pub(crate) const ATTACH_QUEUE: u16 = 0x0200;
    /// TUNSETQUEUE: they may not.
    pub(crate) const DETACH_QUEUE: u16 = 0x0400;
    /// The link outlives its descriptors (reported only).
    pub(crate) const PERSIST: u16 = 0x0800;
    /// Fail if the link exists.
    pub(crate) const EXCLUSIVE: u16 = 0x8000;
}

/// TUNSETIFF: attaches the descriptor to the link `name`, which is made if there is none.
pub(crate) fn set_interface(fd: BorrowedFd<'_>, name: &IfName, flags: u16) -> io::Result<()> {
    let mut request = empty_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: the kernel reads and writes one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// TUNGETIFF: the flags of the link that the descriptor is attached to.
pub(crate) fn interface_flags(fd: BorrowedFd<'_>) -> io::Result<u16> {
    let mut request = empty_request();
    // SAFETY: the kernel writes one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills this arm of the union; any bits are a valid c_short.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned())
}

/// TUNSETQUEUE: whether frames come on this queue of several.
pub(crate) fn set_queue(fd: BorrowedFd<'_>, flags: u16) -> io::Result<()> {
    let mut request = empty_request();
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    // SAFETY: the kernel reads one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETQUEUE as libc::Ioctl, &raw const request) })
}

/// TUNSETOWNER: the user who may open queues without CAP_NET_ADMIN.
pub(crate) fn set_owner(fd: BorrowedFd<'_>, uid: u32) -> io::Result<()> {
    set_value(fd, libc::TUNSETOWNER, uid.into())
}

/// TUNSETGROUP: the group whose members may open queues without CAP_NET_ADMIN.
pub(crate) fn set_group(fd: BorrowedFd<'_>, gid: u32) -> io::Result<()> {
    set_value(fd, libc::TUNSETGROUP, gid.into())
}

/// TUNSETPERSIST: whether the link outlives its last descriptor.
pub(crate) fn set_persistent(fd: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    set_value(fd, libc::TUNSETPERSIST, persistent.into())
}

/// TUNSETOFFLOAD: the `TUN_F_*` bits the reader of this descriptor can handle.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, bits: u32) -> io::Result<()> {
    set_value(fd, libc::TUNSETOFFLOAD, bits.into())
}

/// TUNSETVNETHDRSZ: the length of the virtio-net header, in bytes.
pub(crate) fn set_vnet_header_length(fd: BorrowedFd<'_>, length: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which lives until the call returns.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })
}

fn set_value(fd: BorrowedFd<'_>, request: c_ulong, value: c_ulong) -> io::Result<()> {
    // SAFETY: these requests take their argument by value; no memory is touched.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, value) })
}

fn empty_request() -> libc::ifreq {
    libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
