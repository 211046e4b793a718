//! Has a link finish its checksums before it sends (`ethtool -K LINK tx off`).
//!
//! The kernel leaves checksums of what it sends into a veth to the other side, and AF_XDP cannot say that they are
//! missing: the guest would drop such packets.
#![expect(unsafe_code, reason = "the ethtool ioctl takes a pointer in an ifreq")]

use std::io;
use std::os::fd::AsRawFd as _;

use net_types::IfName;
use rustix::net::{AddressFamily, SocketType};

/// `ETHTOOL_STXCSUM` (`linux/ethtool.h`).
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches checksum offload of what `link` sends off. It is looked up in the calling thread's network namespace.
pub(super) fn finish_checksums(link: &IfName) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = Value { command: SET_TX_CHECKSUM, data: 0 };
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.as_str().bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads the ifreq and the value that it points to; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
