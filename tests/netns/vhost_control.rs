//! `vhost-net-backend` as an administrator runs it: from a file, watched by Prometheus, changed while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use e2e::{Daemon, Namespace, Sandbox, binary, eventually, output, run, sh};
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

/// Starts a capture to a file, and waits until it has begun.
fn begin(node: &Node, file: &Path, more: &[&str]) -> Child {
    let words = [&["capture", "wire", "--output", file.to_str().unwrap()], more].concat();
    let capture = node.ctl_command(&words).spawn().unwrap();
    eventually("the capture has begun", LIMIT, || {
        file.metadata().is_ok_and(|file| file.len() >= 24).then_some(())
    });
    capture
}

#[test]
fn a_capture_ends_with_its_link_or_daemon_and_keeps_as_much_of_a_frame_as_it_is_told() {
    let mut node = Node::new(&[]);
    taps();
    sh("ip addr add 192.0.2.1/24 dev tap0");
    // Nobody has that address: ARP requests go out.
    let ping = || output(Command::new("ping").args(["-c", "1", "-W", "1", "192.0.2.2"]));
    node.ctl(&["add", "wire=tap:tap0,tap:tap1"]);
    let file = node.path("snapped.pcap");
    let mut capture = begin(&node, &file, &["--snap", "20", "--count", "1"]);
    ping();
    assert!(capture.wait().unwrap().success());
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 24 + 16 + 20);
    sh(&format!("tcpdump -nn -r {}", file.display()));

    for end in ["removed", "killed"] {
        let file = node.path(end);
        let mut capture = begin(&node, &file, &[]);
        ping();
        if end == "removed" {
            node.ctl(&["remove", "wire"]);
        } else {
            node.daemon.child().kill().unwrap();
        }
        assert!(capture.wait().unwrap().success());
        assert!(sh(&format!("tcpdump -nn -r {}", file.display())).contains("192.0.2.2"), "{end}");
        if end == "removed" {
            node.ctl(&["add", "wire=tap:tap0,tap:tap1"]);
        }
    }
}

#[test]
fn a_capture_that_cannot_be_written_or_had_is_told() {
    let node = Node::new(&[]);
    taps();
    node.ctl(&["add", "wire=tap:tap0,tap:tap1"]);
    for (words, reason) in [
        (["wire", "--output", "/dev/full"], "copy the capture: No space left on device"),
        (["wire", "--output", "/no/such/file"], "create /no/such/file: No such file or directory"),
        (["none", "--output", "/run/none.pcap"], "there is no link none"),
    ] {
        let refused = output(&mut node.ctl_command(&[["capture"].as_slice(), &words].concat()));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && told.contains(reason), "{words:?}: {told}");
    }
    assert!(!Path::new("/run/none.pcap").exists(), "no file without a capture");
}

#[test]
fn an_unknown_name_is_told_and_whoever_reads_may_leave() {
    let node = Node::new(&[]);
    taps();
    node.ctl(&["add", "wire=tap:tap0,tap:tap1"]);
    for command in ["list", "stats"] {
        let answer = output(&mut node.ctl_command(&[command, "none"]));
        let told = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{told}");
        assert_eq!(
            (told.as_str(), answer.stdout),
            ("vhost-net-backend: there is no link none\n", Vec::new())
        );
    }
    // Whoever reads has left before the answer comes.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    for words in [&["list"][..], &["capture", "wire"]] {
        let mut command = node.ctl_command(words);
        let answer = command.stdout(writer.try_clone().unwrap()).output().unwrap();
        assert!(answer.status.success() && answer.stderr.is_empty(), "{answer:?}");
    }
}

/// Reads a page as Prometheus does (text format 0.0.4): each sample with its value, and which are counters. Panics at what is
/// not allowed: a name or label that is none, a sample without its type or apart from others of its name, one that is there twice.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (mut found, mut named, mut current) = (BTreeMap::new(), BTreeSet::new(), String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(matches!(kind, "counter" | "gauge") && named.insert(name.to_owned()), "{line}");
            name.clone_into(&mut current);
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(is_name(name) && name == current, "{line}");
        let mut rest = labels;
        while rest != "}" {
            let (label, text) = rest.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let mut escaped = false;
            let end = text.find(|next| {
                let ends = next == '"' && !escaped;
                assert!(!escaped || matches!(next, '"' | '\\' | 'n'), "{line}");
                escaped = next == '\\' && !escaped;
                ends
            });
            rest = &text[end.unwrap() + 1..];
            rest = rest.strip_prefix(',').unwrap_or(rest);
        }
        assert!(found.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line} is there twice");
    }
    found
}

#[test]
fn each_page_is_what_prometheus_reads_and_its_counters_only_grow() {
    let node = Node::new(&[]);
    // Two taps of one name, and a socket with all that has to be escaped.
    let pods = ["one", "two"].map(Namespace::new);
    let ends = pods.each_ref().map(|pod| {
        pod.sh("ip tuntap add dev tap0 mode tap vnet_hdr");
        pod.sh("ip link set tap0 up");
        format!("tap:tap0?netns={}", pod.path().display())
    });
    node.ctl(&["add", &format!("twins={}", ends.join(","))]);
    node.ctl(&["add", "odd=vhost-user:/run/a \"b\\c,vhost-user:/run/d"]);
    let mut before = samples(&node.page("metrics").unwrap().1);
    let moved = |page: &BTreeMap<String, f64>| {
        let twins =
            page.iter().filter(|(series, _)| series.starts_with("vhost_net_packets_total{link=\"twins\""));
        assert_eq!(twins.clone().count(), 2);
        twins.map(|(_, value)| value).sum::<f64>()
    };
    // VMMs come, say nonsense and go, while the kernel's first frames pass.
    for came in 1..=3 {
        let mut stream = UnixStream::connect("/run/a \"b\\c").unwrap();
        stream.write_all(&[0xff; 12]).unwrap();
        drop(stream);
        let fault =
            "vhost_net_faults_total{link=\"odd\",end=\"vhost-user:/run/a \\\"b\\\\c\",reason=\"message\"}";
        let now = eventually("the fault is counted, and frames passed", LIMIT, || {
            let now = samples(&node.page("metrics").unwrap().1);
            (now.get(fault) == Some(&f64::from(came)) && moved(&now) > 0.0).then_some(now)
        });
        for (series, value) in before.iter().filter(|(series, _)| series.contains("_total")) {
            assert!(now[series] >= *value, "{series} was {value} and is {}", now[series]);
        }
        before = now;
    }
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
        ("metrics: 9105\nlinks: []", "vhost.yaml: metrics: \"9105\" is not ADDRESS:PORT"),
        ("control: ''", "control: is empty"),
        ("cores: 99\nlinks: [\"tap:a,tap:b\"]", "may not run on CPU 99, only on "),
        (
            "links: [\"x=vhost-user:/run/a,vhost-user:/run/b\", \"x=tap:a,tap:b\"]",
            "there is a link x already",
        ),
        ("links: [\"tap:a,tap:a\"]", "links[0]: link \"tap:a,tap:a\" has tap:a at both ends"),
    ] {
        let answer = refusal(text);
        assert!(answer.contains(reason), "{text}: {answer}");
    }
}
