//! `vhost-net-backend` as an administrator runs it: from a file, watched by Prometheus, changed while it runs.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Daemon, Sandbox, binary, eventually, output, run, sh};
use serde_json::Value;

use crate::vhost_guests::Guest;

const LIMIT: Duration = Duration::from_secs(20);
const METRICS: &str = "127.0.0.1:9105";

/// A directory with a daemon's files, and the daemon.
struct Node {
    directory: tempfile::TempDir,
    daemon: Daemon,
    _sandbox: Sandbox,
}

impl Node {
    /// Starts one from a configuration file; `links` are its links.
    fn new(links: &[&str]) -> Self {
        let sandbox = Sandbox::enter();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vhost.yaml");
        let links: String = links.iter().map(|link| format!("  - {link}\n")).collect();
        let links = if links.is_empty() { " []\n".to_owned() } else { format!("\n{links}") };
        let at = directory.path().display();
        let text = format!("control: {at}/control\nstate: {at}/state\nmetrics: {METRICS}\nlinks:{links}");
        std::fs::write(&file, text).unwrap();
        let daemon = start(&file);
        let node = Self { directory, daemon, _sandbox: sandbox };
        eventually("the daemon is ready", LIMIT, || {
            node.page("readyz").filter(|(status, _)| *status == 200).map(|_| ())
        });
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn ctl(&self, words: &[&str]) -> Value {
        serde_json::from_str(&run(&mut self.ctl_command(words))).unwrap()
    }

    fn ctl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary("vhost-net-backend"));
        command.arg("ctl").arg("--control").arg(self.path("control")).args(words);
        command
    }

    /// Status and text of a page; none while nobody listens.
    fn page(&self, name: &str) -> Option<(u16, String)> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "5", "--write-out", "\n%{http_code}"]);
        let answer = output(command.arg(format!("http://{METRICS}/{name}")));
        let text = String::from_utf8(answer.stdout).unwrap();
        let (page, status) = text.rsplit_once('\n')?;
        Some((status.parse().ok().filter(|status| *status > 0)?, page.to_owned()))
    }
}

fn start(config: &Path) -> Daemon {
    Daemon::start(Command::new(binary("vhost-net-backend")).arg("--config").arg(config))
}

fn taps() {
    for tap in ["tap0", "tap1"] {
        sh(&format!("ip tuntap add dev {tap} mode tap vnet_hdr"));
        sh(&format!("ip link set {tap} up"));
    }
}

#[test]
fn a_daemon_from_a_file_is_watched_and_changed_while_it_runs() {
    let mut node = Node::new(&[]);
    taps();
    assert_eq!(node.ctl(&["list"])["links"], Value::Array(Vec::new()));
    assert_eq!(node.ctl(&["add", "wire=tap:tap0,tap:tap1"])["added"], "wire");
    let twice = output(&mut node.ctl_command(&["add", "wire=tap:tap0,tap:tap1"]));
    assert!(!twice.status.success());
    let reason = String::from_utf8(twice.stderr).unwrap();
    assert!(reason.contains("there is a link wire already"), "{reason}");
    // The kernel says hello on a link that has come up: router solicitations go from tap to tap.
    let counted = eventually("frames pass", LIMIT, || {
        let packets = node.ctl(&["stats", "wire"])["stats"][0]["directions"][0]["packets"].as_u64().unwrap();
        (packets > 0).then_some(packets)
    });
    let (status, page) = node.page("metrics").unwrap();
    assert_eq!(status, 200);
    let line = page
        .lines()
        .find(|line| line.starts_with("vhost_net_packets_total{link=\"wire\",from=\"tap:tap0\"}"));
    let shown: u64 = line.and_then(|line| line.split(' ').next_back()).unwrap().parse().unwrap();
    assert!(shown >= counted, "{page}");
    assert_eq!(node.page("healthz").unwrap().0, 200);
    assert_eq!(node.page("secrets").unwrap().0, 404);
    // By SIGKILL: what was added comes back.
    node.daemon.child().kill().unwrap();
    node.daemon.child().wait().unwrap();
    node.daemon = start(&node.path("vhost.yaml"));
    let names = eventually("the daemon is back", LIMIT, || {
        let answer = output(&mut node.ctl_command(&["list"]));
        answer.status.success().then(|| serde_json::from_slice::<Value>(&answer.stdout).unwrap())
    });
    assert_eq!(names["links"][0]["name"], "wire");
    assert_eq!(node.ctl(&["remove", "wire"])["removed"], "wire");
    assert_eq!(node.ctl(&["list"])["links"], Value::Array(Vec::new()));
}

#[test]
fn a_device_that_is_deleted_ends_its_end_of_a_quiet_link() {
    let node = Node::new(&[]);
    taps();
    sh("ip link add nic type veth peer name wire");
    sh("ip link set nic up");
    // No guest connects, so nothing is sent that could fail.
    node.ctl(&["add", "tap=vhost-user:/run/a.sock,tap:tap0"]);
    node.ctl(&["add", "nic=vhost-user:/run/b.sock,af_xdp:nic"]);
    for (link, device) in [("tap", "tap0"), ("nic", "nic")] {
        let runs = || node.ctl(&["list", link])["links"][0]["ends"][1]["running"].as_bool().unwrap();
        assert!(runs(), "{link}");
        sh(&format!("ip link del {device}"));
        eventually("the end has ended", LIMIT, || (!runs()).then_some(()));
        let faults = &node.ctl(&["stats", link])["stats"][0]["faults"];
        assert_eq!(faults[1]["io"], 1, "{faults}");
    }
}

