//! AF_XDP: frames between a NIC's queue and our own memory, past the kernel's network stack.
//!
//! An [`Attachment`] is an XDP program on an interface, which hands the guest's frames to our sockets and leaves all
//! others to the kernel; a [`Socket`] is one queue's rings. The program is held by a BPF link: the kernel takes it off
//! when the link's last descriptor is closed, however the process ended, so there is never a stale one to repair.
//!
//! Made from system calls, without libbpf or libxdp: the program is a dozen instructions, and rustix knows the
//! sockets. Frames are copied between the socket's memory and the guest's; a guest's memory is never lent to a NIC.

mod bpf;
mod program;
mod rings;
mod socket;
mod watch;

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use net_types::{IfName, Mac, VlanId};
use rustix::net::{AddressFamily, SocketType, netdevice};

pub use socket::{Flushed, MOST_RECEIVED, Sent, Socket};
pub use watch::LinkWatch;

/// Which frames of an interface go to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Steering {
    /// Only those to this address; `None`: to any.
    pub mac: Option<Mac>,
    /// With `mac`: group addresses (broadcast, multicast) too. They then no longer reach the host.
    pub groups: bool,
    /// Only those with this outer 802.1Q tag, which they keep.
    pub vlan: Option<VlanId>,
}

/// Where frames go between a NIC and us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpSettings {
    /// The interface.
    pub interface: IfName,
    /// Its queues, first and last.
    pub queues: (u32, u32),
    /// What is the guest's.
    pub steering: Steering,
    /// The network namespace it is in; `None`: the daemon's own.
    pub netns: Option<PathBuf>,
}

/// An AF_XDP end could not be set up, or failed.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// There is no such interface in this namespace.
    #[error("there is no interface {0}")]
    NoInterface(IfName),
    /// Somebody else has an XDP program on it.
    #[error("{0} has an XDP program of somebody else")]
    ProgramBusy(IfName),
    /// Somebody else has an AF_XDP socket on the queue.
    #[error("queue {queue} of {interface} is held by another AF_XDP socket")]
    QueueBusy {
        /// The interface.
        interface: IfName,
        /// The queue.
        queue: u32,
    },
    /// The interface has no such queue.
    #[error("{interface} has no queue {queue}")]
    NoQueue {
        /// The interface.
        interface: IfName,
        /// The queue.
        queue: u32,
    },
    /// The process may not lock as much memory as a queue needs.
    #[error(
        "a queue of {interface} needs {needed} bytes of locked memory, more than RLIMIT_MEMLOCK leaves this user; \
         raise it, or give CAP_IPC_LOCK"
    )]
    LockedMemory {
        /// The interface.
        interface: IfName,
        /// What a queue needs.
        needed: u64,
    },
    /// The kernel refused otherwise.
    #[error("{operation} failed on {interface}")]
    Io {
        /// The call.
        operation: &'static str,
        /// The interface.
        interface: IfName,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where in the kernel an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// On socket buffers, for drivers without XDP.
    Generic,
}

/// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE` (`linux/if_link.h`).
const MODES: [(Mode, u32); 2] = [(Mode::Native, 1 << 2), (Mode::Generic, 1 << 1)];

/// Our program on an interface, until dropped.
#[derive(Debug)]
pub struct Attachment {
    /// The interface's index.
    pub index: NonZeroU32,
    /// How it runs.
    pub mode: Mode,
    map: OwnedFd,
    _link: OwnedFd,
}

impl Attachment {
    /// Puts the program onto the interface; natively if its driver can.
    pub fn new(settings: &XdpSettings) -> Result<Self, XdpError> {
        let interface = &settings.interface;
        let failed = |operation| {
            move |source: io::Error| XdpError::Io { operation, interface: interface.clone(), source }
        };
        let any = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
            .map_err(|errno| failed("socket")(errno.into()))?;
        let index = netdevice::name_to_index(&any, interface.as_str())
            .ok()
            .and_then(NonZeroU32::new)
            .ok_or_else(|| XdpError::NoInterface(interface.clone()))?;
        let map = bpf::xsk_map(settings.queues.1 + 1).map_err(failed("BPF_MAP_CREATE"))?;
        let program =
            bpf::load(&program::steer(&settings.steering, map.as_fd())).map_err(failed("BPF_PROG_LOAD"))?;
        let mut refusal = None;
        for (mode, flags) in MODES {
            match bpf::attach(program.as_fd(), index, flags) {
                Ok(link) => return Ok(Self { index, mode, map, _link: link }),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
                    return Err(XdpError::ProgramBusy(interface.clone()));
                }
                Err(error) => refusal = Some(error),
            }
        }
        Err(failed("BPF_LINK_CREATE")(refusal.unwrap_or_else(|| io::ErrorKind::Unsupported.into())))
    }

    /// Lets a queue's frames go to a socket.
    pub fn deliver(&self, settings: &XdpSettings, queue: u32, socket: &Socket) -> Result<(), XdpError> {
        bpf::update(self.map.as_fd(), queue, socket.as_fd()).map_err(|source| XdpError::Io {
            operation: "BPF_MAP_UPDATE_ELEM",
            interface: settings.interface.clone(),
            source,
        })
    }
}
