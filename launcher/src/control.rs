//! What supervisor and VMM say to each other, over one Unix SOCK_SEQPACKET socket pair.
//!
//! The supervisor keeps one [`Channel`] and gives the other to the VMM process as descriptor [`VMM_CHANNEL_FD`].
//! The first message is a [`VmmConfig`] with every descriptor the VMM may use (where these are more than a message can
//! have, some go before it); from then on the supervisor sends
//! [`Command`]s and the VMM sends [`Event`]s, one JSON object a message. A closed channel means that the peer is
//! gone. Each side takes the other for hostile: sizes are bounded, and what does not parse is an error.
//!
//! [`wire`] has the JSON forms; [`socket`] moves bytes and descriptors. Both ends are of one release, so there is
//! one [`VERSION`] and no negotiation.

mod socket;
mod values;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use net_types::{Mac, PciAddress};
use serde::{Deserialize, Serialize};

pub use values::{DiskSerial, MemorySize, Mtu, PciSlot, QueuePairs, ValueError, VcpuCount};

/// The version of the messages.
pub const VERSION: u32 = 1;

/// The descriptor on which the VMM process finds its end of the channel.
pub const VMM_CHANNEL_FD: i32 = 3;

/// How long a vhost-user backend may take for an answer. Sockets to it have this as their time limits.
pub const BACKEND_PATIENCE: Duration = Duration::from_secs(10);

/// How the VMM process ends, as its exit code. A VMM that was killed has none.
pub mod exit_code {
    /// The guest shut down, or `stop` was asked for.
    pub const CLEAN: u8 = 0;
    /// Something failed; an [`Error`](super::Event::Error) event said what.
    pub const FAILED: u8 = 1;
    /// The guest asked for a reset: start it again.
    pub const RESET: u8 = 10;
}

/// Everything a VMM needs. It opens nothing itself.
#[derive(Debug)]
pub struct VmmConfig {
    /// How many CPUs the guest sees.
    pub vcpus: VcpuCount,
    /// How much memory the guest has.
    pub memory: MemorySize,
    /// The kernel's command line, as is.
    pub command_line: String,
    /// `/dev/kvm`, open for reading and writing.
    pub kvm: OwnedFd,
    /// The kernel, a regular file: bzImage, or ELF with the 64-bit boot protocol.
    pub kernel: OwnedFd,
    /// The initial RAM disk, a regular file.
    pub initrd: Option<OwnedFd>,
    /// A stream socket: what the guest writes to ttyS0 comes out, what is written to it goes to ttyS0.
    pub serial: OwnedFd,
    /// Block devices in the order the guest finds them.
    pub disks: Vec<Disk>,
    /// Network devices in the order the guest finds them.
    pub nics: Vec<Nic>,
    /// Places for PCI functions of the host, which come after the other devices; a number in a [`HostFunction`], a
    /// command or an event is an index into these. A place that is empty can be filled later.
    pub places: Vec<Place>,
    /// The functions that are there from the beginning.
    pub passthrough: Option<Passthrough>,
}

/// A raw disk.
#[derive(Debug)]
pub struct Disk {
    /// A regular file or block device, open for reading, and for writing unless `read_only`.
    pub file: OwnedFd,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// What the guest sees as the disk's serial number.
    pub serial: DiskSerial,
}

/// A network device.
#[derive(Debug)]
pub struct Nic {
    /// Who moves its frames.
    pub backend: NicBackend,
    /// The guest's address.
    pub mac: Mac,
    /// The MTU the guest is told.
    pub mtu: Mtu,
    /// Where the guest finds it; the first free slot if none.
    pub slot: Option<PciSlot>,
}

/// Where the guest may find a PCI function of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Its slot; the first free one if none.
    pub slot: Option<PciSlot>,
}

/// What is on a network device's other side.
#[derive(Debug)]
pub enum NicBackend {
    /// A tap: descriptors from [`tap::Queue::open`], one per queue pair.
    Tap(Vec<OwnedFd>),
    /// A vhost-user backend, which has the guest's memory and rings.
    VhostUser {
        /// The connection to it, if there is one; others come by [`Command::Backend`].
        socket: Option<OwnedFd>,
        /// The most queue pairs the guest may use.
        pairs: QueuePairs,
    },
}

