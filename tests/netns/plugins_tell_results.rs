//! A plugin tells its result in one piece, and undoes an ADD whose result nobody hears.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;

use e2e::{CniCall, Namespace, Sandbox, Snapshot, binary, sh};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use serde_json::{Value, json};

/// Each that answers.
const PLUGINS: [&str; 6] = ["cnv-bridge", "cnv-tuning", "vm-tap", "masquerade", "sriov", "vhost-user"];

/// A socket whose other end gets each write as a message of its own.
fn messages() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

#[test]
fn a_result_is_written_in_one_piece() {
    for plugin in PLUGINS {
        let (ours, theirs) = messages();
        let ended =
            Command::new(binary(plugin)).env("CNI_COMMAND", "VERSION").stdout(theirs).status().unwrap();
        assert!(ended.success(), "{plugin}");
        let mut answer = [0; 4096];
        let length = recv(ours.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        let value: Value = serde_json::from_slice(&answer[..length]).unwrap_or_else(|error| {
            panic!("{plugin}: {error}: {:?}", String::from_utf8_lossy(&answer[..length]))
        });
        assert_eq!(value["cniVersion"], "1.1.0");
        assert_eq!(recv(ours.as_raw_fd(), &mut answer, MsgFlags::empty()), Ok(0), "{plugin} says more");
    }
}

#[test]
fn an_add_whose_result_nobody_hears_is_undone() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let pod = Namespace::new("pod");
    let bridge = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1", "macspoofchk": true});
    let bridge = CniCall::new("cnv-bridge", bridge).netns(&pod);
    let tap = json!({"cniVersion": "1.0.0", "name": "net", "type": "vm-tap", "mode": "tc"});
    let tap = CniCall::new("vm-tap", tap).netns(&pod);
    // A disk that is full, and a reader that has gone.
    let full = ["sh", "-c", r#"exec "$@" >/dev/full"#, "sh"];
    let gone = ["bash", "-c", r#"exec 3> >(exec true); wait $!; exec "$@" >&3 3>&-"#, "bash"];
    let look = || {
        let records = Path::new("/run/guestwire");
        (Snapshot::take(&[records]), pod.netns().run(|| Snapshot::take(&[])).unwrap())
    };
    let unchanged = |(host, inside): &(Snapshot, Snapshot)| {
        host.assert_unchanged();
        pod.netns().run(|| inside.assert_unchanged()).unwrap();
    };
    for plugin in [&bridge, &tap] {
        let before = look();
        for by in [full, gone] {
            let answer = plugin.clone().by(&by).call("ADD");
            assert_eq!(answer.code, Some(1), "{answer:?}");
            assert!(answer.stderr.contains("cannot answer on standard output"), "{answer:?}");
            unchanged(&before);
        }
        plugin.call("ADD").success();
    }
}
