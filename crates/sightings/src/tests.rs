use super::*;

const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn arp_frame(source: Mac, operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = Mac::BROADCAST.octets().to_vec();
    frame.extend(source.octets());
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(source.octets());
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

fn nd_frame(source: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut frame = neighbour_solicitation(target.parse().unwrap(), GUEST);
    frame[54] = kind;
    frame.splice(22..38, source.parse::<Ipv6Addr>().unwrap().octets());
    frame
}

fn uses(address: &str) -> Option<Sighting> {
    Some(Sighting::Uses(address.parse().unwrap()))
}

fn considers(address: &str) -> Option<Sighting> {
    Some(Sighting::Considers(address.parse().unwrap()))
}

#[test]
fn an_arp_sender_is_an_address_in_use() {
    for operation in [1, 2] {
        let frame = arp_frame(GUEST, operation, [10, 10, 10, 14], [10, 10, 10, 1]);
        assert_eq!(from_guest(&frame, GUEST), uses("10.10.10.14"));
    }
    let announcement = arp_frame(GUEST, 1, [10, 0, 0, 5], [10, 0, 0, 5]);
    assert_eq!(from_guest(&announcement, GUEST), uses("10.0.0.5"));
}

#[test]
fn an_arp_probe_and_address_detection_are_only_considerations() {
    let frame = arp_frame(GUEST, 1, [0; 4], [10, 10, 10, 14]);
    assert_eq!(from_guest(&frame, GUEST), considers("10.10.10.14"));
    assert_eq!(from_guest(&nd_frame("::", 135, "fd00::5"), GUEST), considers("fd00::5"));
}

#[test]
fn neighbour_discovery_shows_addresses_in_use() {
    assert_eq!(from_guest(&nd_frame("fe80::1", 135, "fd00::9"), GUEST), uses("fe80::1"));
    assert_eq!(from_guest(&nd_frame("fe80::1", 136, "fd00::5"), GUEST), uses("fd00::5"));
    let mut routed = nd_frame("fe80::1", 136, "fd00::5");
    routed[21] = 64;
    assert_eq!(from_guest(&routed, GUEST), None);
}

#[test]
fn what_others_send_or_forge_says_nothing() {
    let foreign = arp_frame(OTHER, 1, [10, 0, 0, 5], [10, 0, 0, 1]);
    assert_eq!(from_guest(&foreign, GUEST), None);
    let mut relayed = arp_frame(GUEST, 1, [10, 0, 0, 5], [10, 0, 0, 1]);
    relayed.splice(22..28, OTHER.octets());
    assert_eq!(from_guest(&relayed, GUEST), None);
}

#[test]
fn addresses_no_host_can_have_say_nothing() {
    for sender in [[127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255], [0, 1, 2, 3], [240, 0, 0, 1]] {
        assert_eq!(from_guest(&arp_frame(GUEST, 2, sender, [10, 0, 0, 1]), GUEST), None, "{sender:?}");
    }
    for target in ["::", "::1", "ff02::1", "::ffff:10.0.0.1"] {
        assert_eq!(from_guest(&nd_frame("fe80::1", 136, target), GUEST), None, "{target}");
    }
}

/// An IPv4 header, a UDP header and a BOOTP message with `options`.
fn dhcp_frame(client: Mac, options: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 8 + 236];
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[14 + 9] = 17;
    frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
    frame[42] = 2;
    frame[42 + 16..42 + 20].copy_from_slice(&[10, 0, 0, 77]);
    frame[42 + 28..42 + 34].copy_from_slice(&client.octets());
    frame.extend([99, 130, 83, 99]);
    frame.extend(options);
    frame
}

#[test]
fn a_dhcp_acknowledgement_to_the_guest_is_worth_asking_about() {
    let ack = [0, 54, 4, 10, 0, 0, 1, 53, 1, 5, 255];
    assert_eq!(to_guest(&dhcp_frame(GUEST, &ack), GUEST), considers("10.0.0.77"));
    assert_eq!(to_guest(&dhcp_frame(OTHER, &ack), GUEST), None);
    for no_ack in [&[53, 1, 2, 255][..], &[255], &[], &[53], &[53, 1], &[53, 200, 5], &[12, 255]] {
        assert_eq!(to_guest(&dhcp_frame(GUEST, no_ack), GUEST), None, "{no_ack:?}");
    }
}

/// An IPv6 header, a UDP header and a DHCPv6 message of `kind` with one address.
fn dhcpv6_frame(kind: u8, valid_lifetime: u32) -> Vec<u8> {
    let mut frame = GUEST.octets().to_vec();
    frame.extend(OTHER.octets());
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
    frame.extend([0; 32]);
    frame.extend([2, 35, 2, 34, 0, 0, 0, 0]);
    frame.extend([kind, 1, 2, 3]);
    frame.extend([0, 1, 0, 2, 9, 9]);
    frame.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24]);
    frame.extend("fd00::77".parse::<Ipv6Addr>().unwrap().octets());
    frame.extend([0, 0, 0, 9]);
    frame.extend(valid_lifetime.to_be_bytes());
    frame
}

#[test]
fn a_dhcpv6_reply_to_the_guest_is_worth_asking_about() {
    assert_eq!(to_guest(&dhcpv6_frame(7, 60), GUEST), considers("fd00::77"));
    assert_eq!(to_guest(&dhcpv6_frame(2, 60), GUEST), None);
    assert_eq!(to_guest(&dhcpv6_frame(7, 0), GUEST), None);
    assert_eq!(to_guest(&dhcpv6_frame(7, 60), OTHER), None);
}

#[test]
fn questions_have_right_checksums() {
    let IpAddr::V6(target) = "fd00::5".parse().unwrap() else { unreachable!() };
    let frame = neighbour_solicitation(target, GUEST);
    assert_eq!(frame.len(), 86);
    let (source, group) = (ipv6(&frame, 22).unwrap(), ipv6(&frame, 38).unwrap());
    assert_eq!(source.to_string(), "fe80::ff:fe00:1");
    assert_eq!(group.to_string(), "ff02::1:ff00:5");
    // The sum over a message that carries its checksum is zero.
    assert_eq!(icmpv6_checksum(source, group, &frame[54..]), 0);
    assert_eq!(question("10.0.0.1".parse().unwrap(), GUEST).len(), 42);
}

proptest::proptest! {
    #[test]
    fn no_frame_makes_it_panic(mut frame: Vec<u8>, kind in 0usize..3, cut in 0usize..400) {
        let _ = (from_guest(&frame, GUEST), to_guest(&frame, GUEST));
        let whole = [dhcp_frame(GUEST, &frame), dhcpv6_frame(7, 60), nd_frame("fe80::1", 136, "fd00::5")];
        frame = whole[kind].clone();
        frame.truncate(cut);
        let _ = (from_guest(&frame, GUEST), to_guest(&frame, GUEST));
    }
}
