use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::guest::{Dhcpv4, Extra, Resolver, Router};

pub(crate) const GUEST: Mac = Mac([0x02, 0, 0, 0, 0, 0x42]);

/// A guest with everything.
pub(crate) fn guest() -> Guest {
    Guest {
        mac: GUEST,
        server_mac: Mac([0x02, 0, 0, 0, 0, 0]),
        mtu: Some(1450),
        host_name: Some("vm".to_owned()),
        resolver: Resolver {
            servers: vec!["10.96.0.10".parse().unwrap(), "fd00::10".parse().unwrap()],
            search: vec!["ns.svc.cluster.local".parse().unwrap(), "cluster.local".parse().unwrap()],
        },
        v4: Some(Dhcpv4 {
            address: "10.0.2.2/24".parse().unwrap(),
            gateway: Some("10.0.2.1".parse().unwrap()),
            server: "10.0.2.1".parse().unwrap(),
            routes: Vec::new(),
            lease: Duration::from_secs(86_400),
            extra: Extra::default(),
        }),
        v6: Some(Dhcpv6 {
            address: "fd10:0:2::2/120".parse().unwrap(),
            further: Vec::new(),
            router: "fe80::ff:fe00:0".parse().unwrap(),
            role: Router::Host,
            lease: Duration::from_secs(86_400),
        }),
    }
}

/// A frame of the guest's around an IPv6 payload.
fn v6_frame(from: &str, to: &str, protocol: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let from: Ipv6Addr = from.parse().unwrap();
    let to: Ipv6Addr = to.parse().unwrap();
    let mut frame = [&[0x33, 0x33, 0, 0, 0, 2][..], &GUEST.octets(), &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend([protocol, hop_limit]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

#[test]
fn a_solicitation_is_answered_with_a_valid_advertisement() {
    let responder = Responder::new(guest()).unwrap();
    for (from, to_mac) in [("fe80::42", GUEST), ("::", ALL_NODES_MAC)] {
        let question = v6_frame(from, "ff02::2", 58, 255, &[133, 0, 0, 0, 0, 0, 0, 0]);
        let answer = responder.answer(&question).unwrap();
        assert_eq!(answer[..6], to_mac.octets());
        assert_eq!((answer[20], answer[21], answer[54]), (58, 255, 134));
        // Summed with its own checksum a message gives all ones.
        let length = u32::try_from(answer.len() - 54).unwrap().to_be_bytes();
        let mut all = [&answer[22..54], &length, &[0, 0, 0, 58], &answer[54..]].concat();
        all.resize(all.len().next_multiple_of(2), 0);
        let sum: u64 = all.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        assert_eq!(sum % 0xffff, 0);
    }
}

#[test]
fn what_is_not_the_guest_s_gets_no_answer() {
    let responder = Responder::new(guest()).unwrap();
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
    let right = v6_frame("fe80::42", "ff02::2", 58, 255, &solicitation);
    assert!(responder.answer(&right).is_some());
    let mut stranger = right.clone();
    stranger[11] ^= 1;
    assert_eq!(responder.answer(&stranger), None);
    let routed = v6_frame("fe80::42", "ff02::2", 58, 254, &solicitation);
    assert_eq!(responder.answer(&routed), None);
    let global = v6_frame("2001:db8::1", "ff02::2", 58, 255, &solicitation);
    assert_eq!(responder.answer(&global), None);
    let silent = Responder::new(Guest { v4: None, v6: None, ..guest() }).unwrap();
    assert_eq!((silent.answer(&right), silent.advertisement()), (None, None));
}

#[test]
fn what_no_guest_can_be_told_is_refused_at_the_start() {
    let with_v4 = |change: &dyn Fn(&mut Dhcpv4)| {
        let mut guest = guest();
        guest.v4.as_mut().map(change);
        Responder::new(guest).unwrap_err()
    };
    let error = with_v4(&|v4| v4.address = "127.0.0.1/8".parse().unwrap());
    assert_eq!(error, GuestError::Address("127.0.0.1".parse().unwrap()));
    let error = with_v4(&|v4| v4.extra.private = vec![(223, "x".to_owned())]);
    assert_eq!(error, GuestError::PrivateOption(223));
    let error = with_v4(&|v4| v4.extra.boot_file = Some("x".repeat(256)));
    assert_eq!(error, GuestError::Length { what: "bootFileName", length: 256 });
    assert_eq!(Responder::new(Guest { mtu: Some(1279), ..guest() }).unwrap_err(), GuestError::Mtu(1279));
    assert_eq!(
        Responder::new(Guest { mac: Mac::BROADCAST, ..guest() }).unwrap_err(),
        GuestError::Mac(Mac::BROADCAST)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_frame_is_survived(frame in prop::collection::vec(any::<u8>(), 0..600)) {
        let responder = Responder::new(guest()).unwrap();
        let _answer = responder.answer(&frame);
    }

    /// Frames that come as far as the protocols: right addresses, right ports, and then anything.
    #[test]
    fn any_message_in_a_right_frame_is_survived(
        is_v6 in any::<bool>(),
        head in prop::sample::select(vec![1_u8, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13]),
        message in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let responder = Responder::new(guest()).unwrap();
        let mut message = message;
        if let Some(first) = message.first_mut() {
            *first = head;
        }
        let length = u16::try_from(message.len() + 8).unwrap();
        let frame = if is_v6 {
            let datagram = [&[2, 0x22, 2, 0x23][..], &length.to_be_bytes(), &[0, 0], &message].concat();
            v6_frame("fe80::42", "ff02::1:2", 17, 1, &datagram)
        } else {
            v4::tests::frame(&message)
        };
        if let Some(answer) = responder.answer(&frame) {
            prop_assert!(answer.len() <= 14 + 1500);
        }
    }
}
