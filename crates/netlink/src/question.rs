//! A question about links, on a socket of the calling thread's network namespace that lives as long as it.
//!
//! For what [`crate::Netlink`] would not do: it decodes an answer as the packet crate does, and takes all of it.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `struct nlmsghdr`
const HEADER_LENGTH: usize = 16;

/// Longest answer about one link: a list of VFs is an attribute, so 64 KiB, and the rest is less than that. A list of links
/// comes in shorter parts.
const MAX_ANSWER: usize = 1 << 18;

/// Longest part of a list: the kernel makes parts of 32 KiB at most.
const MAX_PART: usize = 1 << 16;

/// What the kernel says of `link`: the whole answer, or with `NLM_F_DUMP` among the flags its first part.
pub(crate) fn ask(link: LinkMessage, flags: u16) -> io::Result<Vec<u8>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(link));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = send(&bytes)?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = receive(&socket, &mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// A list, message by message. No more of it is made than is taken, but for a part that waits already.
pub(crate) struct Dump {
    socket: OwnedFd,
    part: Vec<u8>,
    /// How much of `part` is a part of the list, and from where on it is not taken yet.
    length: usize,
    next: usize,
}

impl Dump {
    /// Asks by a message of type `kind` that the packet crate does not know.
    pub(crate) fn begin(kind: u16, payload: &[u8]) -> io::Result<Self> {
        let mut request = vec![0; HEADER_LENGTH + payload.len()];
        request[HEADER_LENGTH..].copy_from_slice(payload);
        let mut header = NetlinkBuffer::new(&mut request);
        header.set_length(u32::try_from(HEADER_LENGTH + payload.len()).map_err(io::Error::other)?);
        header.set_message_type(kind);
        header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
        Ok(Self { socket: send(&request)?, part: vec![0; MAX_PART], length: 0, next: 0 })
    }

    /// What the next message says; none after the last. A refusal is an error.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.next >= self.length {
            self.length = receive(&self.socket, &mut self.part)?;
            self.next = 0;
        }
        let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let message = NetlinkBuffer::new_checked(&self.part[self.next..self.length]).map_err(malformed)?;
        // Each begins at a multiple of four bytes.
        self.next += (message.length() as usize).next_multiple_of(4);
        match message.message_type() {
            // At the end stands whether it failed on the way.
            NLMSG_ERROR | NLMSG_DONE => refusal_in(message.payload()).map(|()| None),
            _ => Ok(Some(message.payload())),
        }
    }
}

/// A new socket by which `request` has gone to the kernel.
fn send(request: &[u8]) -> io::Result<OwnedFd> {
    // No protocol is protocol 0, NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, request, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// Fills `answer` with one part of an answer, and tells its length.
fn receive(socket: &OwnedFd, answer: &mut [u8]) -> io::Result<usize> {
    let most = answer.len();
    let (_, length) = rustix::net::recv(socket, answer, RecvFlags::TRUNC)?;
    if length > most {
        return Err(io::Error::other(format!("the answer has {length} bytes, more than {most}")));
    }
    Ok(length)
}

/// Fails if `answer` is a refusal.
pub(crate) fn refusal(answer: &NetlinkBuffer<&Vec<u8>>) -> io::Result<()> {
    if answer.message_type() != NLMSG_ERROR {
        return Ok(());
    }
    refusal_in(answer.payload())
}

/// Such a message begins with the errno, negative; 0 is none.
fn refusal_in(payload: &[u8]) -> io::Result<()> {
    let code = <[u8; 4]>::try_from(payload.get(..4).unwrap_or_default()).unwrap_or_default();
    match i32::from_ne_bytes(code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}
