//! cnv-bridge beside the reference plugin, in the same run and taking turns, each on a bridge of its own in a sandbox.
//!
//! Ours is the statically linked binary that `make plugins` builds; the peer is `bridge` of Debian's
//! containernetworking-plugins. Times are those of a whole call as a runtime sees it,
//! process start included. The machine is noisy: read the ratios. Run by `make bench`; with the name of a part
//! (`cargo bench --package e2e --bench cni_bridge -- ports`), only that.

#![expect(clippy::unwrap_used, reason = "a benchmark's failure is its result")]

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{CniCall, Namespace, Sandbox, binary_dir, sh};
use serde_json::json;

const PEER: &str = "/usr/lib/cni/bridge";
const PAIRS: usize = 30;
const ROUNDS: usize = 41;
const PEER_ROUNDS: usize = 5;
const PEAKS: usize = 9;
const RATES: usize = 11;
const MANY: usize = 1_000;
const FRAMES: usize = 50_000;
const SETTLE: Duration = Duration::from_secs(15);
/// Of the first column.
const WIDTH: usize = 52;

/// One of the two plugins.
#[derive(Clone, Copy, PartialEq)]
enum Plugin {
    Ours,
    Peer,
}

impl Plugin {
    fn call(self, pod: &Namespace, spoof_check: bool) -> CniCall {
        let config = json!({
            "cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": self.bridge(), "macspoofchk": spoof_check,
        });
        let call = match self {
            Self::Ours => CniCall::foreign(&ours(), config),
            Self::Peer => CniCall::foreign(Path::new(PEER), config),
        };
        call.netns(pod)
    }

    fn bridge(self) -> &'static str {
        if self == Self::Ours { "br-ours" } else { "br-peer" }
    }

    /// The address of its bridge.
    fn mac(self) -> &'static str {
        if self == Self::Ours { "02:00:00:00:0b:01" } else { "02:00:00:00:0b:02" }
    }
}

/// The plugin as it is shipped: `target/<triple>/plugins`, beside this benchmark's own `target/release`.
fn ours() -> PathBuf {
    let path = binary_dir().join("../x86_64-unknown-linux-gnu/plugins/cnv-bridge");
    assert!(path.is_file(), "{} is missing: run 'make plugins'", path.display());
    path
}

fn main() {
    let _sandbox = Sandbox::enter();
    for plugin in [Plugin::Ours, Plugin::Peer] {
        sh(&format!("ip link add {} address {} up type bridge", plugin.bridge(), plugin.mac()));
    }
    let version = sh("dpkg-query --show containernetworking-plugins");
    println!("peer: {}", version.trim());
    println!("{:<WIDTH$} {:>10} {:>10} {:>7}  target", "", "ours", "peer", "ratio");
    let parts: [(&str, fn()); 5] = [
        ("pairs", pairs),
        ("concurrent", concurrent),
        ("ports", with_many_ports),
        ("peer-ports", peer_with_many_ports),
        ("footprint", footprint),
    ];
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, measure) in parts {
        if only.as_deref().is_none_or(|only| only == name) {
            measure();
        }
    }
}

/// ADD and DEL, one pair after the other, the plugins in turn.
fn pairs() {
    for (spoof_check, add_target, del_target) in [(false, 0.6, 1.15), (true, 0.35, 0.65)] {
        let pod = Namespace::new("pod");
        let calls = [Plugin::Ours, Plugin::Peer].map(|plugin| plugin.call(&pod, spoof_check));
        let mut times = [(); 2].map(|()| (Vec::new(), Vec::new()));
        for _ in 0..PAIRS {
            for (call, (adds, dels)) in calls.iter().zip(&mut times) {
                adds.push(timed(call, "ADD"));
                dels.push(timed(call, "DEL"));
            }
        }
        let [(our_add, our_del), (peer_add, peer_del)] =
            times.map(|(adds, dels)| (median(adds), median(dels)));
        let kind = if spoof_check { "macspoofchk" } else { "plain" };
        row(&format!("ADD {kind}, median of {PAIRS}"), our_add, peer_add, add_target);
        row(&format!("DEL {kind}, median of {PAIRS}"), our_del, peer_del, del_target);
    }
}

