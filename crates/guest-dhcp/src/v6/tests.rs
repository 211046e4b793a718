use dhcproto::v6::ORO;
use proptest::prelude::*;

use super::*;
use crate::responder::tests::guest;

const OWN: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 2, 0, 0, 0, 0, 2);
const STALE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

fn request(kind: MessageType, options: Vec<DhcpOption>) -> Message {
    let mut message = Message::new_with_id(kind, [1, 2, 3]);
    message.opts_mut().insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 0, 0, 0, 0, 0x42]));
    for option in options {
        message.opts_mut().insert(option);
    }
    message
}

fn association(id: u32, addresses: &[Ipv6Addr]) -> DhcpOption {
    let opts = addresses.iter().map(|addr| address(*addr, 100)).collect();
    DhcpOption::IANA(IANA { id, t1: 0, t2: 0, opts })
}

fn us() -> DhcpOption {
    DhcpOption::ServerId(server_id(guest().server_mac))
}

fn ask(message: &Message) -> Option<Message> {
    let guest = guest();
    let answer = reply(&guest, guest.v6.as_ref().unwrap(), SERVERS, &message.to_vec().unwrap())?;
    let answer = Message::from_bytes(&answer).unwrap();
    assert_eq!(answer.xid(), message.xid());
    assert_eq!(answer.opts().get(OptionCode::ClientId), message.opts().get(OptionCode::ClientId));
    Some(answer)
}

/// What an answer says of each association: its addresses with their lifetimes, or the status.
fn granted(answer: &Message) -> Vec<String> {
    let one = |association: &IANA| {
        let each = association.opts.iter().map(|option| match option {
            DhcpOption::IAAddr(address) => format!("{} {}", address.addr, address.valid_life),
            DhcpOption::StatusCode(code) => format!("{:?}", code.status),
            other => format!("{other:?}"),
        });
        each.collect::<Vec<_>>().join(", ")
    };
    associations(answer.opts()).map(one).collect()
}

#[test]
fn a_client_gets_its_address_in_four_messages_or_two() {
    let advertise = ask(&request(MessageType::Solicit, vec![association(7, &[])])).unwrap();
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    assert_eq!(granted(&advertise), [format!("{OWN} 86400")]);
    let reply = ask(&request(MessageType::Request, vec![us(), association(7, &[OWN])])).unwrap();
    assert_eq!((reply.msg_type(), granted(&reply)), (MessageType::Reply, vec![format!("{OWN} 86400")]));
    let rapid = vec![association(7, &[]), DhcpOption::RapidCommit];
    let reply = ask(&request(MessageType::Solicit, rapid)).unwrap();
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
}

#[test]
fn a_lease_from_elsewhere_ends_and_the_right_one_begins() {
    for (kind, server) in [(MessageType::Renew, Some(us())), (MessageType::Rebind, None)] {
        let options = [association(7, &[STALE])].into_iter().chain(server).collect();
        let reply = ask(&request(kind, options)).unwrap();
        assert_eq!(granted(&reply), [format!("{OWN} 86400, {STALE} 0")], "{kind:?}");
    }
}

#[test]
fn confirm_tells_whether_the_client_is_still_where_it_was() {
    for (address, expected) in [(OWN, Status::Success), (STALE, Status::NotOnLink)] {
        let reply = ask(&request(MessageType::Confirm, vec![association(7, &[address])])).unwrap();
        let Some(DhcpOption::StatusCode(code)) = reply.opts().get(OptionCode::StatusCode) else {
            panic!("no status")
        };
        assert_eq!(code.status, expected);
    }
    assert!(ask(&request(MessageType::Confirm, vec![association(7, &[])])).is_none());
}

#[test]
fn there_is_one_address_and_no_prefix() {
    let prefix = DhcpOption::IAPD(IAPD { id: 9, t1: 0, t2: 0, opts: DhcpOptions::new() });
    let temporary = DhcpOption::IATA(IATA { id: 8, opts: DhcpOptions::new() });
    let options = vec![association(1, &[]), association(2, &[]), prefix, temporary];
    let answer = ask(&request(MessageType::Solicit, options)).unwrap();
    let mut all = granted(&answer);
    all.sort();
    assert_eq!(all, ["NoAddrsAvail".to_owned(), format!("{OWN} 86400")]);
    let status = |option: &DhcpOption| match option {
        DhcpOption::IAPD(prefix) => prefix.opts.get(OptionCode::StatusCode).cloned(),
        DhcpOption::IATA(temporary) => temporary.opts.get(OptionCode::StatusCode).cloned(),
        _ => None,
    };
    assert_eq!(answer.opts().iter().filter_map(status).count(), 2);
}

#[test]
fn names_are_told_to_who_asks() {
    let codes = |options: Vec<DhcpOption>| {
        let answer = ask(&request(MessageType::InformationRequest, options)).unwrap();
        let has = |code| answer.opts().get(code).is_some();
        (has(OptionCode::DomainNameServers), has(OptionCode::DomainSearchList))
    };
    assert_eq!(codes(Vec::new()), (true, true));
    let list = |codes: &[OptionCode]| vec![DhcpOption::ORO(ORO { opts: codes.to_vec() })];
    assert_eq!(codes(list(&[OptionCode::DomainNameServers])), (true, false));
    assert_eq!(codes(list(&[OptionCode::NtpServer])), (false, false));
}

