//! `masquerade` forwards SCTP as it does TCP and UDP. What is special is the kernel: few have it.

use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, OwnedFd};

use e2e::Namespace;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, accept, bind, connect, getpeername,
    listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde_json::json;

use crate::masquerade_ground::{CLIENT_V4, Ground, POD_V4};

/// Diameter's.
const PORT: u16 = 3868;
/// How long an association may take that does not come about.
const PATIENCE: i64 = 10;

fn open(host: &Namespace) -> OwnedFd {
    let open = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp);
    let socket = host.netns().run(open).unwrap().expect("this kernel has SCTP");
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE)).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE)).unwrap();
    socket
}

fn address(address: &str) -> SockaddrIn {
    SockaddrIn::from(SocketAddrV4::new(address.parse().unwrap(), PORT))
}

/// Associates with a server by `to`; the server tells whom it saw.
fn associate(from: &Namespace, to: &str, server: &Namespace) -> Option<String> {
    let listener = open(server);
    bind(listener.as_raw_fd(), &address("0.0.0.0")).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let client = open(from);
    connect(client.as_raw_fd(), &address(to)).ok()?;
    let accepted = accept(listener.as_raw_fd()).unwrap();
    let peer: SockaddrIn = getpeername(accepted).unwrap();
    nix::unistd::close(accepted).unwrap();
    Some(peer.ip().to_string())
}

#[test]
fn sctp_reaches_the_guest_and_leaves_with_the_pods_address() {
    let ground = Ground::dual_stack();
    ground.connect(json!({"ports": [{"port": PORT, "protocol": "SCTP"}]}));
    let Ground { client, guest, .. } = &ground;
    assert_eq!(associate(client, POD_V4, guest).as_deref(), Some(CLIENT_V4));
    assert_eq!(associate(guest, CLIENT_V4, client).as_deref(), Some(POD_V4));
}
