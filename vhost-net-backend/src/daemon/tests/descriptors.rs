//! A daemon without descriptors to spare.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::fake_vm::{BASIC, Vm};
use super::Joined;
use crate::control::server::{Server, Shared};

const LIMIT: Duration = Duration::from_secs(30);

/// How often a thread has waited so far; read again and again by one descriptor.
struct Waits(File);

impl Waits {
    /// Of the first of so many threads of this name, once they have it.
    fn of_first(name: &str, count: usize) -> Self {
        let until = Instant::now() + LIMIT;
        loop {
            let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
            let has_name =
                |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).unwrap().trim() == name;
            let mut threads: Vec<_> = threads.filter(has_name).collect();
            if threads.len() == count {
                return Self(File::open(threads.swap_remove(0).join("status")).unwrap());
            }
            assert!(Instant::now() < until, "{threads:?} have the name {name}");
        }
    }

    fn count(&mut self) -> u64 {
        let mut text = String::new();
        self.0.rewind().unwrap();
        self.0.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Waits until it has waited a few times more: it is not always at work.
    fn await_more(&mut self) {
        let (before, until) = (self.count(), Instant::now() + LIMIT);
        while self.count() < before + 3 {
            assert!(Instant::now() < until, "a thread does not rest: {} since {before}", self.count());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn without_descriptors_connections_wait_and_nobody_runs_in_circles() {
    let joined = Joined::new();
    let Joined { directory, daemon } = joined;
    let shared = Shared::new(daemon, None);
    let control = Server::start(&directory.path().join("control"), shared).unwrap();
    let socket = || rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let [guest, client] = [(), ()].map(|()| socket());
    // The second end's thread has nothing to do.
    let mut waits = [Waits::of_first("vhost-user", 2), Waits::of_first("control", 1)];
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..before }).unwrap();
    let mut taken = Vec::new();
    while let Ok(copy) = rustix::io::dup(guest.as_fd()) {
        taken.push(copy);
    }
    for (socket, name) in [(&guest, "a"), (&client, "control")] {
        let path = directory.path().join(name);
        rustix::net::connect(socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    }
    waits.iter_mut().for_each(Waits::await_more);
    drop(taken);
    setrlimit(Resource::Nofile, before).unwrap();
    // Both are heard now.
    let mut client = UnixStream::from(client);
    client.write_all(b"{\"version\":1,\"command\":\"list\"}\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"running\":false"), "{answer}");
    let mut alice = Vm::over(UnixStream::from(guest), BASIC);
    let mut bob = Vm::connect(&directory.path().join("b"), BASIC);
    alice.send(1);
    bob.expect(1);
    drop(control);
}
