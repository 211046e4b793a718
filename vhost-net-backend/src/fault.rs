//! Why a link end was closed: what a guest, its VMM or a device did that we do not go on with.
//!
//! The data path makes a [`Fault`] where it sees one; the worker then closes that end, counts the fault under
//! [`Fault::label`] and logs it. A fault never touches another link, let alone the process.

use std::io;

/// A reason to end one end of a link.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The available index ran further ahead than the ring is long.
    #[error("available index {index} is {ahead} ahead of {next}, in a ring of {size}")]
    IndexJump {
        /// The index the guest published.
        index: u16,
        /// The next one to be taken.
        next: u16,
        /// Their distance.
        ahead: u16,
        /// Entries in the ring.
        size: u16,
    },
    /// A descriptor index is not in its table.
    #[error("descriptor {index} does not exist in a table of {size}")]
    NoSuchDescriptor {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A chain has more descriptors than the ring: it loops.
    #[error("descriptor chain at {head} is longer than its table: it loops")]
    Loop {
        /// Where it begins.
        head: u16,
    },
    /// A chain has more than 1024 descriptors, or its pieces have 4 GiB or more together (virtio 1.2, 2.7.5.2).
    #[error("descriptor chain at {head} has more than 1024 descriptors, or 4 GiB or more")]
    ChainLength {
        /// Where it begins.
        head: u16,
    },
    /// An address range is not guest memory.
    #[error("{length} bytes at guest address {address:#x} are not all memory")]
    NoMemory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A buffer is of the wrong direction for its ring.
    #[error("descriptor chain at {head} has a {found} buffer in a {ring} ring")]
    Direction {
        /// Where the chain begins.
        head: u16,
        /// What the buffer is for the device.
        found: &'static str,
        /// Which ring it was found in.
        ring: &'static str,
    },
    /// An indirect descriptor where none may be: not negotiated, nested, or with NEXT.
    #[error("descriptor chain at {head} has an indirect descriptor that is {why}")]
    Indirect {
        /// Where the chain begins.
        head: u16,
        /// What is wrong.
        why: &'static str,
    },
    /// A receive chain offers no room at all.
    #[error("receive chain at {head} has no room")]
    EmptyBuffer {
        /// Where it begins.
        head: u16,
    },
    /// A frame's virtio-net header contradicts the frame or what was negotiated.
    #[error("a frame's header lies: {0}")]
    Header(#[from] HeaderFault),
    /// A page of the guest's memory could not be had: its file was truncated, or the host has no page for it.
    #[error("guest memory went away under its mapping")]
    MemoryGone,
    /// A guest could not be signalled without waiting.
    #[error("the call eventfd is full, and its VMM has made it blocking")]
    CallBlocked,
    /// Reading, writing or signalling a descriptor failed.
    #[error("{operation} failed")]
    Io {
        /// The call.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is wrong with a virtio-net header (virtio 1.2, 5.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// A checksum or segmentation that the guest did not negotiate.
    #[error("it asks for an offload that was not negotiated")]
    NotNegotiated,
    /// The checksum's place is outside of the frame.
    #[error("checksum at {start}+{offset} in a frame of {length} bytes")]
    Checksum {
        /// Where the sum begins.
        start: u16,
        /// Where it is stored, from there.
        offset: u16,
        /// Bytes of the frame.
        length: u32,
    },
    /// A GSO type that no specification has.
    #[error("GSO type {0:#04x} does not exist")]
    GsoType(u8),
    /// A segment size of 0.
    #[error("GSO with segments of 0 bytes")]
    GsoSize,
    /// Segmentation without a checksum to go with it.
    #[error("GSO without a partial checksum")]
    GsoWithoutChecksum,
}

impl Fault {
    /// The label of [`Fault::CallBlocked`].
    pub(crate) const CALL_BLOCKED: &'static str = "call-blocked";

    /// The fault's name in counters: stable, one word.
    pub fn label(&self) -> &'static str {
        match self {
            Self::IndexJump { .. } => "index-jump",
            Self::NoSuchDescriptor { .. } => "no-such-descriptor",
            Self::Loop { .. } => "descriptor-loop",
            Self::ChainLength { .. } => "chain-length",
            Self::NoMemory { .. } => "no-memory",
            Self::Direction { .. } => "buffer-direction",
            Self::Indirect { .. } => "indirect",
            Self::EmptyBuffer { .. } => "empty-buffer",
            Self::Header(_) => "header",
            Self::MemoryGone => "memory-gone",
            Self::CallBlocked => Self::CALL_BLOCKED,
            Self::Io { .. } => "io",
        }
    }

    pub(crate) fn io(operation: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |errno| Self::Io { operation, source: errno.into() }
    }
}
