//! A NIC whose driver hands its frames over without a copy: all there is of AF_XDP works, and the NIC is the host's again
//! afterwards.
//!
//! The NIC is the node VM's. What is behind it, QEMU's network for its user, answers pings to 10.0.2.2.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, Namespace, Sandbox, binary, eventually, output, sh};
use tempfile::NamedTempFile;

use crate::sriov_nic::Nic;

const LIMIT: Duration = Duration::from_secs(60);
const GATEWAY: &str = "10.0.2.2";

/// The node's NIC with two queues, and a pod whose frames come by the tap `tap0`.
struct Bench {
    nic: Nic,
    pod: Namespace,
    _sandbox: Sandbox,
}

impl Bench {
    fn new() -> Self {
        let nic = Nic::bare();
        let sandbox = Sandbox::enter();
        // The kernel gives it back to the node when this namespace ends.
        let here = nix::unistd::gettid();
        sh(&format!("nsenter --net=/proc/1/ns/net ip link set {} netns {here}", nic.link));
        let pod = Namespace::new("pod");
        sh("ip link add guest type bridge");
        sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        sh(&format!("ip link add port type veth peer name eth0 netns {}", pod.name()));
        for link in ["tap0", "port"] {
            sh(&format!("ip link set {link} up master guest"));
        }
        sh("ip link set guest up");
        pod.sh("ip link set eth0 up address 02:00:00:00:00:07");
        pod.sh("ip address add 10.0.2.15/24 dev eth0");
        sh(&format!("ip link set {} up promisc on", nic.link));
        Self { nic, pod, _sandbox: sandbox }
    }

    /// The backend between both, once it runs.
    fn backend(&self) -> (Daemon, String) {
        let log = NamedTempFile::new().unwrap();
        let link = format!("af_xdp:{}:0-1?mac=02:00:00:00:00:07&groups,tap:tap0", self.nic.link);
        let mut command = Command::new(binary("vhost-net-backend"));
        command.args(["--link", &link]).stderr(Stdio::from(log.reopen().unwrap()));
        let mut backend = Daemon::start(&mut command);
        let text = eventually("the link was added", LIMIT, || {
            let ended = backend.child().try_wait().unwrap();
            let text = fs::read_to_string(log.path()).unwrap();
            assert!(ended.is_none(), "{text}");
            text.contains("added").then_some(text)
        });
        (backend, text)
    }

    /// All of 20 pings of this size are answered, once the first was: the NIC may just have come up.
    fn pings(&self, size: u16) {
        let pings = |count: u16| {
            let count = count.to_string();
            let size = size.to_string();
            let mut ping = self.pod.command("ping");
            output(ping.args(["-c", &count, "-i", "0.05", "-W", "2", "-s", &size, GATEWAY]))
        };
        eventually("the gateway answers", LIMIT, || pings(1).status.success().then_some(()));
        let said = String::from_utf8(pings(20).stdout).unwrap();
        assert!(said.contains(" 20 received"), "{said}");
    }
}

#[test]
fn frames_pass_without_copies_after_a_kill_and_a_loss_of_carrier() {
    let bench = Bench::new();
    let (mut backend, log) = bench.backend();
    assert_eq!(log.matches("mode=Native zero_copy=true").count(), 2, "one for each queue: {log}");
    bench.pings(56);
    bench.pings(1400);

    sh(&format!("ip link set {} down", bench.nic.link));
    sh(&format!("ip link set {} up", bench.nic.link));
    bench.pings(1400);

    backend.child().kill().unwrap();
    backend.child().wait().unwrap();
    let (backend, log) = bench.backend();
    assert!(log.contains("zero_copy=true"), "{log}");
    bench.pings(1400);

    drop(backend);
    assert!(!sh(&format!("ip link show {}", bench.nic.link)).contains("xdp"), "no program stays");
    sh(&format!("ip address add 10.0.2.16/24 dev {}", bench.nic.link));
    sh(&format!("ping -c 3 -i 0.2 -W 10 {GATEWAY}"));
}
