//! The control socket as its clients meet it.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{ClientError, ask};
use super::message::{Command, Done, ErrorCode, LinkInfo, LinkStats, MAX_REQUEST};
use super::server::{Server, Shared};
use crate::daemon::Daemon;
use crate::daemon::fake_vm::{BASIC, Vm};
use crate::memory::sigbus;
use crate::state::State;

/// A daemon with a control socket and a directory for what it remembers.
struct Controlled {
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
    server: Option<Server>,
}

impl Controlled {
    fn new() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    fn in_directory(directory: tempfile::TempDir) -> Self {
        sigbus::install().unwrap();
        let state = State::open(directory.path().join("state")).unwrap();
        let shared = Shared::new(Daemon::start(None).unwrap(), Some(state));
        shared.expect().unwrap();
        shared.restore().unwrap();
        let server = Server::start(&directory.path().join("run/control"), Arc::clone(&shared)).unwrap();
        Self { directory, shared, server: Some(server) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ask(&self, command: Command) -> Result<Done, ClientError> {
        ask(&self.path("run/control"), command).map(|(done, _)| done)
    }

    /// Adds a link of two guests, whose sockets are `<name>-a` and `<name>-b`.
    fn add(&self, name: &str, options: &str) -> Result<Done, ClientError> {
        let end = |side: &str| format!("vhost-user:{}", self.path(&format!("{name}-{side}")).display());
        let ends = format!("{}{options},{}", end("a"), end("b"));
        self.ask(Command::Add { name: Some(name.parse().unwrap()), ends })
    }

    fn links(&self) -> Vec<LinkInfo> {
        match self.ask(Command::List { name: None }).unwrap() {
            Done::Links(links) => links,
            other => panic!("{other:?}"),
        }
    }

    fn stats(&self, name: &str) -> LinkStats {
        match self.ask(Command::Stats { name: Some(name.parse().unwrap()) }).unwrap() {
            Done::Stats(mut stats) => stats.remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn vms(&self, name: &str) -> (Vm, Vm) {
        let vm = |side: &str| Vm::connect(&self.path(&format!("{name}-{side}")), BASIC);
        (vm("a"), vm("b"))
    }

    /// Ends the daemon as SIGTERM does; what it remembers stays.
    fn stop(self) -> tempfile::TempDir {
        let Self { directory, shared, server } = self;
        drop(server);
        shared.daemon().stop();
        directory
    }
}

fn code(result: Result<Done, ClientError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

#[test]
fn a_link_is_added_seen_counted_and_removed_while_others_run() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    let (mut alice, mut bob) = controlled.vms("one");
    assert_eq!(controlled.add("two", "").unwrap(), Done::Added("two".parse().unwrap()));
    assert_eq!(code(controlled.add("two", "")), Some(ErrorCode::Exists));
    alice.send(1);
    bob.expect(1);
    // Between two batches, so after the frame was counted.
    let links = controlled.links();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(links[0].ends.each_ref().map(|end| end.running), [true, true]);
    assert_eq!(links[1].ends.each_ref().map(|end| end.running), [false, false]);
    let [there, back] = controlled.stats("one").directions;
    assert_eq!((there.packets, there.bytes, there.batches, back.packets), (1, 100, 1, 0));
    let removed = controlled.ask(Command::Remove { name: "two".parse().unwrap() }).unwrap();
    assert_eq!(removed, Done::Removed("two".parse().unwrap()));
    assert!(!controlled.path("two-a").exists());
    assert_eq!(
        code(controlled.ask(Command::Remove { name: "two".parse().unwrap() })),
        Some(ErrorCode::NoSuchLink)
    );
    alice.send(2);
    bob.expect(2);
}

#[test]
fn a_removed_link_hangs_up_on_its_guests() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    let (mut alice, mut bob) = controlled.vms("one");
    controlled.ask(Command::Remove { name: "one".parse().unwrap() }).unwrap();
    alice.await_hangup();
    bob.await_hangup();
}

#[test]
fn links_that_were_added_come_back_after_a_restart_and_removed_ones_do_not() {
    let controlled = Controlled::new();
    controlled.add("kept", "?queues=2&observe").unwrap();
    controlled.add("gone", "").unwrap();
    controlled.ask(Command::Remove { name: "gone".parse().unwrap() }).unwrap();
    // One that cannot come back: it stays remembered until it is removed.
    std::fs::write(
        controlled.path("state/lost.json"),
        r#"{"version":1,"ends":"tap:no-such-tap,vhost-user:/no/such/folder"}"#,
    )
    .unwrap();
    let before = controlled.links();
    let controlled = Controlled::in_directory(controlled.stop());
    let mut links = controlled.links();
    let lost = links.pop().unwrap();
    assert_eq!(links, before);
    assert_eq!((lost.name.as_str(), lost.core), ("lost", None));
    assert_eq!(
        lost.ends.map(|end| (end.end, end.running)),
        ["tap:no-such-tap", "vhost-user:/no/such/folder"].map(|end| (end.to_owned(), false))
    );
    assert!(lost.error.unwrap().contains("there is no tap no-such-tap"));
    let named = |name: &str| controlled.ask(Command::List { name: Some(name.parse().unwrap()) }).unwrap();
    assert!(matches!(named("lost"), Done::Links(links) if links.len() == 1));
    assert!(matches!(named("gone"), Done::Links(links) if links.is_empty()));
    let (mut alice, mut bob) = controlled.vms("kept");
    alice.send(1);
    bob.expect(1);
    controlled.ask(Command::Remove { name: "lost".parse().unwrap() }).unwrap();
    assert!(!controlled.path("state/lost.json").exists());
    assert_eq!(controlled.links().len(), 1);
    assert_eq!(
        code(controlled.ask(Command::Remove { name: "lost".parse().unwrap() })),
        Some(ErrorCode::NoSuchLink)
    );
}

#[test]
fn a_link_without_a_name_gets_none_that_is_remembered() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("state")).unwrap();
    let file = directory.path().join("state/link0.json");
    let text = r#"{"version":1,"ends":"tap:no-such-tap,vhost-user:/no/such/folder"}"#;
    std::fs::write(&file, text).unwrap();
    // One of the configuration's, which is there before those that are remembered.
    let state = State::open(directory.path().join("state")).unwrap();
    let shared = Shared::new(Daemon::start(None).unwrap(), Some(state));
    shared.expect().unwrap();
    let ends = |one: &str, other: &str| {
        let end = |name: &str| format!("vhost-user:{}", directory.path().join(name).display());
        format!("{},{}", end(one), end(other))
    };
    let name = shared.daemon().add(&ends("a", "b").parse().unwrap()).unwrap();
    assert_eq!(name.as_str(), "link1");
    shared.restore().unwrap();
    let name = shared.daemon().add(&ends("c", "d").parse().unwrap()).unwrap();
    assert_eq!((name.as_str(), std::fs::read_to_string(&file).unwrap().as_str()), ("link2", text));
    // By its own name it is as before, or another.
    let own = format!("link0={}", ends("e", "f"));
    assert_eq!(shared.daemon().add(&own.parse().unwrap()).unwrap().as_str(), "link0");
    assert!(shared.daemon().lost().is_empty());
    shared.daemon().stop();
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    // Nobody is answered as long as somebody else has the daemon.
    let held = controlled.shared.daemon();
    std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..100).map(|_| scope.spawn(|| controlled.ask(Command::List { name: None }))).collect();
        std::thread::sleep(Duration::from_millis(500));
        drop(held);
        for client in asked {
            assert!(matches!(client.join().unwrap(), Ok(Done::Links(links)) if links.len() == 1));
        }
    });
}

