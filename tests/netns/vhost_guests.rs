//! Guests with a real driver (DPDK's virtio-user) exchange packets through `vhost-net-backend`, whoever is killed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::{Daemon, Sandbox, binary, eventually, sh};
use nix::sched::CpuSet;

const LIMIT: Duration = Duration::from_secs(30);

/// testpmd with virtio-user ports: a guest with a polling driver. Killed when dropped.
pub(crate) struct Guest {
    child: Child,
    log: PathBuf,
}

impl Guest {
    /// Starts it in forwarding mode `mode`; `ports` are its virtio-user devices' arguments.
    pub(crate) fn start(directory: &Path, name: &str, mode: &str, ports: &[String]) -> Self {
        Self::with_queues(directory, name, mode, ports, 1)
    }

    /// As [`start`](Self::start), with so many queue pairs of each port in use.
    pub(crate) fn with_queues(
        directory: &Path,
        name: &str,
        mode: &str,
        ports: &[String],
        pairs: usize,
    ) -> Self {
        let log = directory.join(name);
        let output = std::fs::File::create(&log).unwrap();
        let mut command = Command::new("stdbuf");
        // Needs no huge pages; one main and one forwarding thread, on any CPU.
        command.args([
            "-oL",
            "dpdk-testpmd",
            "--no-huge",
            "--single-file-segments",
            "--no-pci",
            "--no-telemetry",
        ]);
        command.args(["--no-shconf", "-m", "64", "--lcores", &format!("0@{0},1@{0}", cpus())]);
        for (number, port) in ports.iter().enumerate() {
            command.arg(format!("--vdev=net_virtio_user{number},{port}"));
        }
        command.args([
            "--",
            "-i",
            &format!("--forward-mode={mode}"),
            "--no-mlockall",
            "--total-num-mbufs=4096",
            &format!("--rxq={pairs}"),
            &format!("--txq={pairs}"),
        ]);
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.spawn().expect("stdbuf and dpdk-testpmd are installed (make setup)");
        let mut guest = Self { child, log };
        eventually("testpmd is ready", LIMIT, || guest.text().contains("testpmd>").then_some(()));
        guest
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn text(&mut self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "testpmd ended, {ended:?}:\n{text}");
        text
    }

    /// Frames received by all ports so far.
    pub(crate) fn received(&mut self, ports: usize) -> Vec<u64> {
        let counts = |text: &str| -> Vec<u64> {
            let words = text.lines().filter_map(|line| line.trim().strip_prefix("RX-packets: "));
            words.map(|rest| rest.split_whitespace().next().unwrap().parse().unwrap()).collect()
        };
        let before = counts(&self.text()).len();
        self.say("show port stats all");
        eventually("testpmd shows its counters", LIMIT, || {
            let all = counts(&self.text());
            (all.len() >= before + ports).then(|| all[all.len() - ports..].to_vec())
        })
    }

    /// Frames received by each queue of its first port so far.
    pub(crate) fn received_by_queue(&mut self, queues: usize) -> Vec<u64> {
        let count = |text: &str, queue: usize| {
            let name = format!("rx_q{queue}_good_packets: ");
            text.lines()
                .filter_map(|line| line.trim().strip_prefix(&name)?.parse().ok())
                .collect::<Vec<u64>>()
        };
        let before = count(&self.text(), queues - 1).len();
        self.say("show port xstats 0");
        eventually("testpmd shows its queues' counters", LIMIT, || {
            let text = self.text();
            let all = (0..queues).map(|queue| count(&text, queue)).collect::<Vec<_>>();
            (all[queues - 1].len() > before).then(|| all.iter().map(|all| all[all.len() - 1]).collect())
        })
    }

    /// Waits until every port has received `count` more frames than now.
    pub(crate) fn await_frames(&mut self, ports: usize, count: u64) {
        let before = self.received(ports);
        eventually("frames arrive at every port", LIMIT, || {
            let now = self.received(ports);
            now.iter().zip(&before).all(|(now, before)| *now >= before + count).then_some(())
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SIGKILL: a guest that gets no chance to say goodbye.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The CPUs we may use, as EAL writes them: `(0-1)`.
fn cpus() -> String {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpus: Vec<_> =
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).map(|cpu| cpu.to_string()).collect();
    format!("({})", cpus.join(","))
}

pub(crate) fn backend(links: &[&str]) -> Daemon {
    let mut command = Command::new(binary("vhost-net-backend"));
    for link in links {
        command.args(["--link", link]);
    }
    Daemon::start(&mut command)
}

pub(crate) fn await_socket(path: &Path) {
    eventually("the backend listens", LIMIT, || path.exists().then_some(()));
}

#[test]
fn frames_pass_between_two_ports_and_a_killed_guest_comes_back() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| directory.path().join(name));
    let link = format!("vhost-user:{},vhost-user:{}", first.display(), second.display());
    let _backend = backend(&[&link]);
    await_socket(&second);
    let ports = [&first, &second].map(|socket| format!("path={},queues=1,queue_size=256", socket.display()));
    for life in 0..3 {
        let mut guest = Guest::start(directory.path(), &format!("guest{life}.log"), "flowgen", &ports);
        guest.say("start");
        guest.await_frames(2, 10_000);
    }
}

#[test]
fn a_killed_backend_comes_back_to_guests_that_went_on() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| directory.path().join(name));
    let ports = [&first, &second].map(|socket| format!("path={},server=1,queue_size=256", socket.display()));
    let link = format!("vhost-user:{}?client,vhost-user:{}?client", first.display(), second.display());
    // A server port of testpmd waits for its backend before it goes on.
    let mut daemon = backend(&[&link]);
    let mut guest = Guest::start(directory.path(), "guest.log", "flowgen", &ports);
    guest.say("start");
    guest.await_frames(2, 1000);
    for _ in 0..2 {
        drop(daemon);
        daemon = backend(&[&link]);
        guest.await_frames(2, 1000);
    }
}

/// Makes `tap0`, by which the host has 192.0.2.1.
pub(crate) fn tap_of_host() {
    sh("ip tuntap add dev tap0 mode tap vnet_hdr");
    sh("ip addr add 192.0.2.1/24 dev tap0");
    sh("ip link set tap0 up");
}

#[test]
fn the_host_reaches_a_guest_through_a_tap() {
    let _sandbox = Sandbox::enter();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    tap_of_host();
    let _backend = backend(&[&format!("vhost-user:{},tap:tap0", socket.display())]);
    await_socket(&socket);
    let port = format!("path={},queue_size=256", socket.display());
    // It answers ARP and ICMP echo for any address.
    let mut guest = Guest::start(directory.path(), "guest.log", "icmpecho", &[port]);
    guest.say("start");
    guest.received(1);
    sh("ping -c 3 -i 0.2 -w 20 192.0.2.2");
    sh("ping -c 3 -i 0.2 -w 20 -s 1400 192.0.2.2");
}
