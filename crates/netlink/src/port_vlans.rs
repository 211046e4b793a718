//! The VLANs of ports, asked for by themselves (`RTM_GETVLAN`): those of one port at a cost that does not grow with the others,
//! and those of all in few bytes a port, of which no more is read than is needed.
//!
//! A kernel before 5.6, or one that keeps no VLANs apart, does not know the question; it is asked for a list of all links then.

use std::io;
use std::ops::ControlFlow;

use net_types::VlanId;
use netlink_packet_core::{DecodeError, NlasIterator, parse_u16, parse_u32};
use netlink_packet_route::AddressFamily;

use crate::bridge::{PortVlan, VlanRange};
use crate::question::Dump;
use crate::{Error, Netlink};

/// `linux/rtnetlink.h`
const RTM_GETVLAN: u16 = 114;
/// `linux/if_bridge.h`: an entry, and within it the VLAN with its flags and the end of the range that begins with it.
const BRIDGE_VLANDB_ENTRY: u16 = 1;
const BRIDGE_VLANDB_ENTRY_INFO: u16 = 1;
const BRIDGE_VLANDB_ENTRY_RANGE: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 1 << 1;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 1 << 2;
/// `struct br_vlan_msg`: address family and nothing, then the port's index.
const HEADER_LENGTH: usize = 8;
const INDEX: std::ops::Range<usize> = 4..8;

/// The VLANs of the port, or bridge, with index `index` in the calling thread's namespace; none if it has gone.
pub fn port_vlans(index: u32) -> Result<Vec<PortVlan>, Error> {
    let mut found = Vec::new();
    let searched = search(index, &mut |port, vlans| {
        if port == index {
            found.extend_from_slice(vlans);
        }
        ControlFlow::<()>::Continue(())
    });
    match searched {
        Err(error) if error.errno() != Some(libc::ENODEV) => Err(error),
        _ => Ok(found),
    }
}

/// Shows `see` each port of any bridge in the calling thread's namespace, and each bridge, by index and with VLANs of it, until
/// it breaks. One with many VLANs may be shown several times, with some of them each time.
pub fn search_port_vlans<B>(
    mut see: impl FnMut(u32, &[PortVlan]) -> ControlFlow<B>,
) -> Result<Option<B>, Error> {
    search(0, &mut see)
}

/// The same, of the one with index `index` only unless that is 0.
fn search<B>(
    index: u32,
    see: &mut impl FnMut(u32, &[PortVlan]) -> ControlFlow<B>,
) -> Result<Option<B>, Error> {
    match ask(index, see) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let ports = Netlink::open()?.all_port_vlans()?;
            Ok(ports.iter().find_map(|port| see(port.index, &port.vlans).break_value()))
        }
        other => other.map_err(|source| Error::Refused {
            verb: "list VLANs of",
            object: if index == 0 { "ports".to_owned() } else { format!("port with index {index}") },
            source,
        }),
    }
}

fn ask<B>(index: u32, see: &mut impl FnMut(u32, &[PortVlan]) -> ControlFlow<B>) -> io::Result<Option<B>> {
    let mut header = [0; HEADER_LENGTH];
    header[0] = u8::from(AddressFamily::Bridge);
    header[INDEX].copy_from_slice(&index.to_ne_bytes());
    let mut dump = Dump::begin(RTM_GETVLAN, &header)?;
    while let Some(message) = dump.next()? {
        let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let (port, vlans) = read(message).map_err(malformed)?;
        if let ControlFlow::Break(found) = see(port, &vlans) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A port's index and VLANs of it.
fn read(message: &[u8]) -> Result<(u32, Vec<PortVlan>), DecodeError> {
    let index = parse_u32(message.get(INDEX).unwrap_or_default())?;
    let mut vlans = Vec::new();
    for entry in NlasIterator::new(message.get(HEADER_LENGTH..).unwrap_or_default()) {
        let entry = entry?;
        if entry.kind() == BRIDGE_VLANDB_ENTRY {
            vlans.extend(vlan(entry.value())?);
        }
    }
    Ok((index, vlans))
}

/// What an entry says; none if it is of no VLAN that can be.
fn vlan(entry: &[u8]) -> Result<Option<PortVlan>, DecodeError> {
    let (mut first, mut last, mut flags) = (0, None, 0);
    for attribute in NlasIterator::new(entry) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            BRIDGE_VLANDB_ENTRY_INFO => {
                flags = parse_u16(value.get(..2).unwrap_or_default())?;
                first = parse_u16(value.get(2..4).unwrap_or_default())?;
            }
            BRIDGE_VLANDB_ENTRY_RANGE => last = Some(parse_u16(value)?),
            _ => {}
        }
    }
    let (Ok(first), Ok(last)) = (VlanId::try_from(first), VlanId::try_from(last.unwrap_or(first))) else {
        return Ok(None);
    };
    Ok(Some(PortVlan {
        range: VlanRange { first, last },
        pvid: flags & BRIDGE_VLAN_INFO_PVID != 0,
        untagged: flags & BRIDGE_VLAN_INFO_UNTAGGED != 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `port 7`: VLAN 1 untagged by default, 10 to 20 tagged.
    const PORT: &[u8] = &[
        7, 0, 0, 0, 7, 0, 0, 0, // family, index
        12, 0, 1, 0x80, 8, 0, 1, 0, 6, 0, 1, 0, // entry of info
        20, 0, 1, 0x80, 8, 0, 1, 0, 0, 0, 10, 0, 6, 0, 2, 0, 20, 0, 0, 0, // entry of info and range
    ];

    #[test]
    fn what_the_kernel_tells_of_a_port_is_read() {
        let id = |id: u16| VlanId::try_from(id).unwrap();
        let trunk = PortVlan::tagged(VlanRange { first: id(10), last: id(20) });
        assert_eq!(read(PORT).unwrap(), (7, vec![PortVlan::access(id(1)), trunk]));
        assert_eq!(read(&PORT[..HEADER_LENGTH]).unwrap(), (7, Vec::new()));
    }

    #[test]
    fn what_is_cut_off_anywhere_is_an_error_or_less() {
        for length in 0..PORT.len() {
            if let Ok((index, vlans)) = read(&PORT[..length]) {
                assert!(index == 7 && vlans.len() < 2, "{length}: {vlans:?}");
            }
        }
    }
}
