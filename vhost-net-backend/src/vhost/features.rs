//! What we offer a guest and its VMM, and what their answer means for rings and frames.
//!
//! Only what is implemented is offered. The vhost crate has no dispatch for the protocol features STATUS, NET_MTU, RARP
//! and in-band notifications, so they are absent, as are in-flight tracking and the packed ring.

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use virtio_bindings::bindings::{virtio_config, virtio_net, virtio_ring};

use crate::frame::{Header, Offloads};
use crate::ring::RingFeatures;

/// `VHOST_F_LOG_ALL` (`linux/vhost_types.h`): writes to guest memory are logged.
const LOG_ALL: u32 = 26;
/// `VHOST_USER_F_PROTOCOL_FEATURES` (vhost-user).
const PROTOCOL_FEATURES: u32 = 30;
/// USO, virtio 1.3, 5.1.3.
const GUEST_USO4: u32 = 54;
const GUEST_USO6: u32 = 55;
const HOST_USO: u32 = 56;

const RINGS: [u32; 7] = [
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_config::VIRTIO_F_ANY_LAYOUT,
    // Chains are given back in the order they were taken.
    virtio_config::VIRTIO_F_IN_ORDER,
    virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
    LOG_ALL,
    PROTOCOL_FEATURES,
];

const NET: [u32; 13] = [
    virtio_net::VIRTIO_NET_F_CSUM,
    virtio_net::VIRTIO_NET_F_GUEST_CSUM,
    virtio_net::VIRTIO_NET_F_GUEST_TSO4,
    virtio_net::VIRTIO_NET_F_GUEST_TSO6,
    virtio_net::VIRTIO_NET_F_GUEST_ECN,
    virtio_net::VIRTIO_NET_F_HOST_TSO4,
    virtio_net::VIRTIO_NET_F_HOST_TSO6,
    virtio_net::VIRTIO_NET_F_HOST_ECN,
    virtio_net::VIRTIO_NET_F_MRG_RXBUF,
    virtio_net::VIRTIO_NET_F_MQ,
    GUEST_USO4,
    GUEST_USO6,
    HOST_USO,
];

/// Protocol features we implement; the vhost crate adds REPLY_ACK, which it implements.
pub(super) fn protocol() -> Protocol {
    Protocol::MQ
        | Protocol::REPLY_ACK
        | Protocol::CONFIG
        | Protocol::CONFIGURE_MEM_SLOTS
        | Protocol::RESET_DEVICE
        | Protocol::LOG_SHMFD
}

/// Virtio features: offered, or acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Features(u64);

impl Features {
    /// What we offer; the MTU only if there is one to tell.
    pub(super) fn offered(mtu: Option<u16>) -> Self {
        let mtu = mtu.map(|_| virtio_net::VIRTIO_NET_F_MTU);
        Self(RINGS.into_iter().chain(NET).chain(mtu).fold(0, |bits, feature| bits | 1 << feature))
    }

