//! One AF_XDP socket: a queue of a NIC, with memory of its own.
//!
//! The memory (UMEM) is a memfd cut into chunks: the first half receives, the second half sends. A received chunk is
//! lent until its frame is passed on, then given back to the kernel; sent chunks come back by the completion ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use super::rings::{Descriptor, Ring};
use super::{Attachment, XdpError, XdpSettings};
use crate::memory::{Mapping, Readable, Writable};

/// Entries of each ring.
const ENTRIES: u32 = 2048;
/// Bytes of a chunk: holds frames of up to 3840 bytes, behind the headroom of 256 that XDP keeps.
const CHUNK: u32 = 4096;
/// The longest frame that is received, in bytes.
pub const MOST_RECEIVED: u32 = CHUNK - 256;
const CHUNKS: u32 = 2 * ENTRIES;
const MEMORY: u64 = CHUNK as u64 * CHUNKS as u64;
/// The longest frame to send.
const LONGEST: u32 = CHUNK;
/// Where the rings are mapped from (`XDP_PGOFF_*`).
const RX_PAGE: u64 = 0;
const TX_PAGE: u64 = 0x8000_0000;
const FILL_PAGE: u64 = 0x1_0000_0000;
const COMPLETION_PAGE: u64 = 0x1_8000_0000;
/// Calls to the kernel for one batch: in copy mode each sends 32 frames, and none while the queue is busy.
const KICKS: u32 = 16;

/// Whether all that was handed over is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// It is, or the kernel sees to it.
    All,
    /// The queue is busy: the kernel is to be called again.
    Busy,
    /// The interface is down: the kernel is to be called when it is up.
    Down,
}
/// How long a queue may stay taken after its last user has ended. The kernel gives it back in a worker of its own
/// (`xp_release_deferred` in `net/xdp/xsk_buff_pool.c`), later than it reports the process's end, and nothing says when.
const GIVEN_BACK: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(5);

/// What became of a frame to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Queued,
    /// There is no room now.
    Full,
    /// It is too long for a chunk.
    TooLong,
}

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    /// Before the memory it uses.
    socket: OwnedFd,
    rx: Ring<Descriptor>,
    tx: Ring<Descriptor>,
    fill: Ring<u64>,
    completion: Ring<u64>,
    memory: Mapping,
    /// Chunks to send with.
    free: Vec<u64>,
    /// Frames written and not handed over.
    unsent: u32,
    zero_copy: bool,
}

impl Socket {
    /// Binds to a queue; without copies if its driver can.
    pub fn bind(attachment: &Attachment, settings: &XdpSettings, queue: u32) -> Result<Self, XdpError> {
        let interface = &settings.interface;
        let failed = |operation| {
            move |source: io::Error| XdpError::Io { operation, interface: interface.clone(), source }
        };
        let mut socket = Self::open().map_err(|source| match source.raw_os_error() {
            Some(libc::ENOBUFS) => XdpError::LockedMemory { interface: interface.clone(), needed: MEMORY },
            _ => failed("set up AF_XDP")(source),
        })?;
        let deadline = Instant::now() + GIVEN_BACK;
        let mut bound = socket.bind_to(attachment, queue);
        while bound == Err(Errno::BUSY) && Instant::now() < deadline {
            thread::sleep(ASK_AGAIN);
            bound = socket.bind_to(attachment, queue);
        }
        let interface = interface.clone();
        match bound {
            Ok(()) => {}
            Err(Errno::BUSY) => return Err(XdpError::QueueBusy { interface, queue }),
            Err(Errno::INVAL) => return Err(XdpError::NoQueue { interface, queue }),
            Err(errno) => return Err(failed("bind")(errno.into())),
        }
        attachment.deliver(settings, queue, &socket)?;
        Ok(socket)
    }

    fn bind_to(&mut self, attachment: &Attachment, queue: u32) -> Result<(), Errno> {
        let mut bound = Err(Errno::INVAL);
        for flag in [SocketAddrXdpFlags::XDP_ZEROCOPY, SocketAddrXdpFlags::XDP_COPY] {
            let flags = flag | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
            bound =
                rustix::net::bind(&self.socket, &SocketAddrXdp::new(flags, attachment.index.get(), queue));
            self.zero_copy = flag == SocketAddrXdpFlags::XDP_ZEROCOPY;
            if bound != Err(Errno::OPNOTSUPP) && bound != Err(Errno::INVAL) {
                break;
            }
        }
        bound
    }

