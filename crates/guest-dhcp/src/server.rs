//! A packet socket around a [`Responder`].
//!
//! Non-blocking: the owner waits for [`Server::as_fd`] and [`Server::timeout`] together with whatever else it waits for,
//! and calls [`Server::serve_pending`]. A filter in the kernel lets only DHCP and router solicitations through, so the
//! guest's other traffic wakes nobody.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use net_types::IfName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, SockaddrLike as _};
use socket2::{SockFilter, Socket};

use crate::Responder;
use crate::advertisement::INTERVAL;

/// Longest frame that is read: no DHCP client sends more, and what is cut off is malformed.
const FRAME_BYTES: usize = 2048;
/// Frames served before others are looked at again.
const BATCH: usize = 64;

/// Serves one guest on one link.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
    responder: Responder,
    next_advertisement: Instant,
    /// Keeps the kernel from telling the guest that nobody listens on the host's own addresses.
    _quiet: Option<UdpSocket>,
}

/// Whether the guest has more to ask than was answered in one go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pending {
    /// Everything is answered: wait for the descriptor.
    Nothing,
    /// Something may be left: call again, soon or later. A guest that floods is slowed down by calling later.
    Perhaps,
}

/// Why a guest cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No such link in this namespace.
    #[error("there is no link {0}")]
    NoLink(IfName),
    /// The socket could not be made or used.
    #[error("packet socket: cannot {what}")]
    Socket {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl ServerError {
    fn socket<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Socket { what, source: source.into() }
    }
}

