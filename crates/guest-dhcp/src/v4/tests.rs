use std::net::IpAddr;

use dhcproto::Decodable as _;
use dhcproto::v4::{DhcpOptions, Flags, OptionCode};
use proptest::prelude::*;

use super::*;
use crate::responder::tests::{GUEST, guest};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const STALE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 7);

/// A message of the guest's to everybody, as a frame.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = [&[0xff; 6][..], &GUEST.octets(), &[8, 0, 0x45, 0]].concat();
    frame.extend(u16::try_from(28 + message.len()).unwrap().to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67]);
    frame.extend(u16::try_from(8 + message.len()).unwrap().to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

fn request(kind: MessageType, ciaddr: Ipv4Addr, options: Vec<DhcpOption>) -> Message {
    let mut message = Message::new_with_id(0x1234_5678, ciaddr, ANY, ANY, ANY, &GUEST.octets());
    let mut all = DhcpOptions::new();
    all.insert(DhcpOption::MessageType(kind));
    for option in options {
        all.insert(option);
    }
    message.set_opts(all);
    message
}

fn ask_of(guest: &Guest, message: &Message) -> Option<(Reply, Message)> {
    let reply = reply(guest, guest.v4.as_ref().unwrap(), Ipv4Addr::BROADCAST, &message.to_vec().unwrap())?;
    let answer = Message::from_bytes(&reply.message).unwrap();
    assert_eq!((answer.opcode(), answer.xid()), (Opcode::BootReply, message.xid()));
    Some((reply, answer))
}

fn ask(message: &Message) -> Option<(Reply, Message)> {
    ask_of(&guest(), message)
}

fn kind(answer: &Message) -> MessageType {
    answer.opts().msg_type().unwrap()
}

#[test]
fn a_client_gets_its_address_and_what_it_asked_for() {
    let list =
        [OptionCode::SubnetMask, OptionCode::Router, OptionCode::DomainSearch, OptionCode::InterfaceMtu];
    let discover = request(MessageType::Discover, ANY, vec![DhcpOption::ParameterRequestList(list.to_vec())]);
    let (reply, offer) = ask(&discover).unwrap();
    assert_eq!((kind(&offer), offer.yiaddr(), reply.to, reply.to_mac), (MessageType::Offer, OWN, OWN, GUEST));
    let codes: Vec<_> = offer.opts().iter().map(|(code, _)| u8::from(*code)).collect();
    assert_eq!(codes, [1, 3, 26, 51, 53, 54, 119]);
    assert_eq!(offer.opts().get(OptionCode::InterfaceMtu), Some(&DhcpOption::InterfaceMtu(1450)));
    assert!(reply.message.len() >= 300);
}

#[test]
fn a_client_that_does_not_say_gets_what_it_needs() {
    let (_, offer) = ask(&request(MessageType::Discover, ANY, Vec::new())).unwrap();
    for code in [1, 3, 6, 12, 15, 26, 119] {
        assert!(offer.opts().contains(OptionCode::from(code)), "option {code}");
    }
    let servers = offer.opts().get(OptionCode::DomainNameServer);
    assert_eq!(servers, Some(&DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 96, 0, 10)])), "IPv4 only");
}

#[test]
fn every_state_of_a_client_gets_its_right_answer() {
    let wants = DhcpOption::RequestedIpAddress;
    let from = DhcpOption::ServerIdentifier;
    let (ack, nak) = (Some(MessageType::Ack), Some(MessageType::Nak));
    let table = [
        ("selecting us", ANY, vec![wants(OWN), from(SERVER)], ack),
        ("selecting us, another address", ANY, vec![wants(STALE), from(SERVER)], nak),
        ("selecting another server", ANY, vec![wants(OWN), from(STALE)], None),
        ("rebooting here", ANY, vec![wants(OWN)], ack),
        ("rebooting with a lease from elsewhere", ANY, vec![wants(STALE)], nak),
        ("renewing", OWN, vec![], ack),
        ("rebinding a lease from elsewhere", STALE, vec![], nak),
        ("wanting nothing", ANY, vec![], None),
    ];
    for (state, ciaddr, options, expected) in table {
        let answer = ask(&request(MessageType::Request, ciaddr, options));
        assert_eq!(answer.as_ref().map(|(_, answer)| kind(answer)), expected, "{state}");
        let Some((reply, answer)) = answer else { continue };
        if expected == nak {
            assert_eq!(
                (reply.to, reply.to_mac, answer.yiaddr()),
                (Ipv4Addr::BROADCAST, Mac::BROADCAST, ANY),
                "{state}"
            );
            assert!(!answer.opts().contains(OptionCode::AddressLeaseTime), "{state}");
        } else {
            assert_eq!((reply.to, reply.to_mac, answer.yiaddr()), (OWN, GUEST, OWN), "{state}");
        }
    }
}

