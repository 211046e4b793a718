//! masquerade beside the packet filter rules that KubeVirt's masquerade binding installs, in the same run and taking
//! turns. The peer is those rules, one nft process for each object as KubeVirt makes them, 13 for each address family;
//! what else it does (bridge, tap, settings) is not counted against it. For traffic both stand in the same topology,
//! with frames on the bridge kept out of the IP rules in both. The machine is noisy: read the ratios. Run by
//! `make bench`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark's failure is its result")]

#[path = "../netns/masquerade_ground.rs"]
#[expect(dead_code, reason = "the netns rung uses the rest of it")]
mod masquerade_ground;

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use e2e::{Daemon, Namespace, binary, eventually};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use masquerade_ground::{Ground, POD_V4, until_reached};

const ADDS: usize = 30;
/// In each turn of each; short turns, and many, so that both meet the same weather.
const CONNECTIONS: usize = 1_000;
const STREAM_BYTES: &str = "1G";
const TURNS: usize = 15;
/// Which of two figures is whose.
const OURS: usize = 0;
const DISCOVERS: usize = 5_000;

fn main() {
    println!("{:<52} {:>10} {:>10} {:>7}  target", "", "ours", "peer", "ratio");
    // A sandbox is its thread's for life.
    let parts = [set_up, traffic, dhcp];
    for part in parts {
        thread::spawn(part).join().unwrap_or_else(|_panic| panic!("a part failed"));
    }
}

/// ADD with bridge, tap, addresses, settings and rules of both families, beside the peer's rules alone.
fn set_up() {
    let ground = Ground::dual_stack();
    let peer = Namespace::new("peer");
    let call = ground.call(json!({}));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ADDS {
        let began = Instant::now();
        call.call("ADD").success();
        ours.push(began.elapsed());
        call.call("DEL").success();
        theirs.push(peer.netns().run(kubevirt_rules).unwrap());
        peer.sh("nft flush ruleset");
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("{:<52} {ours:>10.1?} {theirs:>10.1?} {ratio:>7.2}  <= 0.2", format!("ADD, median of {ADDS}"));
}

/// KubeVirt's rules for a guest without a list of ports, in the calling thread's namespace; how long they took.
fn kubevirt_rules() -> Duration {
    let families =
        [("ip", "10.0.2.2", "10.0.2.1", "127.0.0.1"), ("ip6", "fd10:0:2::2", "fd10:0:2::1", "::1")];
    let began = Instant::now();
    for (family, guest, gateway, loopback) in families {
        let nft = |line: &str| drop(e2e::sh(&format!("nft {line}")));
        nft(&format!("add table {family} nat"));
        for (hook, priority) in [("prerouting", -100), ("input", 100), ("output", -100), ("postrouting", 100)]
        {
            nft(&format!("add chain {family} nat {hook} {{ type nat hook {hook} priority {priority} ; }}"));
        }
        for chain in ["PREINBOUND", "POSTINBOUND"] {
            nft(&format!("add chain {family} nat {chain}"));
        }
        for rule in [
            format!("postrouting {family} saddr {guest} counter masquerade"),
            "prerouting iifname eth0 counter jump PREINBOUND".to_owned(),
            "postrouting oifname k6t-eth0 counter jump POSTINBOUND".to_owned(),
            format!("PREINBOUND counter dnat to {guest}"),
            format!("POSTINBOUND {family} saddr {loopback} counter snat to {gateway}"),
            format!("output {family} daddr {loopback} counter dnat to {guest}"),
        ] {
            nft(&format!("add rule {family} nat {rule}"));
        }
    }
    began.elapsed()
}

/// One topology, whose rules are in turn ours and the peer's.
fn traffic() {
    let ground = Ground::dual_stack();
    let call = ground.connect(json!({}));
    let Ground { client, pod, guest, .. } = &ground;
    let _server =
        Daemon::start(guest.command("iperf3").args(["--server"]).stdout(std::process::Stdio::null()));
    until_reached(client, POD_V4);
    eventually("iperf3 listens", Duration::from_secs(10), || {
        guest.sh("ss --listening --tcp --numeric").contains(":5201").then_some(())
    });
    let mut figures = [(); 2].map(|()| (Vec::new(), Vec::new()));
    for turn in 0..TURNS {
        for place in 0..2 {
            // Neither is always the second.
            let whose = (turn + place) % 2;
            pod.sh("nft flush ruleset");
            if whose == OURS {
                call.call("ADD").success();
            } else {
                pod.netns().run(kubevirt_rules).unwrap();
            }
            let (streams, rates) = &mut figures[whose];
            streams.push(stream(client));
            rates.push(connections(client, guest));
        }
    }
    let [(our_streams, our_rates), (their_streams, their_rates)] = figures;
    for (name, ours, theirs) in [
        ("one TCP stream to the guest, Gbit/s", our_streams, their_streams),
        ("new TCP connections to the guest, per second", our_rates, their_rates),
    ] {
        let name = format!("{name}, median of {TURNS}");
        let (ours, theirs) = (middle(ours), middle(theirs));
        println!("{name:<52} {ours:>10.1} {theirs:>10.1} {:>7.2}  >= 0.95", ours / theirs);
    }
}

/// Gbit/s of one stream to the guest.
fn stream(client: &Namespace) -> f64 {
    let report: Value =
        serde_json::from_str(&client.sh(&format!("iperf3 --client {POD_V4} --bytes {STREAM_BYTES} --json")))
            .unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap() / 1e9
}

/// Connections opened and closed one after the other, per second. The server closes first: a client that did would look
/// for a free port among more and more that linger, and every turn would be slower than the one before.
fn connections(client: &Namespace, guest: &Namespace) -> f64 {
    let address: SocketAddr = format!("{POD_V4}:80").parse().unwrap();
    let listener = guest.netns().run(|| TcpListener::bind("10.0.2.2:80")).unwrap().unwrap();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut stream = client.netns().run(|| TcpStream::connect(address)).unwrap().unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the server has closed");
    }
    CONNECTIONS as f64 / began.elapsed().as_secs_f64()
}