    /// What was acknowledged; `Err` with the bits that were never offered.
    pub(super) fn acknowledge(self, bits: u64) -> Result<Self, u64> {
        match bits & !self.0 {
            0 => Ok(Self(bits)),
            unknown => Err(unknown),
        }
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    fn has(self, feature: u32) -> bool {
        self.0 & 1 << feature != 0
    }

    /// Rings start disabled only if the frontend knows how to enable them.
    pub(super) fn rings_need_enabling(self) -> bool {
        self.has(PROTOCOL_FEATURES)
    }

    pub(super) fn logs(self) -> bool {
        self.has(LOG_ALL)
    }

    pub(super) fn mergeable(self) -> bool {
        self.has(virtio_net::VIRTIO_NET_F_MRG_RXBUF)
    }

    pub(super) fn rings(self) -> RingFeatures {
        let long = self.has(virtio_config::VIRTIO_F_VERSION_1) || self.mergeable();
        RingFeatures {
            indirect: self.has(virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
            event_index: self.has(virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            header_length: if long { Header::LONG } else { Header::SHORT },
        }
    }

    /// What the guest may leave unfinished in what it sends.
    pub(super) fn sends(self) -> Offloads {
        if !self.has(virtio_net::VIRTIO_NET_F_CSUM) {
            return Offloads::NONE;
        }
        Offloads::CHECKSUM
            .with(Offloads::TSO4.only_if(self.has(virtio_net::VIRTIO_NET_F_HOST_TSO4)))
            .with(Offloads::TSO6.only_if(self.has(virtio_net::VIRTIO_NET_F_HOST_TSO6)))
            .with(Offloads::ECN.only_if(self.has(virtio_net::VIRTIO_NET_F_HOST_ECN)))
            .with(Offloads::USO.only_if(self.has(HOST_USO)))
    }

    /// What the guest takes unfinished.
    pub(super) fn receives(self) -> Offloads {
        if !self.has(virtio_net::VIRTIO_NET_F_GUEST_CSUM) {
            return Offloads::NONE;
        }
        Offloads::CHECKSUM
            .with(Offloads::TSO4.only_if(self.has(virtio_net::VIRTIO_NET_F_GUEST_TSO4)))
            .with(Offloads::TSO6.only_if(self.has(virtio_net::VIRTIO_NET_F_GUEST_TSO6)))
            .with(Offloads::ECN.only_if(self.has(virtio_net::VIRTIO_NET_F_GUEST_ECN)))
            .with(Offloads::USO.only_if(self.has(GUEST_USO4) && self.has(GUEST_USO6)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_offered_cannot_be_acknowledged() {
        let offered = Features::offered(None);
        assert_eq!(offered.acknowledge(1 << 34), Err(1 << 34));
        assert_eq!(
            offered.acknowledge(1 << virtio_net::VIRTIO_NET_F_MTU),
            Err(1 << virtio_net::VIRTIO_NET_F_MTU)
        );
        assert!(Features::offered(Some(9000)).acknowledge(1 << virtio_net::VIRTIO_NET_F_MTU).is_ok());
    }

    #[test]
    fn segmentation_counts_only_with_checksums() {
        let bits = |features: &[u32]| features.iter().fold(0, |bits, feature| bits | 1 << feature);
        let without =
            Features(bits(&[virtio_net::VIRTIO_NET_F_HOST_TSO4, virtio_net::VIRTIO_NET_F_GUEST_TSO4]));
        assert_eq!((without.sends(), without.receives()), (Offloads::NONE, Offloads::NONE));
        let with = Features(bits(&[virtio_net::VIRTIO_NET_F_CSUM, virtio_net::VIRTIO_NET_F_HOST_TSO4]));
        assert_eq!(with.sends(), Offloads::CHECKSUM.with(Offloads::TSO4));
    }

    #[test]
    fn each_offload_has_its_bit_and_receiving_udp_segments_two() {
        use virtio_net::{
            VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
        };
        let features = |bits: &[u32]| Features(bits.iter().fold(0, |all, bit| all | 1 << bit));
        for (bits, expected) in [
            (&[VIRTIO_NET_F_HOST_TSO4][..], Offloads::TSO4),
            (&[VIRTIO_NET_F_HOST_TSO6], Offloads::TSO6),
            (&[VIRTIO_NET_F_HOST_ECN], Offloads::ECN),
            (&[HOST_USO], Offloads::USO),
        ] {
            let acknowledged = features(&[bits, &[VIRTIO_NET_F_CSUM]].concat());
            assert_eq!(acknowledged.sends(), Offloads::CHECKSUM.with(expected));
            assert_eq!(acknowledged.receives(), Offloads::NONE);
        }
        for (bits, expected) in [
            (&[VIRTIO_NET_F_GUEST_TSO4][..], Offloads::TSO4),
            (&[VIRTIO_NET_F_GUEST_TSO6], Offloads::TSO6),
            (&[VIRTIO_NET_F_GUEST_ECN], Offloads::ECN),
            (&[GUEST_USO4], Offloads::NONE),
            (&[GUEST_USO6], Offloads::NONE),
            (&[GUEST_USO4, GUEST_USO6], Offloads::USO),
        ] {
            let acknowledged = features(&[bits, &[VIRTIO_NET_F_GUEST_CSUM]].concat());
            assert_eq!(acknowledged.receives(), Offloads::CHECKSUM.with(expected));
            assert_eq!(acknowledged.sends(), Offloads::NONE);
        }
    }

    #[test]
    fn a_legacy_guest_has_the_short_header() {
        assert_eq!(Features(0).rings().header_length, Header::SHORT);
        assert_eq!(Features(1 << virtio_config::VIRTIO_F_VERSION_1).rings().header_length, Header::LONG);
        assert_eq!(Features(1 << virtio_net::VIRTIO_NET_F_MRG_RXBUF).rings().header_length, Header::LONG);
    }
}