#[test]
fn who_has_an_address_of_its_own_is_told_the_rest() {
    let (reply, answer) = ask(&request(MessageType::Inform, STALE, Vec::new())).unwrap();
    assert_eq!(
        (kind(&answer), answer.yiaddr(), answer.ciaddr(), reply.to),
        (MessageType::Ack, ANY, STALE, STALE)
    );
    assert!(!answer.opts().contains(OptionCode::AddressLeaseTime));
    assert!(answer.opts().contains(OptionCode::DomainNameServer));
}

#[test]
fn what_needs_no_answer_gets_none() {
    for kind in [MessageType::Release, MessageType::Decline, MessageType::Offer, MessageType::Ack] {
        assert!(ask(&request(kind, OWN, Vec::new())).is_none(), "{kind:?}");
    }
    let right = request(MessageType::Discover, ANY, Vec::new());
    let mut relayed = right.clone();
    relayed.set_giaddr(STALE);
    let mut stranger = right.clone();
    stranger.set_chaddr(&[2, 0, 0, 0, 0, 0x43]);
    let mut answer = right.clone();
    answer.set_opcode(Opcode::BootReply);
    let mut bootp = right.clone();
    bootp.set_opts(DhcpOptions::new());
    for (what, message) in
        [("relayed", relayed), ("stranger", stranger), ("answer", answer), ("BOOTP", bootp)]
    {
        assert!(ask(&message).is_none(), "{what}");
    }
    let guest = guest();
    let bytes = right.to_vec().unwrap();
    assert_eq!(reply(&guest, guest.v4.as_ref().unwrap(), STALE, &bytes), None, "sent to another server");
}

#[test]
fn a_client_that_cannot_be_reached_by_address_is_answered_by_broadcast() {
    let mut discover = request(MessageType::Discover, ANY, Vec::new());
    discover.set_flags(Flags::default().set_broadcast());
    let (reply, answer) = ask(&discover).unwrap();
    assert_eq!((reply.to, reply.to_mac), (Ipv4Addr::BROADCAST, Mac::BROADCAST));
    assert!(answer.flags().broadcast());
}

#[test]
fn routes_bring_the_default_route_with_them() {
    let mut guest = guest();
    let route = ("10.96.0.0/12".parse().unwrap(), SERVER);
    guest.v4.as_mut().unwrap().routes.push(route);
    let (_, offer) = ask_of(&guest, &request(MessageType::Discover, ANY, Vec::new())).unwrap();
    let expected = DhcpOption::ClasslessStaticRoute(vec![route, ("0.0.0.0/0".parse().unwrap(), SERVER)]);
    assert_eq!(offer.opts().get(OptionCode::ClasslessStaticRoute), Some(&expected));
}

#[test]
fn options_of_a_manifest_are_told_when_asked_for() {
    let mut guest = guest();
    guest.v4.as_mut().unwrap().extra = crate::guest::Extra {
        boot_file: Some("pxe.0".to_owned()),
        tftp_server: Some("tftp".to_owned()),
        ntp_servers: vec![SERVER],
        private: vec![(240, "mine".to_owned())],
    };
    let list = [42, 66, 67, 240].map(OptionCode::from).to_vec();
    let discover = request(MessageType::Discover, ANY, vec![DhcpOption::ParameterRequestList(list)]);
    let (_, offer) = ask_of(&guest, &discover).unwrap();
    let option = |code: u8| offer.opts().get(OptionCode::from(code)).unwrap().to_vec().unwrap();
    assert_eq!(option(240), b"\xf0\x04mine");
    assert_eq!(option(66), b"\x42\x04tftp");
    assert_eq!(option(67), b"\x43\x05pxe.0");
    assert_eq!(option(42), [42, 4, 10, 0, 2, 1]);
}