/// `masquerade serve`, asked one DISCOVER after the other. There is no peer that could be asked outside a cluster.
fn dhcp() {
    let ground = Ground::dual_stack();
    ground.connect(json!({}));
    let mac = "02:00:00:00:00:42";
    ground.guest.sh(&format!("ip link set eth0 address {mac}"));
    let mut serve = ground.pod.command(binary("masquerade"));
    let _server = Daemon::start(serve.args(["serve", "--guest-mac", mac]));
    let open = || UdpSocket::bind("0.0.0.0:68");
    let socket = ground.guest.netns().run(open).unwrap().unwrap();
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let discover = discover();
    let mut answer = [0; 1500];
    let mut ask = || {
        socket.send_to(&discover, "255.255.255.255:67").unwrap();
        socket.recv(&mut answer).ok()
    };
    eventually("the server answers", Duration::from_secs(10), &mut ask);
    let began = Instant::now();
    let mut times: Vec<_> = (0..DISCOVERS)
        .map(|_| {
            let began = Instant::now();
            ask().unwrap_or_else(|| panic!("an answer is missing"));
            began.elapsed()
        })
        .collect();
    let rate = DISCOVERS as f64 / began.elapsed().as_secs_f64();
    times.sort_unstable();
    let p99 = times[DISCOVERS * 99 / 100];
    println!("{:<52} {p99:>10.1?} {:>10} {:>7}  < 2 ms", "DISCOVER to OFFER, 99th percentile", "", "");
    println!(
        "{:<52} {rate:>10.0} {:>10} {:>7}  >= 5000",
        "DISCOVERs answered one by one, per second", "", ""
    );
}

/// A DISCOVER of 02:00:00:00:00:42 that wants its answer by broadcast.
fn discover() -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
    message.resize(28, 0);
    message.extend([2, 0, 0, 0, 0, 0x42]);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 55, 6, 1, 3, 6, 26, 119, 15, 255]);
    message
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