/// 200 ADDs, 16 at a time.
fn concurrent() {
    let rate = |plugin: Plugin| {
        let pods: Vec<_> = (0..200).map(|_| Namespace::new("pod")).collect();
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                        plugin.call(pod, true).container(pod.name()).call("ADD").success();
                    }
                });
            }
        });
        let rate = 200.0 / began.elapsed().as_secs_f64();
        for pod in &pods {
            plugin.call(pod, true).container(pod.name()).call("DEL").success();
        }
        rate
    };
    let (ours, peer) = (rate(Plugin::Ours), rate(Plugin::Peer));
    let name = "200 ADDs macspoofchk, 16 at a time, per second";
    println!("{name:<WIDTH$} {ours:>10.1} {peer:>10.1} {:>7.2}  >= 2", ours / peer);
}

/// Cost of an attachment, and of a packet, beside 10 and beside 1,000 ports. Both nodes are there at once and take turns.
fn with_many_ports() {
    let nodes = [10, MANY].map(|count| Node::with(Plugin::Ours, count));
    let mut times = [(); 2].map(|()| [(); 3].map(|()| Vec::new()));
    for _ in 0..ROUNDS {
        // Each finds in the processor's caches what the other node's left there.
        for (node, [adds, dels, _]) in nodes.iter().zip(&mut times) {
            adds.push(node.timed("ADD"));
            dels.push(node.timed("DEL"));
        }
        for (node, [_, _, floors]) in nodes.iter().zip(&mut times) {
            floors.push(node.kernel_alone());
        }
    }
    let [few, many] = times;
    for (what, few, many) in [
        ("median", few.clone().map(median), many.clone().map(median)),
        ("least", few.map(least), many.map(least)),
    ] {
        let name = |verb: &str| format!("{verb} macspoofchk, {MANY} | 10, {what} of {ROUNDS}");
        row(&name("ADD"), many[0], few[0], 1.3);
        row(&name("DEL"), many[1], few[1], 1.3);
        row(&format!("ip(8) making such a port, {what} of {ROUNDS}"), many[2], few[2], 1.3);
    }
    let [few, many] = packets_per_second(&nodes);
    let name = format!("packets/s through our check, {MANY} | 10");
    println!("{name:<WIDTH$} {many:>10.0} {few:>10.0} {:>7.2}  >= 0.95", many / few);
}

/// The same of the peer, without its DEL, which would take minutes.
fn peer_with_many_ports() {
    let nodes = [10, MANY].map(|count| Node::with(Plugin::Peer, count));
    let mut times = [(); 2].map(|()| Vec::new());
    for _ in 0..PEER_ROUNDS {
        for (node, adds) in nodes.iter().zip(&mut times) {
            adds.push(node.timed("ADD"));
            node.timed("DEL");
        }
    }
    let [few, many] = times.map(median);
    row(&format!("peer's ADD, {MANY} | 10, median of {PEER_ROUNDS}"), many, few, 1.3);
    let [few, many] = packets_per_second(&nodes);
    let name = format!("packets/s through the peer's check, {MANY} | 10");
    println!("{name:<WIDTH$} {many:>10.0} {few:>10.0} {:>7.2}", many / few);
}

/// A node whose bridge has ports of one plugin, with spoof checks, each in a pod of its own.
struct Node {
    host: Namespace,
    plugin: Plugin,
    pods: Vec<Namespace>,
    /// The pod of the attachment that is measured.
    extra: Namespace,
}

impl Node {
    fn with(plugin: Plugin, count: usize) -> Self {
        let host = Namespace::new("host");
        host.sh(&format!("ip link add {} address {} up type bridge", plugin.bridge(), plugin.mac()));
        let pods = (0..count).map(|_| Namespace::new("pod")).collect();
        let node = Self { host, plugin, pods, extra: Namespace::new("pod") };
        for pod in &node.pods {
            node.on_host(|| plugin.call(pod, true).container(pod.name()).call("ADD").success());
        }
        // What a pod sends as its link comes up goes to all ports; on a node these have been there for long.
        thread::sleep(SETTLE);
        node
    }

    fn on_host<T>(&self, work: impl FnOnce() -> T) -> T {
        self.host.netns().run(work).unwrap()
    }

    /// A call for one port more.
    fn timed(&self, verb: &str) -> Duration {
        self.on_host(|| timed(&self.plugin.call(&self.extra, true), verb))
    }

