//! A VMM that makes the thread of its socket wait: no link waits for it, and nothing of the daemon.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::super::fake_vm::{BASIC, Vm};
use super::hostile::lend_call;
use super::{Daemon, Joined, link};
use crate::memory::sigbus;

/// Much longer than the daemon waits for a thread.
const LIMIT: Duration = Duration::from_secs(30);

/// Does something with a daemon, which must come to its end.
fn ends<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = channel();
    std::thread::spawn(move || done.send(work()));
    result.recv_timeout(LIMIT).expect("the daemon waits for a VMM")
}

/// Of each thread of a socket's, the number of the system call that it is in.
fn calls() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let of_sockets = threads.filter(|thread| read(thread.join("comm")).trim() == "vhost-user");
    of_sockets
        .map(|thread| read(thread.join("syscall")).split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until that holds for the calls that threads of sockets are in.
fn await_calls(wanted: impl Fn(&[String]) -> bool) {
    let until = Instant::now() + LIMIT;
    while !wanted(&calls()) {
        assert!(Instant::now() < until, "the threads are in {:?}", calls());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A descriptor whose last owner waits for an hour when it closes it: of a connection with bytes that nobody reads.
fn not_to_be_closed() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65_536]).is_ok() {}
    set_socket_linger(&stream, Some(Duration::from_secs(3600))).unwrap();
    stream.set_nonblocking(false).unwrap();
    (stream.into(), other)
}

#[test]
fn a_vmm_whose_socket_takes_no_more_connections_does_not_hold_up_the_daemon() {
    sigbus::install().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vmm");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&path).unwrap();
    let mut daemon = Daemon::start(None).unwrap();
    let other = directory.path().join("other");
    let spec = format!("vhost-user:{}?client,vhost-user:{}", path.display(), other.display());
    let name = daemon.add(&spec.parse().unwrap()).unwrap();
    ends(move || daemon.remove(&name).map(|()| daemon.stop()).unwrap());
}

#[test]
fn a_descriptor_that_nobody_can_close_holds_up_its_own_link_only() {
    let mut joined = Joined::new();
    joined.daemon.add(&link(joined.directory.path(), "c", "d")).unwrap();
    let [mut carol, mut dave] = ["c", "d"].map(|name| Vm::connect(&joined.socket(name), BASIC));
    let (descriptor, unread) = not_to_be_closed();
    // One connection is served after the other: the descriptor is on its way until the daemon has the last one.
    let [before, hostile] = [(), ()].map(|()| UnixStream::connect(joined.socket("a")).unwrap());
    lend_call(&hostile, 0, &descriptor);
    drop(descriptor);
    drop(before);
    await_calls(|calls| calls.contains(&libc::SYS_close.to_string()));
    let name = joined.daemon.report()[0].name.clone();
    let spec = link(joined.directory.path(), "a", "b");
    let mut joined = ends(move || {
        joined.daemon.remove(&name).unwrap();
        // Its sockets are free for another link.
        joined.daemon.add(&spec).unwrap();
        joined
    });
    let (mut alice, mut bob) = joined.vms();
    alice.send(1);
    bob.expect(1);
    carol.send(2);
    dave.expect(2);
    // When its thread goes on, it does nothing to the link that has its place.
    drop(unread);
    await_calls(|calls| calls.len() == 4);
    alice.send(3);
    bob.expect(3);
    assert!(joined.socket("a").exists());
    ends(move || joined.daemon.stop());
}