/// PCI functions that the guest gets from the host by VFIO.
#[derive(Debug)]
pub struct Passthrough {
    /// The VFIO container that has the functions' groups, with the IOMMU model of x86.
    pub container: OwnedFd,
    /// The functions, in the order the guest finds them.
    pub functions: Vec<HostFunction>,
}

/// One of them.
#[derive(Debug)]
pub struct HostFunction {
    /// Where it is on the host; messages name it.
    pub address: PciAddress,
    /// Its VFIO group.
    pub group: OwnedFd,
    /// Its VFIO device.
    pub device: OwnedFd,
    /// Which of the configuration's places it is in.
    pub place: usize,
}

/// What a VMM reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The guest's CPUs run.
    Running,
    /// The guest has powered off; the VMM ends.
    Shutdown,
    /// The guest wants to start again, or its CPU gave up (triple fault); the VMM ends.
    Reset,
    /// The VMM ends because of [`Command::Stop`].
    Stopped,
    /// The functions of a [`Command::Plug`] are in their places, and the guest was told.
    Plugged {
        /// The place of each.
        places: Vec<usize>,
    },
    /// They are not, and the VMM has closed them.
    NotPlugged {
        /// The place of each.
        places: Vec<usize>,
        /// The failed operation and its causes, for people.
        message: String,
    },
    /// The guest has let go of a function, and the VMM has closed it.
    Unplugged {
        /// Its place, which is empty.
        place: usize,
    },
    /// The guest's memory and rings are with the vhost-user backend of a NIC.
    BackendConnected {
        /// The NIC's place in [`VmmConfig::nics`].
        nic: usize,
    },
    /// The connection to the vhost-user backend of a NIC is no more: the VMM waits for [`Command::Backend`].
    BackendLost {
        /// The NIC's place in [`VmmConfig::nics`].
        nic: usize,
        /// Why, for people.
        reason: String,
    },
    /// The VMM ends because something failed.
    Error {
        /// The failed operation and its causes, for people.
        message: String,
    },
}

/// What a supervisor asks of a VMM.
#[derive(Debug)]
pub enum Command {
    /// Press the guest's ACPI power button.
    PowerButton,
    /// End at once, whatever the guest does.
    Stop,
    /// Put functions into empty places.
    Plug(Passthrough),
    /// Ask the guest to let go of the function in a place.
    Unplug {
        /// The place.
        place: usize,
    },
    /// Use this connection to the vhost-user backend of a NIC, in place of the one before.
    Backend {
        /// The NIC's place in [`VmmConfig::nics`].
        nic: usize,
        /// A connected stream socket with time limits for receiving and sending.
        socket: OwnedFd,
    },
}

/// What there was to receive.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// A message.
    Message(T),
    /// Nothing yet: wait until the channel's descriptor is readable.
    Nothing,
    /// The peer is gone and everything it said has been received.
    Closed,
}