#[test]
fn what_is_not_for_us_gets_no_answer() {
    let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let silent = [
        request(MessageType::Request, vec![association(7, &[])]),
        request(MessageType::Request, vec![other, association(7, &[])]),
        request(MessageType::Solicit, vec![us(), association(7, &[])]),
        request(MessageType::Advertise, vec![us()]),
        request(MessageType::Reply, vec![us()]),
        Message::new_with_id(MessageType::Solicit, [1, 2, 3]),
    ];
    for message in silent {
        assert_eq!(ask(&message), None, "{message:?}");
    }
    let guest = guest();
    let right = request(MessageType::Solicit, vec![association(7, &[])]).to_vec().unwrap();
    let v6 = guest.v6.as_ref().unwrap();
    assert!(reply(&guest, v6, SERVERS, &right).is_some());
    assert_eq!(reply(&guest, v6, OWN, &right), None, "servers are asked by multicast");
    for relay in [12, 13] {
        let nested = [&[relay][..], &right[1..]].concat();
        assert_eq!(reply(&guest, v6, SERVERS, &nested), None, "relays are not asked for");
    }
}

#[test]
fn release_and_decline_are_noted() {
    for kind in [MessageType::Release, MessageType::Decline] {
        let reply = ask(&request(kind, vec![us(), association(7, &[OWN])])).unwrap();
        let Some(DhcpOption::StatusCode(code)) = reply.opts().get(OptionCode::StatusCode) else {
            panic!("no status")
        };
        assert_eq!(code.status, Status::Success);
    }
}

#[test]
fn no_answer_is_longer_than_ipv6_s_least_mtu() {
    let mut guest = guest();
    guest.resolver.search =
        (0..50).map(|number| format!("n{number}.{}.com", "x".repeat(60)).parse().unwrap()).collect();
    guest.resolver.servers = (0..50).map(|_| STALE.into()).collect();
    let stale = [STALE; 20];
    let options = (0..20)
        .map(|id| association(id, &stale))
        .chain((0..20).map(|id| DhcpOption::IAPD(IAPD { id, t1: 0, t2: 0, opts: DhcpOptions::new() })));
    let message = request(MessageType::Rebind, options.collect()).to_vec().unwrap();
    let answer = reply(&guest, guest.v6.as_ref().unwrap(), SERVERS, &message).unwrap();
    assert!(answer.len() <= 1280 - 48, "{} bytes", answer.len());
    let Some(DhcpOption::DomainSearchList(names)) =
        Message::from_bytes(&answer).unwrap().opts().get(OptionCode::DomainSearchList).cloned()
    else {
        panic!("no domains were told");
    };
    assert!(names.len() > 3, "{} names", names.len());
}

proptest! {
    /// Whatever a guest asks for: only its own address lives on.
    #[test]
    fn nobody_gets_anothers_address(
        message in prop::sample::select(vec![1_u8, 3, 4, 5, 6, 8, 9, 11]),
        id in any::<u32>(),
        wanted in prop::collection::vec(prop_oneof![Just(OWN), Just(STALE), any::<u128>().prop_map(Ipv6Addr::from)], 0..4),
        to_us in any::<bool>(),
        rapid in any::<bool>(),
    ) {
        let mut options = vec![association(id, &wanted)];
        options.extend(to_us.then(us));
        options.extend(rapid.then_some(DhcpOption::RapidCommit));
        let Some(answer) = ask(&request(MessageType::from(message), options)) else { return Ok(()) };
        let granted = associations(answer.opts()).flat_map(|association| association.opts.iter()).filter_map(
            |option| match option {
                DhcpOption::IAAddr(address) => Some((address.addr, address.valid_life)),
                _ => None,
            },
        );
        for (address, lifetime) in granted {
            prop_assert!(address == OWN || lifetime == 0, "{} for {} s", address, lifetime);
        }
    }
}

#[test]
fn options_that_lie_about_their_length_are_not_decoded() {
    let option = |code: u16, body: &[u8]| {
        let length = u16::try_from(body.len()).unwrap();
        [&code.to_be_bytes()[..], &length.to_be_bytes(), body].concat()
    };
    let honest = request(MessageType::Solicit, vec![association(1, &[])]).to_vec().unwrap();
    let guest = guest();
    let answer = |message: &[u8]| reply(&guest, guest.v6.as_ref().unwrap(), SERVERS, message);
    let expected = answer(&honest).unwrap();
    for (code, least) in [(11, 11), (13, 2), (16, 4), (17, 4)] {
        let short = option(code, &vec![0; least - 1]);
        // Behind the others, in an address of an association, and where the decoder would come to by itself.
        let address = option(5, &[&[0; 24][..], &short].concat());
        let nested = option(4, &[&[0; 4][..], &address].concat());
        for lie in [short.clone(), nested, option(14, &short), option(7, &[&[0][..], &short].concat())] {
            let heard = answer(&[&honest[..], &lie].concat());
            assert!(heard.is_some_and(|heard| heard.starts_with(&expected[..4])), "{code}");
        }
    }
}
