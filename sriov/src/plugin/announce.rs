//! Telling the neighbours: a gratuitous ARP request or an unsolicited neighbour advertisement for each address.
//!
//! A VF's predecessor may have had the same addresses behind another MAC, and the kernel's own announcements
//! (`arp_notify`) go out before a VF has its carrier. Nobody answers, so a lost one is lost: failing here fails nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use cni::Ip;
use net_types::{IfName, Mac};
use netns::NetNs;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};

/// ff02::1, all nodes, and its Ethernet address (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Announces `ips`, which interface `name` of `namespace` has with address `mac`.
pub(super) fn announce(namespace: &NetNs, name: &IfName, mac: Mac, ips: &[Ip]) {
    let sent = namespace.run(|| {
        let socket = open(name)?;
        for ip in ips {
            let frame = match ip.address.ip() {
                IpAddr::V4(address) => gratuitous_arp(mac, address),
                IpAddr::V6(address) => unsolicited_advertisement(mac, address),
            };
            send(socket.as_raw_fd(), &frame, MsgFlags::empty())?;
        }
        Ok::<_, nix::Error>(())
    });
    match sent {
        Ok(Ok(())) => {}
        Ok(Err(errno)) => tracing::warn!("the neighbours of {name} are not told of its addresses: {errno}"),
        Err(error) => tracing::warn!("the neighbours of {name} are not told of its addresses: {error}"),
    }
}

/// A packet socket that sends by the interface and receives nothing.
fn open(name: &IfName) -> nix::Result<OwnedFd> {
    let address = getifaddrs()?
        .filter(|entry| entry.interface_name == name.as_str())
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .ok_or(nix::Error::ENODEV)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// An Ethernet header and what follows.
fn ethernet(destination: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination.octets()[..], &source.octets(), &kind.to_be_bytes(), payload].concat()
}

/// RFC 5227, section 3: an ARP request for one's own address.
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let address = address.octets();
    let payload = [&REQUEST[..], &mac.octets(), &address, &Mac::ZERO.octets(), &address].concat();
    ethernet(Mac::BROADCAST, mac, 0x0806, &payload)
}

/// RFC 4861, section 7.2.6: a neighbour advertisement with the override flag and the target's link-layer address.
fn unsolicited_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    // Type 136, code 0, checksum to come, override flag; then the target and the option "target link-layer address".
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(mac.octets());
    let length = u16::try_from(message.len()).unwrap_or_default();
    let pseudo_header =
        [&address.octets()[..], &ALL_NODES.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6]]
            .concat();
    let sum = checksum(&[&pseudo_header[..], &message].concat());
    message.splice(2..4, sum.to_be_bytes());
    // Version 6, no class or label; the hop limit of 255 shows that it was not routed.
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([ICMPV6, 255]);
    packet.extend(address.octets());
    packet.extend(ALL_NODES.octets());
    packet.extend(message);
    ethernet(ALL_NODES_MAC, mac, 0x86dd, &packet)
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_gratuitous_arp_asks_for_its_own_address() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(192, 0, 2, 1));
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
            0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn an_advertisement_has_a_checksum_that_adds_up() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let (packet, message) = (&frame[14..54], &frame[54..]);
        assert_eq!((packet[7], message[0], message[4]), (255, 136, 0x20));
        assert_eq!(&frame[..6], &ALL_NODES_MAC.octets());
        // The sum over all of it, the checksum included, is all ones (RFC 1071).
        let pseudo = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, 58], message].concat();
        assert_eq!(checksum(&pseudo), 0);
    }
}
