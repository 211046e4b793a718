//! A question about links, on a socket of the calling thread's network namespace that lives as long as it.
//!
//! For what [`crate::Netlink`] would not do: it decodes an answer as the packet crate does, and takes all of it.

use std::io;

use netlink_packet_core::{
    NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// Longest answer about one link: a list of VFs is an attribute, so 64 KiB, and the rest is less than that. A list of links
/// comes in shorter parts.
const MAX_ANSWER: usize = 1 << 18;

/// What the kernel says of `link`: the whole answer, or with `NLM_F_DUMP` among the flags its first part.
pub(crate) fn ask(link: LinkMessage, flags: u16) -> io::Result<Vec<u8>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(link));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    // No protocol is protocol 0, NETLINK_ROUTE.
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0; MAX_ANSWER];
    let (_, length) = rustix::net::recv(&socket, &mut answer, RecvFlags::TRUNC)?;
    if length > MAX_ANSWER {
        return Err(io::Error::other(format!("the answer has {length} bytes, more than {MAX_ANSWER}")));
    }
    answer.truncate(length);
    Ok(answer)
}

/// Fails if `answer` is a refusal.
pub(crate) fn refusal(answer: &NetlinkBuffer<&Vec<u8>>) -> io::Result<()> {
    if answer.message_type() != NLMSG_ERROR {
        return Ok(());
    }
    let code = <[u8; 4]>::try_from(answer.payload().get(..4).unwrap_or_default()).unwrap_or_default();
    Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code)))
}