    /// What the kernel takes to make a pair and have it join the bridge, asked by ip(8) in one process.
    fn kernel_alone(&self) -> Duration {
        let (bridge, pod) = (self.plugin.bridge(), self.extra.name());
        let lines = format!(
            "link add floor0 type veth peer name floor1 netns {pod}\nlink set floor0 master {bridge}\nlink set floor0 up\n"
        );
        fs::write("/run/batch", lines).unwrap();
        self.on_host(|| {
            let began = Instant::now();
            sh("ip -batch /run/batch");
            let took = began.elapsed();
            sh("ip link delete floor0");
            took
        })
    }

    /// A socket of one of its pods, for frames to the bridge's own address: to any other the bridge would send them out by
    /// every port, and that cost would hide the check's.
    fn sender(&self) -> UdpSocket {
        let pod = &self.pods[0];
        pod.sh("ip address replace 192.0.2.1/24 dev net1");
        pod.sh(&format!("ip neighbour replace 192.0.2.9 lladdr {} dev net1", self.plugin.mac()));
        let socket = pod.netns().run(|| UdpSocket::bind("192.0.2.1:0")).unwrap().unwrap();
        socket.connect("192.0.2.9:9").unwrap();
        socket
    }
}

/// Frames that a pod of each node gets through its port's spoof check in a second: the nodes in turn, and the median.
fn packets_per_second(nodes: &[Node; 2]) -> [f64; 2] {
    let mut senders = nodes.each_ref().map(|node| (node.sender(), Vec::new()));
    for _ in 0..RATES {
        for (socket, rates) in &mut senders {
            let began = Instant::now();
            for _ in 0..FRAMES {
                socket.send(&[0; 18]).unwrap();
            }
            rates.push(FRAMES as f64 / began.elapsed().as_secs_f64());
        }
    }
    senders.map(|(_, mut rates)| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[RATES / 2]
    })
}

/// Peak memory of a call, and size of the binary.
///
/// The kernel maps more of a file that was just written than of one it has read, so both are read anew, by a first call.
fn footprint() {
    let pod = Namespace::new("pod");
    let [ours, peer] = [(Plugin::Ours, ours()), (Plugin::Peer, PEER.into())].map(|(plugin, path)| {
        sh(&format!("sync {}", path.display()));
        sh(&format!("dd if={} iflag=nocache count=0 status=none", path.display()));
        let call = plugin.call(&pod, false);
        let report = Path::new("/run/peak");
        let measured = call.clone().by(&["time", "--format=%M", "--output=/run/peak"]);
        let pair = |add: &CniCall| {
            add.call("ADD").success();
            call.call("DEL").success();
        };
        pair(&call);
        let peak = || {
            pair(&measured);
            fs::read_to_string(report).unwrap().trim().parse::<u32>().unwrap()
        };
        let mut peaks: Vec<_> = (0..PEAKS).map(|_| peak()).collect();
        peaks.sort_unstable();
        f64::from(peaks[PEAKS / 2])
    });
    println!(
        "{:<WIDTH$} {ours:>10} {peer:>10} {:>7.2}  <= 0.4",
        format!("peak memory of ADD, KiB, median of {PEAKS}"),
        ours / peer
    );
    let size = |path: &Path| fs::metadata(path).unwrap().len() as f64 / 1e6;
    let (ours, peer) = (size(&self::ours()), size(Path::new(PEER)));
    println!("{:<WIDTH$} {ours:>10.2} {peer:>10.2} {:>7.2}  <= 4 MB, static", "binary, MB", ours / peer);
}

fn timed(call: &CniCall, verb: &str) -> Duration {
    let began = Instant::now();
    let answer = call.call(verb);
    let took = began.elapsed();
    answer.success();
    took
}

fn row(name: &str, ours: Duration, peer: Duration, target: f64) {
    let (ours, peer) = (ours.as_secs_f64() * 1e3, peer.as_secs_f64() * 1e3);
    println!("{name:<WIDTH$} {ours:>7.2} ms {peer:>7.2} ms {:>7.2}  <= {target}", ours / peer);
}

fn least(times: Vec<Duration>) -> Duration {
    times.into_iter().min().unwrap_or_default()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