    fn open() -> io::Result<Self> {
        let file = memfd_create("umem", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, MEMORY)?;
        let memory = Mapping::new(&file, 0, MEMORY).map_err(io::Error::other)?;
        let socket = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None)?;
        let region = XdpUmemReg {
            addr: memory.address() as u64,
            len: MEMORY,
            chunk_size: CHUNK,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&socket, region)?;
        sockopt::set_xdp_umem_fill_ring_size(&socket, ENTRIES)?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, ENTRIES)?;
        sockopt::set_xdp_rx_ring_size(&socket, ENTRIES)?;
        sockopt::set_xdp_tx_ring_size(&socket, ENTRIES)?;
        let offsets = sockopt::xdp_mmap_offsets(&socket)?;
        let mut fill = Ring::map(&socket, FILL_PAGE, offsets.fr, ENTRIES)?;
        for chunk in 0..ENTRIES {
            fill.write(chunk, u64::from(chunk) * u64::from(CHUNK));
        }
        fill.produce(ENTRIES);
        Ok(Self {
            rx: Ring::map(&socket, RX_PAGE, offsets.rx, ENTRIES)?,
            tx: Ring::map(&socket, TX_PAGE, offsets.tx, ENTRIES)?,
            completion: Ring::map(&socket, COMPLETION_PAGE, offsets.cr, ENTRIES)?,
            fill,
            free: (ENTRIES..CHUNKS).map(|chunk| u64::from(chunk) * u64::from(CHUNK)).collect(),
            memory,
            socket,
            unsent: 0,
            zero_copy: false,
        })
    }

    /// Whether the NIC reads and writes our memory itself.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// # Errors
    /// The interface is gone. The kernel says so once, and makes the socket readable.
    pub fn check(&self) -> io::Result<()> {
        sockopt::socket_error(&self.socket)?.map_err(io::Error::from)
    }

    /// Received frames that were not given back.
    #[inline]
    pub fn received(&self) -> u32 {
        self.rx.filled()
    }

    /// The received frame that is `ahead` of the first.
    #[inline]
    pub fn frame(&self, ahead: u32) -> Readable<'_> {
        let Descriptor { address, length, .. } = self.rx.read(ahead);
        self.memory.readable(address, length)
    }

    /// Gives the first `count` received frames back.
    #[inline]
    pub fn give_back(&mut self, count: u32) {
        for ahead in 0..count {
            let chunk = self.rx.read(ahead).address & !u64::from(CHUNK - 1);
            self.fill.write(ahead, chunk);
        }
        // As many as were taken out, so there is room.
        self.fill.produce(count);
        self.rx.consume(count);
        if self.fill.needs_wakeup() {
            let _nothing = rustix::net::recv(&self.socket, &mut [0_u8; 0], RecvFlags::DONTWAIT);
        }
    }

    /// Takes back the chunks that were sent.
    #[inline]
    pub fn reclaim(&mut self) {
        let count = self.completion.filled();
        for ahead in 0..count {
            self.free.push(self.completion.read(ahead));
        }
        self.completion.consume(count);
    }

    /// Queues a frame of `length` bytes, written by `write`; [`flush`](Self::flush) hands it over.
    #[inline]
    pub fn send(&mut self, length: u32, write: impl FnOnce(Writable<'_>)) -> Sent {
        if length > LONGEST {
            return Sent::TooLong;
        }
        if self.tx.free() <= self.unsent {
            return Sent::Full;
        }
        let Some(address) = self.free.pop() else { return Sent::Full };
        write(self.memory.writable(address, length));
        self.tx.write(self.unsent, Descriptor { address, length, options: 0 });
        self.unsent += 1;
        Sent::Queued
    }

    /// Hands queued frames to the kernel.
    ///
    /// # Errors
    /// The interface is gone. One that is down is no error: its frames wait, and then find no room.
    #[inline]
    pub fn flush(&mut self) -> io::Result<Flushed> {
        self.tx.produce(self.unsent);
        self.unsent = 0;
        self.kick(KICKS)
    }

    /// Calls the kernel until it has taken all that was handed over, so often at most.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    #[inline]
    pub fn kick(&self, times: u32) -> io::Result<Flushed> {
        for _ in 0..times {
            if self.has_gone_out() {
                return Ok(Flushed::All);
            }
            match rustix::net::send(&self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::NETDOWN) => return Ok(Flushed::Down),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(if self.has_gone_out() { Flushed::All } else { Flushed::Busy })
    }

    /// Frames handed over that the kernel did not take yet.
    pub fn waiting(&self) -> u32 {
        self.tx.filled()
    }

    #[inline]
    fn has_gone_out(&self) -> bool {
        self.tx.filled() == 0 || !self.tx.needs_wakeup()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
