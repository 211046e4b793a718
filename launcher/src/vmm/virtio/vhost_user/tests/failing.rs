//! Backends that fail anywhere in the conversation: it costs the connection, and the next one serves the guest's rings.

use super::*;

/// A backend that answers `at` requests as it should, and the next one as `last` makes of what it should send.
fn failing(at: usize, last: fn(Vec<u8>) -> Answer) -> (OwnedFd, Receiver<Message>) {
    let mut left = at;
    answering(move |_request, honest| match left {
        0 => last(honest),
        _ => {
            left -= 1;
            Answer::GoOn(honest)
        }
    })
}

/// How many requests it takes until a backend serves a driver's rings, if each of them is failed with `last` in turn.
fn failed_in_turn(last: fn(Vec<u8>) -> Answer) -> usize {
    for at in 0.. {
        let mut bench = Bench::new(None);
        bench.activate();
        let (socket, _messages) = failing(at, last);
        bench.mailbox.connection(socket);
        match bench.event() {
            Event::BackendLost { nic: 3, .. } => assert!(!bench.link_is_up(), "failed at {at}"),
            Event::BackendConnected { nic: 3 } => return at,
            other => panic!("{other:?}"),
        }
        let (socket, messages) = backend(None);
        bench.mailbox.connection(socket);
        assert_eq!(bench.event(), Event::BackendConnected { nic: 3 }, "after one that failed at {at}");
        assert!(bench.link_is_up());
        assert_eq!(enabled(&messages), [(0, 1), (1, 1)]);
        bench.lender().reset();
        eventually(|| !bench.mailbox.is_behind());
    }
    unreachable!("an endless range")
}

/// Five questions and answers, features, memory, five words on each of the two rings, and one that switches it on.
const REQUESTS: usize = 19;

#[test]
fn a_backend_may_hang_up_at_any_request() {
    assert_eq!(failed_in_turn(|_honest| Answer::HangUp(Vec::new())), REQUESTS);
}

#[test]
fn a_backend_may_hang_up_in_the_middle_of_any_answer() {
    assert_eq!(failed_in_turn(|honest| Answer::HangUp(honest[..honest.len() / 2].to_vec())), REQUESTS);
}

#[test]
fn a_backend_may_answer_another_question_at_any_time() {
    assert_eq!(failed_in_turn(|_honest| Answer::GoOn(reply(40, 0))), REQUESTS);
}

#[test]
fn a_used_index_that_jumped_is_told_to_the_next_backend_as_it_is() {
    let (socket, messages) = backend(None);
    let hangs_up = UnixStream::from(socket.try_clone().unwrap());
    let mut bench = Bench::new(Some(socket));
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    bench.activate();
    heard(&messages, Request::SET_VRING_ENABLE);
    eventually(|| !bench.mailbox.is_behind());
    // The guest offered nothing, and all of its rings is overwritten.
    bench.ram.write_slice(&[0xff; 0x2_0000], GuestAddress(0x10_0000)).unwrap();
    hangs_up.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(bench.event(), Event::BackendLost { nic: 3, .. }));
    let (socket, messages) = backend(None);
    bench.mailbox.connection(socket);
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    let bases = [0; 2].map(|_| heard(&messages, Request::SET_VRING_BASE));
    assert_eq!(bases, [[0, 0, 0, 0, 0xff, 0xff, 0, 0], [1, 0, 0, 0, 0xff, 0xff, 0, 0]]);
    bench.lender().reset();
    eventually(|| !bench.mailbox.is_behind());
}

#[test]
fn what_is_no_answer_ends_the_connection() {
    let message = |request: u32, flags: u32, length: u32| {
        let words = [request, flags, length].into_iter().flat_map(|word| word.to_le_bytes());
        words.chain([0; 8]).collect::<Vec<u8>>()
    };
    for answer in [
        message(1, 1, 8),
        message(1, 6, 8),
        message(2, 5, 8),
        message(1, 5, 0),
        message(1, 5, u32::MAX),
        vec![0xff; 4096],
        message(1, 5, 8)[..15].to_vec(),
        Vec::new(),
    ] {
        let (mut ours, theirs) = pair();
        ours.write_all(&answer).unwrap();
        let mut connection = Connection::new(theirs.into(), LIMIT);
        connection.ask(Request::GET_FEATURES, &[]).unwrap_err();
    }
    let (ours, theirs) = pair();
    drop(ours);
    Connection::new(theirs.into(), LIMIT).ask(Request::GET_FEATURES, &[]).unwrap_err();
}

#[test]
fn a_backend_that_speaks_out_of_turn_is_dropped() {
    let (mut ours, theirs) = pair();
    for (request, answer) in [(1, FEATURES), (15, 0)] {
        ours.write_all(&reply(request, answer)).unwrap();
    }
    let bench = Bench::new(Some(theirs.into()));
    assert_eq!(bench.event(), Event::BackendConnected { nic: 3 });
    ours.write_all(b"hello").unwrap();
    assert!(matches!(bench.event(), Event::BackendLost { nic: 3, .. }));
}