/// What can go wrong on a channel.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No socket pair could be made.
    #[error("socketpair failed")]
    Pair(#[source] io::Error),
    /// The descriptor is not what a channel is made of.
    #[error("the control descriptor is not a SOCK_SEQPACKET socket")]
    NotAChannel(#[source] io::Error),
    /// The message did not go out.
    #[error("cannot send a control message")]
    Send(#[source] io::Error),
    /// Nothing could be received.
    #[error("cannot receive a control message")]
    Receive(#[source] io::Error),
    /// A message is larger, or has more descriptors, than allowed.
    #[error(
        "a control message is too large: at most {} bytes and {} descriptors are allowed",
        socket::MAX_MESSAGE,
        socket::MAX_DESCRIPTORS
    )]
    TooLarge,
    /// The channel was closed before the configuration came.
    #[error("the supervisor closed the control channel before it sent the configuration")]
    NoConfig,
    /// Not JSON, or not the JSON expected.
    #[error("a control message is malformed")]
    Malformed(#[source] serde_json::Error),
    /// From another release.
    #[error("the configuration has version {found}; this program speaks version {VERSION}")]
    Version {
        /// The version received.
        found: u32,
    },
    /// The JSON refers to a descriptor that was not sent, or refers to it twice.
    #[error("{field} refers to descriptor {index}, which was not sent or is used already")]
    MissingDescriptor {
        /// Which descriptor, as in `disks[0].file`.
        field: String,
        /// The index.
        index: usize,
    },
    /// More descriptors came than the JSON refers to. They are closed.
    #[error("{0} descriptors were sent that the message does not refer to")]
    ExtraDescriptors(usize),
}

/// One end of the connection between supervisor and VMM.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Two connected ends, both closed on exec: see [`VMM_CHANNEL_FD`].
    ///
    /// # Errors
    /// [`ControlError::Pair`].
    pub fn pair() -> Result<(Self, Self), ControlError> {
        let (one, other) = socket::pair().map_err(ControlError::Pair)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Takes a descriptor that came from [`Channel::pair`] in another process.
    ///
    /// # Errors
    /// [`ControlError::NotAChannel`].
    pub fn from_fd(socket: OwnedFd) -> Result<Self, ControlError> {
        socket::check(&socket).map_err(ControlError::NotAChannel)?;
        Ok(Self { socket })
    }

    /// Sends the configuration. The descriptors are duplicated on their way; `config` keeps its own.
    ///
    /// # Errors
    /// [`ControlError::Send`], [`ControlError::TooLarge`].
    pub fn send_config(&self, config: &VmmConfig) -> Result<(), ControlError> {
        let (message, descriptors) = wire::encode_config(config)?;
        socket::send_all(&self.socket, &message, &descriptors)
    }

    /// Waits for the configuration.
    ///
    /// # Errors
    /// All that a peer can do wrong; every descriptor received is closed then.
    pub fn receive_config(&self) -> Result<VmmConfig, ControlError> {
        match socket::receive_all(&self.socket)? {
            Received::Message((message, descriptors)) => wire::decode_config(&message, descriptors),
            Received::Nothing | Received::Closed => Err(ControlError::NoConfig),
        }
    }

    /// Reports to the supervisor.
    ///
    /// # Errors
    /// [`ControlError::Send`], for one if the supervisor is gone.
    pub fn send_event(&self, event: &Event) -> Result<(), ControlError> {
        socket::send(&self.socket, &wire::encode(event)?, &[])
    }

    /// Takes the VMM's next report, if there is one; never waits.
    ///
    /// # Errors
    /// The VMM said something that is no event.
    pub fn receive_event(&self) -> Result<Received<Event>, ControlError> {
        self.receive(wire::decode)
    }

    /// Asks something of the VMM. Descriptors are duplicated on their way; `command` keeps its own.
    ///
    /// # Errors
    /// [`ControlError::Send`], for one if the VMM is gone; [`ControlError::TooLarge`].
    pub fn send_command(&self, command: &Command) -> Result<(), ControlError> {
        let (message, descriptors) = wire::encode_command(command)?;
        socket::send(&self.socket, &message, &descriptors)
    }

    /// Takes the supervisor's next command, if there is one; never waits.
    ///
    /// # Errors
    /// The supervisor said something that is no command.
    pub fn receive_command(&self) -> Result<Received<Command>, ControlError> {
        self.receive(wire::decode_command)
    }

    fn receive<T>(
        &self,
        decode: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, ControlError>,
    ) -> Result<Received<T>, ControlError> {
        match socket::receive(&self.socket, socket::Wait::No)? {
            Received::Message((message, descriptors)) => decode(&message, descriptors).map(Received::Message),
            Received::Nothing => Ok(Received::Nothing),
            Received::Closed => Ok(Received::Closed),
        }
    }
}

/// To wait on: readable when there is something to receive or the peer is gone.
impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

#[cfg(test)]
mod tests;