impl Server {
    /// Opens a socket on `link` of the calling thread's network namespace: the bridge to the guest.
    ///
    /// # Errors
    /// [`ServerError::Socket`] without CAP_NET_RAW.
    pub fn open(link: &IfName, responder: Responder) -> Result<Self, ServerError> {
        let address = link_address(link)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let socket: OwnedFd = nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, flags, all)
            .map_err(ServerError::socket("open"))?;
        let socket = Socket::from(socket);
        socket.attach_filter(&filter()).map_err(ServerError::socket("filter"))?;
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &address)
            .map_err(ServerError::socket("bind"))?;
        let server = Self { socket, responder, next_advertisement: Instant::now(), _quiet: quiet(link) };
        // Before it was bound it heard all links, and before it was filtered everything.
        let mut frame = [0; FRAME_BYTES];
        while server.receive(&mut frame)?.is_some() {}
        Ok(server)
    }

    /// Answers what is waiting, and advertises if it is time. Returns without waiting.
    ///
    /// # Errors
    /// If the socket breaks, for instance because the link is gone.
    pub fn serve_pending(&mut self) -> Result<Pending, ServerError> {
        if self.next_advertisement <= Instant::now() {
            self.next_advertisement = Instant::now() + INTERVAL;
            self.responder.advertisement().map_or(Ok(()), |frame| self.send(&frame))?;
        }
        let mut frame = [0; FRAME_BYTES];
        for _ in 0..BATCH {
            let Some(length) = self.receive(&mut frame)? else { return Ok(Pending::Nothing) };
            if let Some(answer) = frame.get(..length).and_then(|frame| self.responder.answer(frame)) {
                self.send(&answer)?;
            }
        }
        Ok(Pending::Perhaps)
    }

    /// How long until [`Server::serve_pending`] is due even if the socket stays silent.
    pub fn timeout(&self) -> Duration {
        self.next_advertisement.saturating_duration_since(Instant::now())
    }

    /// Serves until `stop` becomes readable or is closed on its other end.
    ///
    /// # Errors
    /// As [`Server::serve_pending`].
    pub fn run_until(&mut self, stop: BorrowedFd<'_>) -> Result<(), ServerError> {
        loop {
            self.serve_pending()?;
            let timeout = PollTimeout::try_from(self.timeout()).unwrap_or(PollTimeout::MAX);
            let mut events =
                [PollFd::new(self.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut events, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(ServerError::socket("wait")(errno)),
            }
            let [_, stop] = events;
            if stop.any().unwrap_or(true) {
                return Ok(());
            }
        }
    }

    fn receive(&self, frame: &mut [u8]) -> Result<Option<usize>, ServerError> {
        match (&self.socket).read(frame) {
            Ok(length) => Ok(Some(length)),
            // The link went down: it says so once, and may come up again.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NetworkDown) => {
                Ok(None)
            }
            Err(source) => Err(ServerError::Socket { what: "receive", source }),
        }
    }

    /// A guest that does not take its answer asks again.
    fn send(&self, frame: &[u8]) -> Result<(), ServerError> {
        match (&self.socket).write(frame) {
            Err(error) if error.raw_os_error() == Some(nix::Error::ENXIO as i32) => {
                Err(ServerError::Socket { what: "send", source: error })
            }
            Err(error) => {
                tracing::debug!("an answer is lost: {error}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The link's address as packet sockets have it.
fn link_address(link: &IfName) -> Result<LinkAddr, ServerError> {
    let all = nix::ifaddrs::getifaddrs().map_err(ServerError::socket("list links"))?;
    let mut own = all.filter(|entry| entry.interface_name == link.as_str());
    own.find_map(|entry| {
        let address = entry.address?;
        let is_link = address.family() == Some(AddressFamily::Packet);
        is_link.then(|| address.as_link_addr().copied()).flatten()
    })
    .ok_or_else(|| ServerError::NoLink(link.clone()))
}

/// A client renews by unicast; without a listener the kernel would answer "port unreachable" beside us. If the port is
/// taken, somebody listens.
fn quiet(link: &IfName) -> Option<UdpSocket> {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).ok()?;
    socket.bind_device(Some(link.as_str().as_bytes())).ok()?;
    // Nothing is ever read from it.
    socket.set_recv_buffer_size(1).ok()?;
    socket.bind(&std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67).into()).ok()?;
    Some(socket.into())
}

/// Classic BPF: load, jump if equal, jump if bits are set, return (`linux/filter.h`).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_IP_HEADER_LENGTH: u16 = 0xb1;
const LOAD_HALF_INDEXED: u16 = 0x48;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// Where the kernel keeps the packet's type (`SKF_AD_OFF + SKF_AD_PKTTYPE`), and that of our own frames.
const PACKET_TYPE: u32 = 0xffff_f004;
const OUTGOING: u32 = 4;

/// Not our own; DHCPv4 to port 67 in one piece, DHCPv6 to port 547, router solicitations. Jumps count instructions.
fn filter() -> [SockFilter; 21] {
    [
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        SockFilter::new(JUMP_EQUAL, 18, 0, OUTGOING),
        SockFilter::new(LOAD_HALF, 0, 0, 12),
        SockFilter::new(JUMP_EQUAL, 0, 7, 0x0800),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 9),
        SockFilter::new(JUMP_EQUAL, 0, 14, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 14 + 6),
        SockFilter::new(JUMP_SET, 12, 0, 0x3fff),
        SockFilter::new(LOAD_IP_HEADER_LENGTH, 0, 0, 14),
        SockFilter::new(LOAD_HALF_INDEXED, 0, 0, 14 + 2),
        SockFilter::new(JUMP_EQUAL, 8, 9, 67),
        SockFilter::new(JUMP_EQUAL, 0, 8, 0x86dd),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 6),
        SockFilter::new(JUMP_EQUAL, 0, 2, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 14 + 40 + 2),
        SockFilter::new(JUMP_EQUAL, 3, 4, 547),
        SockFilter::new(JUMP_EQUAL, 0, 3, 58),
        SockFilter::new(LOAD_BYTE, 0, 0, 14 + 40),
        SockFilter::new(JUMP_EQUAL, 0, 1, 133),
        SockFilter::new(RETURN, 0, 0, 0xffff),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