#[test]
fn captures_leave_room_for_other_requests() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    let capture = || {
        let capture = Command::Capture { name: "one".parse().unwrap(), snap: Some(80) };
        ask(&controlled.path("run/control"), capture)
    };
    let mut captures: Vec<_> = (0..16).map(|_| capture().unwrap()).collect();
    let refused = capture().unwrap_err();
    assert_eq!(
        (refused.code(), refused.to_string()),
        (Some(ErrorCode::Failed), "there are 16 captures already".to_owned())
    );
    assert_eq!(controlled.links().len(), 1);
    // The end of one is noticed on a quiet link, too.
    captures.pop();
    let until = Instant::now() + Duration::from_secs(10);
    while capture().is_err() {
        assert!(Instant::now() < until, "no capture is possible any more");
    }
}

#[test]
fn frames_that_come_now_and_then_are_captured_as_they_come() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    let (mut alice, mut bob) = controlled.vms("one");
    let capture = Command::Capture { name: "one".parse().unwrap(), snap: None };
    let (_, mut stream) = ask(&controlled.path("run/control"), capture).unwrap();
    stream.read_exact(&mut [0; 24]).unwrap();
    stream.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    // Never quiet for as long as a capture waits; all together less than its buffer holds.
    for seed in 0..40 {
        alice.send(seed);
        bob.expect(seed);
        if stream.read(&mut [0; 116]).is_ok_and(|count| count > 0) {
            return;
        }
    }
    panic!("40 frames went by, and none was captured");
}