#[test]
fn clients_that_read_no_page_do_not_keep_others_from_theirs() {
    let node = Node::new(&[]);
    let address = METRICS.parse().unwrap();
    let hogs: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut hog = TcpStream::connect_timeout(&address, LIMIT).unwrap();
            hog.set_nonblocking(true).unwrap();
            // As many requests as find room.
            let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
            while hog.write(requests.as_bytes()).is_ok() {}
            hog
        })
        .collect();
    eventually("a page", LIMIT, || node.page("healthz").filter(|(status, _)| *status == 200).map(drop));
    drop(hogs);
}

#[test]
fn the_daemon_takes_as_many_descriptors_as_it_may_have() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=100:400").arg(binary("vhost-net-backend"));
    let mut daemon = Daemon::start(command.arg("--control").arg(directory.path().join("control")));
    let limits = format!("/proc/{}/limits", daemon.child().id());
    eventually("the limit is raised", LIMIT, || {
        let text = std::fs::read_to_string(&limits).unwrap();
        let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        let words: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
        (words == ["400", "400"]).then_some(())
    });
}

/// A guest with both ends of a link, which sends by each without end.
fn both_ends(node: &Node, name: &str, log: &str) -> Guest {
    let port = |end: usize| format!("path={},queue_size=256", node.path(&format!("{name}{end}")).display());
    let mut guest = Guest::start(node.directory.path(), log, "flowgen", &[port(0), port(1)]);
    guest.say("start");
    guest.await_frames(2, 1000);
    guest
}

#[test]
fn a_link_removed_in_full_traffic_takes_no_other_along() {
    let mut node = Node::new(&[]);
    let add = |node: &Node, name: &str| {
        let [one, two] = [0, 1].map(|end| node.path(&format!("{name}{end}")).display().to_string());
        node.ctl(&["add", &format!("{name}=vhost-user:{one},vhost-user:{two}")]);
    };
    add(&node, "other");
    let mut other = both_ends(&node, "other", "other.log");
    for life in 0..3 {
        add(&node, "link");
        let _guest = both_ends(&node, "link", &format!("guest{life}.log"));
        assert_eq!(node.ctl(&["remove", "link"])["removed"], "link");
        assert!(!node.path("link0").exists() && !node.path("link1").exists());
        other.await_frames(2, 1000);
        assert_eq!(node.daemon.child().try_wait().unwrap(), None, "the daemon ended");
    }
}

#[test]
fn a_capture_can_be_read_by_tcpdump() {
    let node = Node::new(&[]);
    taps();
    node.ctl(&["add", "wire=tap:tap0,tap:tap1"]);
    let file = node.path("wire.pcap");
    let name = file.to_str().unwrap();
    let mut capture = node.ctl_command(&["capture", "wire", "--count", "2", "--output", name]);
    let mut capture = capture.spawn().unwrap();
    eventually("the capture has begun", LIMIT, || {
        file.metadata().is_ok_and(|file| file.len() >= 24).then_some(())
    });
    // Nobody has that address: ARP requests go out.
    sh("ip addr add 192.0.2.1/24 dev tap0");
    let _unanswered = output(Command::new("ping").args(["-c", "1", "-W", "5", "192.0.2.2"]));
    assert!(capture.wait().unwrap().success());
    let text = sh(&format!("tcpdump -nn -r {name}"));
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn sigterm_ends_a_daemon_and_leaves_no_socket() {
    let mut node = Node::new(&["vm=vhost-user:/run/vm.sock,vhost-user:/run/vm2.sock?observe"]);
    assert!(Path::new("/run/vm.sock").exists());
    let pid = node.daemon.child().id();
    sh(&format!("kill -TERM {pid}"));
    assert!(node.daemon.child().wait().unwrap().success());
    for socket in [Path::new("/run/vm.sock"), Path::new("/run/vm2.sock"), &node.path("control")] {
        assert!(!socket.exists(), "{}", socket.display());
    }
}

#[test]
fn a_mistake_in_the_file_is_named() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let refusal = |text: &str| {
        let file = directory.path().join("vhost.yaml");
        std::fs::write(&file, text).unwrap();
        let answer = output(Command::new(binary("vhost-net-backend")).arg("--config").arg(file));
        assert!(!answer.status.success());
        String::from_utf8(answer.stderr).unwrap()
    };
    for (text, reason) in [
        ("links: [\"tap:a\"]", "links[0]"),
        ("link: []", "link"),
        ("cores: 3-1\nlinks: [\"tap:a,tap:b\"]", "core list \"3-1\""),
        ("cores: 0", "nothing to do"),
        ("state: /tmp\nlinks: [\"tap:a,tap:b\"]", "--state is only for links added by --control"),
        ("links: [\"tap:none,vhost-user:/run/x\"]", "there is no tap none"),
    ] {
        let answer = refusal(text);
        assert!(answer.contains(reason), "{text}: {answer}");
    }
}
