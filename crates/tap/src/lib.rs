//! Tap links (`/dev/net/tun`): make them persistent, open their queues, set what a queue may carry.
//!
//! A plugin makes a link with [`create`], once, owned by the user a VMM runs as; the supervisor opens its queues
//! ([`Queue::open`]) and lends them to the VMM as descriptors, which turns them back with [`Queue::from`] and sets
//! [`Offloads`] as the guest negotiates them. The link is looked up in the calling thread's network namespace when
//! it is made or opened; a queue stays usable from anywhere.
//!
//! Addresses, MTU, state and bridging of the link are netlink's business, not this crate's.

mod sys;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use net_types::IfName;
use sys::flags;

const DEVICE: &str = "/dev/net/tun";

/// The length in bytes of the header in front of each frame on a [`Queue`]: `struct virtio_net_hdr_v1`
/// (virtio 1.2, 5.1.6), with its `num_buffers`.
pub const VNET_HEADER_LENGTH: u8 = 12;

/// How a persistent tap is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTap {
    /// Its name.
    pub name: IfName,
    /// The user who may open it; `None` leaves it to holders of CAP_NET_ADMIN.
    pub owner: Option<u32>,
    /// The group whose members may open it.
    pub group: Option<u32>,
    /// Whether more than one queue can be opened (up to 256, `MAX_TAP_QUEUES` in the kernel).
    pub multi_queue: bool,
}

/// What failed on a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` could not be opened.
    #[error("cannot open {DEVICE}")]
    Device(#[source] io::Error),
    /// A link of this name exists already.
    #[error("{name} exists already")]
    Exists {
        /// The name.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no persistent tap of this name in this namespace.
    #[error("there is no tap {0}")]
    NotFound(IfName),
    /// TUNSETIFF failed otherwise.
    #[error("TUNSETIFF failed on {name}")]
    SetInterface {
        /// The name.
        name: IfName,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another request failed.
    #[error("{operation} failed")]
    Ioctl {
        /// The request's name.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl TapError {
    fn ioctl(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Ioctl { operation, source }
    }
}

/// Makes a persistent tap, down and without carrier.
///
/// # Errors
/// [`TapError::Exists`] if a link has that name; then that link is untouched. After any other error no link is left.
pub fn create(tap: &NewTap) -> Result<(), TapError> {
    let NewTap { name, owner, group, multi_queue } = tap;
    let device = open_device()?;
    let fd = device.as_fd();
    sys::set_interface(fd, name, queue_flags(*multi_queue) | flags::EXCLUSIVE).map_err(|source| {
        if source.raw_os_error() == Some(libc::EBUSY) {
            TapError::Exists { name: name.clone(), source }
        } else {
            TapError::SetInterface { name: name.clone(), source }
        }
    })?;
    if let Some(uid) = owner {
        sys::set_owner(fd, *uid).map_err(TapError::ioctl("TUNSETOWNER"))?;
    }
    if let Some(gid) = group {
        sys::set_group(fd, *gid).map_err(TapError::ioctl("TUNSETGROUP"))?;
    }
    // Last, so that the kernel takes the link away with the descriptor if anything before failed.
    sys::set_persistent(fd, true).map_err(TapError::ioctl("TUNSETPERSIST"))
}

/// One queue of a tap: frames in and out, each behind a header of [`VNET_HEADER_LENGTH`] bytes.
///
/// The descriptor is non-blocking. Read and write whole frames on it; the kernel drops what does not fit.
#[derive(Debug)]
pub struct Queue {
    file: File,
}

impl Queue {
    /// Opens one (more) queue of the persistent tap `name`. `multi_queue` is as it was when the tap was made.
    ///
    /// # Errors
    /// [`TapError::NotFound`] if there is no such tap: none is made.
    pub fn open(name: &IfName, multi_queue: bool) -> Result<Self, TapError> {
        let file = open_device()?;
        let fd = file.as_fd();
        sys::set_interface(fd, name, queue_flags(multi_queue))
            .map_err(|source| TapError::SetInterface { name: name.clone(), source })?;
        // A privileged TUNSETIFF makes what it does not find; that link goes with the descriptor.
        let found = sys::interface_flags(fd).map_err(TapError::ioctl("TUNGETIFF"))?;
        if found & flags::PERSIST == 0 {
            return Err(TapError::NotFound(name.clone()));
        }
        sys::set_vnet_header_length(fd, VNET_HEADER_LENGTH.into())
            .map_err(TapError::ioctl("TUNSETVNETHDRSZ"))?;
        Ok(Self { file })
    }

    /// Takes a descriptor that another process got from [`Queue::open`], and checks that it is what it should be.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] if it is no tap queue with a virtio-net header.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let file = File::from(fd);
        let found = sys::interface_flags(file.as_fd()).map_err(TapError::ioctl("TUNGETIFF"))?;
        if found & flags::VNET_HDR == 0 || found & flags::TAP == 0 {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not a tap with a virtio-net header");
            return Err(TapError::Ioctl { operation: "TUNGETIFF", source });
        }
        sys::set_vnet_header_length(file.as_fd(), VNET_HEADER_LENGTH.into())
            .map_err(TapError::ioctl("TUNSETVNETHDRSZ"))?;
        Ok(Self { file })
    }

    /// Says which frames the reader of this queue can take unfinished. Holds for the whole link.
    ///
    /// # Errors
    /// The kernel refuses bits it does not know (USO before 6.2) with EINVAL.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<(), TapError> {
        sys::set_offload(self.as_fd(), offloads.bits()).map_err(TapError::ioctl("TUNSETOFFLOAD"))
    }

    /// Lets frames come on a queue that was [detached](Queue::detach); the last of those that get any.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] if it is not detached.
    pub fn attach(&self) -> Result<(), TapError> {
        sys::set_queue(self.as_fd(), flags::ATTACH_QUEUE).map_err(TapError::ioctl("TUNSETQUEUE"))
    }

    /// Lets no more frames come on this queue of several; those that wait are dropped.
    ///
    /// # Errors
    /// [`TapError::Ioctl`] if it is detached already, or the link's only queue.
    pub fn detach(&self) -> Result<(), TapError> {
        sys::set_queue(self.as_fd(), flags::DETACH_QUEUE).map_err(TapError::ioctl("TUNSETQUEUE"))
    }

    /// The file to read and write frames on.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Queue> for OwnedFd {
    fn from(queue: Queue) -> Self {
        queue.file.into()
    }
}

/// What the reader of a tap can take unfinished: the kernel does the rest of the work itself.
/// TSO and USO need `checksum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Frames whose checksum is only partly computed.
    pub checksum: bool,
    /// TCP over IPv4 segments of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 segments of up to 64 KiB.
    pub tso6: bool,
    /// UDP datagrams over IPv4 and IPv6 still to be segmented.
    pub uso: bool,
}

impl Offloads {
    /// The `TUN_F_*` bits of `if_tun.h`. The kernel takes both USO bits or none.
    fn bits(self) -> u32 {
        let Self { checksum, tso4, tso6, uso } = self;
        [(checksum, 0x01), (tso4, 0x02), (tso6, 0x04), (uso, 0x20 | 0x40)]
            .into_iter()
            .filter_map(|(wanted, bits)| wanted.then_some(bits))
            .sum()
    }
}

fn queue_flags(multi_queue: bool) -> u16 {
    let one = flags::TAP | flags::NO_PI | flags::VNET_HDR;
    if multi_queue { one | flags::MULTI_QUEUE } else { one }
}

fn open_device() -> Result<File, TapError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(TapError::Device)
}

#[cfg(test)]
mod tests;
