//! A namespace that speaks and hears in place of a guest, at the guest's end of a tap.
//!
//! The VMM has the tap's queues, and its guest is deaf and mute here (this rung's KVM runs none better). What the
//! namespace sends goes into one more queue of the tap, as a guest's frames do; what the kernel hands the tap is copied to
//! the namespace, whichever queue it then waits in.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;

use e2e::{Namespace, sh};
use net_types::Mac;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recvfrom,
    send, socket,
};
use tap::{Queue, VNET_HEADER_LENGTH};

/// `linux/if_packet.h`: a frame that leaves by the link.
const OUTGOING: u8 = 4;
/// No frame here is longer.
const FRAME_BYTES: usize = 4096;
/// Where a DHCPv4 server speaks from.
const SERVER_PORT: [u8; 2] = [0, 67];

/// Speaks for the guest behind a tap.
pub(crate) struct StandIn {
    /// The guest; its NIC is `eth0`.
    pub(crate) guest: Namespace,
    servers: Arc<Mutex<BTreeSet<Mac>>>,
}

impl StandIn {
    /// At `tap`, a tap of several queues in `pod`.
    #[track_caller]
    pub(crate) fn new(pod: &Namespace, tap: &str, mac: &str) -> Self {
        let guest = Namespace::new("guest");
        guest.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0");
        sh(&format!("ip link add wire type veth peer name eth0 netns {}", guest.name()));
        sh("sysctl -qw net.ipv6.conf.wire.disable_ipv6=1");
        // What leaves it is finished: nobody on the way finishes it.
        guest.sh("ethtool -K eth0 tx off tso off gso off");
        let queue = pod.netns().run(|| Queue::open(&tap.parse().unwrap(), true)).unwrap().unwrap();
        let at_tap = pod.netns().run(|| packet_socket(tap)).unwrap();
        let wire = Arc::new(packet_socket("wire"));
        let servers = Arc::<Mutex<BTreeSet<Mac>>>::default();
        let (from_guest, to_guest, heard) = (Arc::clone(&wire), wire, Arc::clone(&servers));
        thread::spawn(move || {
            each_frame(&from_guest, false, |frame| {
                let header = [0; VNET_HEADER_LENGTH as usize];
                let _the_vm_is_gone = nix::unistd::write(&queue, &[&header[..], frame].concat());
            });
        });
        thread::spawn(move || {
            each_frame(&at_tap, true, |frame| {
                heard.lock().unwrap().extend(dhcp_server(frame));
                let _the_guest_is_gone = send(to_guest.as_raw_fd(), frame, MsgFlags::empty());
            });
        });
        sh("ip link set wire up");
        guest.sh(&format!("ip link set eth0 address {mac} up"));
        Self { guest, servers }
    }

    /// The hardware addresses of those who have spoken to the guest as DHCPv4 servers.
    pub(crate) fn servers(&self) -> BTreeSet<Mac> {
        self.servers.lock().unwrap().clone()
    }
}

/// The kernel removes a namespace's links some time after it: this one goes at once.
impl Drop for StandIn {
    fn drop(&mut self) {
        sh("ip link del wire");
    }
}

/// Everything on `link` of the calling thread's namespace, in either direction.
pub(crate) fn packet_socket(link: &str) -> OwnedFd {
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
    let links = nix::ifaddrs::getifaddrs().unwrap();
    let address = links
        .filter(|entry| entry.interface_name == link)
        .filter_map(|entry| entry.address)
        .find(|address| address.family() == Some(AddressFamily::Packet))
        .unwrap_or_else(|| panic!("there is no link {link}"));
    bind(socket.as_raw_fd(), address.as_link_addr().unwrap()).unwrap();
    socket
}

/// Hands every frame that leaves by the socket's link, or comes in by it, to `act` until the link is gone.
pub(crate) fn each_frame(socket: &OwnedFd, leaving: bool, mut act: impl FnMut(&[u8])) {
    let mut frame = [0; FRAME_BYTES];
    loop {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((length, Some(from))) if (from.pkttype() == OUTGOING) == leaving => act(&frame[..length]),
            Ok(_) | Err(nix::Error::ENETDOWN) => {}
            Err(_) => return,
        }
    }
}

/// Who sends `frame` if that is an answer of a DHCPv4 server's.
pub(crate) fn dhcp_server(frame: &[u8]) -> Option<Mac> {
    let is_it = frame.get(12..14)? == [8, 0] && frame.get(23)? == &17 && frame.get(34..36)? == SERVER_PORT;
    is_it.then(|| Mac::try_from(&frame[6..12]).unwrap())
}