#[test]
fn a_spoofed_frame_is_dropped_and_counted_and_addresses_are_observed() {
    let controlled = Controlled::new();
    controlled.add("one", "?source=02:00:00:00:00:07&observe").unwrap();
    let (mut alice, mut bob) = controlled.vms("one");
    let arp = |mac: u8| {
        let own = [2, 0, 0, 0, 0, mac];
        let front = [[0; 12].as_slice(), &[0xff; 6], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own].concat();
        [&front, [192, 0, 2, mac].as_slice(), &[0; 6], &[192, 0, 2, 1]].concat()
    };
    alice.send_raw(&arp(8));
    alice.send_raw(&arp(7));
    let received = bob.receive();
    assert_eq!(
        received.iter().map(|bytes| bytes[12..].to_vec()).collect::<Vec<_>>(),
        [arp(7)[12..].to_vec()]
    );
    let stats = controlled.stats("one");
    assert_eq!(stats.directions[0].drops["spoofed"], 1);
    let seen = std::iter::repeat_with(|| controlled.links().remove(0).ends[0].addresses.clone());
    let seen = seen.take(10_000).find(|addresses| !addresses.is_empty()).expect("an address was seen");
    assert_eq!((seen.len(), seen[0].address.to_string().as_str()), (1, "192.0.2.7"));
    assert_eq!(seen[0].mac.to_string(), "02:00:00:00:00:07");
}

#[test]
fn a_capture_has_every_frame_both_ways() {
    let controlled = Controlled::new();
    controlled.add("one", "").unwrap();
    let (mut alice, mut bob) = controlled.vms("one");
    let name = "one".parse().unwrap();
    let capture = Command::Capture { name, snap: Some(80) };
    let (done, mut stream) = ask(&controlled.path("run/control"), capture).unwrap();
    assert_eq!(done, Done::Capturing("one".parse().unwrap()));
    let mut head = [0; 24];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
    assert_eq!(head[16..], [80, 0, 0, 0, 1, 0, 0, 0]);
    for seed in 0..20 {
        alice.send(seed);
        bob.expect(seed);
        bob.send(seed + 100);
        alice.expect(seed + 100);
    }
    for seed in (0..20).flat_map(|seed| [seed, seed + 100]) {
        let mut bytes = [0; 16 + 80];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[8..16], [80, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(bytes[16..], crate::ring::fake::frame(100, seed)[12..12 + 80]);
    }
    // A link that goes ends its captures.
    controlled.ask(Command::Remove { name: "one".parse().unwrap() }).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn requests_that_are_none_are_refused_with_a_reason() {
    let controlled = Controlled::new();
    let raw = |line: &str| {
        let mut stream = UnixStream::connect(controlled.path("run/control")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for (line, code) in [
        ("", "bad-request"),
        ("[]\n", "bad-request"),
        ("{\"version\":2,\"command\":\"list\"}\n", "version"),
        ("{\"version\":1,\"command\":\"reboot\"}\n", "bad-request"),
        ("{\"version\":1,\"command\":\"add\",\"ends\":\"tap:a\"}\n", "bad-request"),
        ("{\"version\":1,\"command\":\"remove\",\"name\":\"../x\"}\n", "bad-request"),
        ("{\"version\":1,\"command\":\"capture\",\"name\":\"none\"}\n", "no-such-link"),
        ("{\"version\":1,\"command\":\"add\",\"ends\":\"tap:a?netns=/no/such,tap:b\"}\n", "failed"),
    ] {
        let answer = raw(line);
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{line}: {answer}");
    }
    let long = format!("{{\"version\":1,\"x\":\"{}\"}}\n", "x".repeat(MAX_REQUEST));
    assert!(raw(&long[..MAX_REQUEST]).contains("bad-request"));
    assert!(controlled.links().is_empty());
}

#[test]
fn a_client_that_says_a_byte_now_and_then_is_not_heard_out() {
    let controlled = Controlled::new();
    let mut stream = UnixStream::connect(controlled.path("run/control")).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while stream.write_all(b" ").is_ok() {
        assert!(Instant::now() < until, "it is still listened to");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_socket_is_its_owners_only() {
    let controlled = Controlled::new();
    let mode = std::fs::metadata(controlled.path("run/control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let path = controlled.path("run/control");
    let _directory = controlled.stop();
    assert!(!path.exists());
    assert!(matches!(ask(&path, Command::List { name: None }), Err(ClientError::Connect { .. })));
}
