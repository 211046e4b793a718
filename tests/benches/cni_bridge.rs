//! cnv-bridge beside the reference plugin, in the same run and taking turns, each on a bridge of its own in a sandbox.
//!
//! Ours is the statically linked binary that `make plugins` builds; the peer is `bridge` of Debian's
//! containernetworking-plugins. Times are those of a whole call as a runtime sees it,
//! process start included. The machine is noisy: read the ratios. Run by `make bench`.

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
const MANY: usize = 1_000;
const FRAMES: usize = 100_000;

/// One of the two plugins.
#[derive(Clone, Copy, PartialEq)]
enum Plugin {
    Ours,
    Peer,
}

impl Plugin {
    fn call(self, pod: &Namespace, spoof_check: bool) -> CniCall {
        let bridge = if self == Self::Ours { "br-ours" } else { "br-peer" };
        let config = json!({
            "cniVersion": "0.4.0", "name": "bench", "type": "bridge", "bridge": bridge, "macspoofchk": spoof_check,
        });
        let call = match self {
            Self::Ours => CniCall::foreign(&ours(), config),
            Self::Peer => CniCall::foreign(Path::new(PEER), config),
        };
        call.netns(pod)
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
    for (bridge, plugin) in [("br-ours", Plugin::Ours), ("br-peer", Plugin::Peer)] {
        sh(&format!("ip link add {bridge} address {} up type bridge", plugin.mac()));
    }
    let version = sh("dpkg-query --show containernetworking-plugins");
    println!("peer: {}", version.trim());
    println!("{:<44} {:>10} {:>10} {:>7}  target", "", "ours", "peer", "ratio");
    pairs();
    concurrent();
    with_many_ports();
    footprint();
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
    println!("{name:<44} {ours:>10.1} {peer:>10.1} {:>7.2}  >= 2", ours / peer);
}

/// Cost of an attachment, and of a packet, with 10 and with 1,000 ports.
fn with_many_ports() {
    let [few, many] = [10, MANY].map(|count| {
        let pod = pod_with_many();
        let call = Plugin::Ours.call(&pod, true);
        let ports: Vec<_> = (0..count).map(|number| call.clone().ifname(&format!("n{number}"))).collect();
        for port in &ports {
            port.call("ADD").success();
        }
        let extra = call.ifname("extra");
        let pairs: Vec<_> = (0..PAIRS).map(|_| (timed(&extra, "ADD"), timed(&extra, "DEL"))).collect();
        let rate = median_of((0..5).map(|_| packets_per_second(&pod, Plugin::Ours)).collect());
        let (adds, dels) = pairs.into_iter().unzip();
        for port in &ports {
            port.call("DEL").success();
        }
        (median(adds), median(dels), rate)
    });
    let name = |what: &str| format!("{what} with {MANY} ports, beside 10");
    row(&name("ADD macspoofchk"), many.0, few.0, 1.3);
    row(&name("DEL macspoofchk"), many.1, few.1, 1.3);
    let name = |whose: &str| format!("packets/s through {whose} check, {MANY} / 10");
    println!("{:<44} {:>10.0} {:>10.0} {:>7.2}  >= 0.95", name("our"), many.2, few.2, many.2 / few.2);
    let [few, many] = [10, MANY].map(peer_packets_per_second);
    println!("{:<44} {many:>10.0} {few:>10.0} {:>7.2}", name("the peer's"), many / few);
}

/// A pod for all these interfaces. On a node they are in as many pods: here IPv6 is off in the pod, or its routes to the
/// link of each, through which the kernel goes at every change, would be what is measured.
fn pod_with_many() -> Namespace {
    let pod = Namespace::new("pod");
    let off = || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    pod.netns().run(off).unwrap().unwrap();
    pod
}

/// The same through the peer's check, without its DEL, which would take minutes.
fn peer_packets_per_second(ports: usize) -> f64 {
    let pod = pod_with_many();
    let call = Plugin::Peer.call(&pod, true);
    for number in 0..ports {
        call.clone().ifname(&format!("n{number}")).call("ADD").success();
    }
    let rate = median_of((0..5).map(|_| packets_per_second(&pod, Plugin::Peer)).collect());
    sh("nft flush ruleset");
    rate
}

/// Frames that the pod gets through port `n0` and its spoof check in a second. They go to the bridge's own address: to
/// any other the bridge would send them out by every port, and that cost would hide the check's.
fn packets_per_second(pod: &Namespace, plugin: Plugin) -> f64 {
    pod.sh("ip address replace 192.0.2.1/24 dev n0");
    pod.sh(&format!("ip neighbour replace 192.0.2.9 lladdr {} dev n0", plugin.mac()));
    let socket = pod.netns().run(|| UdpSocket::bind("192.0.2.1:0")).unwrap().unwrap();
    socket.connect("192.0.2.9:9").unwrap();
    let began = Instant::now();
    for _ in 0..FRAMES {
        socket.send(&[0; 18]).unwrap();
    }
    FRAMES as f64 / began.elapsed().as_secs_f64()
}

/// Peak memory of a call, and size of the binary.
fn footprint() {
    let pod = Namespace::new("pod");
    let [ours, peer] = [Plugin::Ours, Plugin::Peer].map(|plugin| {
        let call = plugin.call(&pod, false);
        let report = Path::new("/run/peak");
        call.clone().by(&["time", "--format=%M", "--output=/run/peak"]).call("ADD").success();
        call.call("DEL").success();
        fs::read_to_string(report).unwrap().trim().parse::<f64>().unwrap()
    });
    println!("{:<44} {ours:>10} {peer:>10} {:>7.2}  <= 0.4", "peak memory of ADD, KiB", ours / peer);
    let size = |path: &Path| fs::metadata(path).unwrap().len() as f64 / 1e6;
    let (ours, peer) = (size(&self::ours()), size(Path::new(PEER)));
    println!("{:<44} {ours:>10.2} {peer:>10.2} {:>7.2}  <= 4 MB, static", "binary, MB", ours / peer);
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
    println!("{name:<44} {ours:>7.2} ms {peer:>7.2} ms {:>7.2}  <= {target}", ours / peer);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
