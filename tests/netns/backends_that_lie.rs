//! Backends that lie, stall, hang up and flood: the VMM and its supervisor go on, and say what was wrong.
//!
//! What a backend may do to the protocol while a guest's driver is at work is tested beside the VMM's code.

use std::fs;
use std::io::{IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use e2e::eventually;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::vm_launcher_vhost_user::{NAME, Node, SOON, ctl, daemon_at};

/// Where the daemon is asked.
const CONTROL: &str = "/run/elsewhere.sock";
/// Most descriptors that a message can have (`SCM_MAX_FD`).
const DESCRIPTORS: usize = 253;

/// What a backend says, or does not, to who has just connected; and how the log tells it.
type Lie = (fn(&mut UnixStream), &'static str);

/// The reply to a request, with a body of eight bytes.
fn reply(request: u32, body: u64) -> Vec<u8> {
    let head = [request, 5, 8].into_iter().flat_map(u32::to_le_bytes);
    head.chain(body.to_le_bytes()).collect()
}

/// Waits for GET_FEATURES, which follows SET_OWNER.
fn hear(stream: &mut UnixStream) {
    stream.read_exact(&mut [0; 24]).unwrap();
}

fn say(stream: &mut UnixStream, bytes: &[u8]) {
    // The other side may have had enough.
    let _ = stream.write_all(bytes);
}

const LIES: [Lie; 6] = [
    (
        |stream| {
            hear(stream);
            say(stream, &reply(1, u64::MAX)[..13]);
            stream.shutdown(Shutdown::Both).unwrap();
        },
        "GET_FEATURES: the backend hung up",
    ),
    (
        |stream| {
            hear(stream);
            say(stream, &[0xff; 1 << 16]);
        },
        "GET_FEATURES: the reply has request 4294967295",
    ),
    (
        |stream| {
            hear(stream);
            say(stream, &reply(1, 1 << 30));
        },
        "the backend lacks features that every backend needs: 0x100000000",
    ),
    (
        |stream| {
            hear(stream);
            let file = fs::File::open("/dev/zero").unwrap();
            let files: Vec<RawFd> = vec![file.as_raw_fd(); DESCRIPTORS];
            let (bytes, with) = (reply(2, 0), [ControlMessage::ScmRights(&files)]);
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&bytes)], &with, MsgFlags::empty(), None)
                .unwrap();
        },
        "GET_FEATURES: the reply has request 2",
    ),
    (
        |stream| {
            hear(stream);
            // It has every feature there could be, as many queues, and then something to say.
            say(stream, &[reply(1, u64::MAX), reply(15, 1), reply(17, u64::MAX)].concat());
            say(stream, b"out of turn");
        },
        "the backend hung up, or spoke out of turn",
    ),
    (|_silent| {}, "GET_FEATURES: the backend does not answer within 10 s"),
];

/// Tells each its lie, one after the other, and waits until it has had enough.
fn lie(socket: &Path) {
    fs::remove_file(socket).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    for (lie, _) in LIES {
        let (mut stream, _) = listener.accept().unwrap();
        lie(&mut stream);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// A daemon that answers questions about addresses with what is none, one after the other, and tells when all is said.
fn nonsense() -> thread::JoinHandle<()> {
    fs::remove_file(CONTROL).unwrap();
    let listener = UnixListener::bind(CONTROL).unwrap();
    let seen: Vec<_> = (0..10_000)
        .map(|number| {
            let [.., high, low] = u32::to_be_bytes(number);
            format!(r#"{{"address":"10.9.{high}.{low}","mac":"02:00:00:00:0f:01","age":0}}"#)
        })
        .collect();
    thread::spawn(move || {
        let endless = vec![b'x'; 4 << 20];
        let deep = vec![b'['; 1 << 20];
        for answer in [&b"{}\n"[..], b"\xff\n", &endless, &deep] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            say(&mut stream, answer);
        }
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 4096];
        let length = stream.read(&mut question).unwrap();
        let question: serde_json::Value = serde_json::from_slice(&question[..length]).unwrap();
        let ends = format!(r#"[{{"addresses":[{}]}},{{}}]"#, seen.join(","));
        let link = format!(r#"{{"name":{},"ends":{ends}}}"#, question["name"]);
        say(&mut stream, format!("{{\"version\":1,\"done\":{{\"links\":[{link}]}}}}\n").as_bytes());
    })
}

fn descriptors(process: i32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[test]
fn a_backend_that_lies_costs_the_link_and_no_more() {
    let node = Node::new();
    let mut backend = daemon_at(CONTROL);
    let control = format!(r#""vhost-user", "control": "{CONTROL}""#);
    let up = node.launcher.up_halted(&node.manifest(r#""vhost-user""#, &control), &[]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    node.link_is("up");
    let processes = [node.launcher.vmm(NAME).unwrap(), node.launcher.supervisor(NAME)];
    let before = processes.map(descriptors);
    let links: serde_json::Value = serde_json::from_str(&ctl(&["--control", CONTROL, "list"])).unwrap();
    let name = links["links"][0]["name"].as_str().unwrap();
    let socket = PathBuf::from(format!("/run/guestwire/vhost/{name}.sock"));
    backend.child().kill().unwrap();
    backend.child().wait().unwrap();

    let nonsense = nonsense();
    lie(&socket);
    node.link_is("down");
    let log = node.launcher.run_dir().join("vms/default/fast1/supervisor.log");
    for (_, told) in LIES {
        let told = || fs::read_to_string(&log).unwrap().contains(told).then_some(());
        eventually("the log tells each lie", SOON, told);
    }
    nonsense.join().unwrap();
    eventually("few of a daemon's addresses are believed", SOON, || {
        (node.launcher.addresses(NAME).len() == 32).then_some(())
    });

    let _backend = daemon_at(CONTROL);
    node.link_is("up");
    assert_eq!([node.launcher.vmm(NAME).unwrap(), node.launcher.supervisor(NAME)], processes);
    assert_eq!(node.launcher.status(NAME)["status"]["phase"], "Running");
    eventually("no descriptor is left", SOON, || (processes.map(descriptors) == before).then_some(()));
    node.launcher.run("down", &[NAME, "--now"]);
}