#[test]
fn a_search_list_longer_than_an_option_is_split_and_one_longer_than_a_message_is_cut() {
    let mut guest = guest();
    let name = |number: u8| format!("n{number}.{}.com", char::from(b'a' + number).to_string().repeat(60));
    guest.resolver.search = (0..12).map(|number| name(number).parse().unwrap()).collect();
    let list = vec![OptionCode::DomainSearch];
    let mut options = vec![DhcpOption::ParameterRequestList(list)];
    let told = |options: &[DhcpOption]| {
        let (reply, answer) = ask_of(&guest, &request(MessageType::Discover, ANY, options.to_vec())).unwrap();
        let Some(DhcpOption::DomainSearch(names)) = answer.opts().get(OptionCode::DomainSearch) else {
            panic!("no domains were told");
        };
        (reply.message.len(), names.len())
    };
    let (length, names) = told(&options);
    assert!(length <= 576 - 28 && (1..12).contains(&names), "{length} bytes, {names} names");
    options.push(DhcpOption::MaxMessageSize(1500));
    let (length, names) = told(&options);
    assert!(length <= 1450 - 28, "{length} bytes");
    assert!(names > 8, "{names} names");
}

proptest! {
    #[test]
    fn no_answer_is_longer_than_its_client_takes(
        codes in prop::collection::vec(any::<u8>(), 0..300),
        size in any::<u16>(),
        domains in 0..40_usize,
        servers in 0..100_usize,
    ) {
        let mut guest = guest();
        guest.resolver.search = (0..domains).map(|number| format!("d{number}.example.com").parse().unwrap()).collect();
        guest.resolver.servers = vec![IpAddr::V4(SERVER); servers];
        let list = codes.into_iter().map(OptionCode::from).collect();
        let options = vec![DhcpOption::ParameterRequestList(list), DhcpOption::MaxMessageSize(size)];
        let (reply, _) = ask_of(&guest, &request(MessageType::Discover, ANY, options)).unwrap();
        prop_assert!(reply.message.len() + 28 <= usize::from(size.clamp(576, 1450)));
    }

    /// Whatever a guest asks for, by whichever way through the protocol: it gets its own address or none.
    #[test]
    fn nobody_gets_anothers_address(
        message in prop::sample::select(vec![1_u8, 3, 4, 7, 8]),
        ciaddr in address(),
        wanted in prop::option::of(address()),
        server in prop::option::of(address()),
        broadcast in any::<bool>(),
    ) {
        let mut options = Vec::new();
        options.extend(wanted.map(DhcpOption::RequestedIpAddress));
        options.extend(server.map(DhcpOption::ServerIdentifier));
        let message = MessageType::from(message);
        let mut request = request(message, ciaddr, options);
        if broadcast {
            request.set_flags(Flags::default().set_broadcast());
        }
        let Some((reply, answer)) = ask(&request) else { return Ok(()) };
        prop_assert!([GUEST, Mac::BROADCAST].contains(&reply.to_mac));
        let has_lease = answer.opts().contains(OptionCode::AddressLeaseTime);
        prop_assert_eq!(answer.yiaddr(), if has_lease { OWN } else { ANY });
        if message == MessageType::Request && has_lease {
            prop_assert_eq!(wanted.unwrap_or(ciaddr), OWN);
            prop_assert!(server.is_none_or(|server| server == SERVER));
        }
    }
}

/// The addresses that mean something here, and any other.
fn address() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![Just(ANY), Just(OWN), Just(SERVER), Just(STALE), any::<u32>().prop_map(Ipv4Addr::from)]
}
