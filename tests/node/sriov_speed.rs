//! How long ADD and DEL take, and that none of it is sleep. The figures are a benchmark's: `make bench` shows them.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{CniCall, Namespace};
use serde_json::json;

use crate::sriov_nic::Nic;

/// Every way to wait for time to pass, or with a limit.
const WAITS: &str =
    "trace=nanosleep,clock_nanosleep,poll,ppoll,select,pselect6,epoll_wait,epoll_pwait,epoll_pwait2";
const TURNS: usize = 21;
const MAC: &str = "02:00:00:00:00:01";

/// Calls the plugin; what it waited for, one line per wait, with how long each took.
fn waits(call: &CniCall, command: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waits");
    let traced = ["strace", "-f", "-T", "-e", WAITS, "-o", file.to_str().unwrap()];
    call.clone().by(&traced).call(command).success();
    let log = fs::read_to_string(&file).unwrap();
    assert!(log.contains("+++ exited with 0 +++"), "{log}");
    log
}

/// How many waits there were, and how long they took together: strace ends a line with `<0.000123>`.
fn sum(log: &str) -> (usize, Duration) {
    let seconds = |line: &str| line.rsplit_once('<')?.1.strip_suffix('>')?.parse().ok();
    let waits: Vec<f64> = log.lines().filter_map(seconds).collect();
    (waits.len(), Duration::from_secs_f64(waits.iter().sum()))
}

#[test]
fn add_and_del_never_sleep_and_wait_only_for_events() {
    let nic = Nic::with_vfs(2);
    nic.bind_vfio(1);
    for (index, mode) in ["netdevice", "vfio"].into_iter().enumerate() {
        let pod = Namespace::new("pod");
        let call = nic.call(index, json!({"vlan": 100, "mac": MAC})).netns(&pod);
        for command in ["ADD", "DEL"] {
            let log = waits(&call, command);
            for line in log.lines() {
                let sleeps = ["nanosleep(", "poll(NULL", "select(0,", "(Timeout)"];
                assert!(!sleeps.iter().any(|sleep| line.contains(sleep)), "{mode} {command}: {log}");
            }
        }
    }
}

/// One way to hand a VF over and take it back.
struct Way<'a> {
    name: &'static str,
    hand_over: Box<dyn Fn() + 'a>,
    take_back: Box<dyn Fn() + 'a>,
    took: [Vec<Duration>; 2],
}

impl<'a> Way<'a> {
    fn new(name: &'static str, hand_over: impl Fn() + 'a, take_back: impl Fn() + 'a) -> Self {
        let (hand_over, take_back) = (Box::new(hand_over), Box::new(take_back));
        Self { name, hand_over, take_back, took: [Vec::new(), Vec::new()] }
    }

    fn plugin(name: &'static str, call: &'a CniCall) -> Self {
        Self::new(name, || drop(call.call("ADD").success()), || drop(call.call("DEL").success()))
    }

    fn turn(&mut self) {
        for (step, took) in [&self.hand_over, &self.take_back].into_iter().zip(&mut self.took) {
            let began = Instant::now();
            step();
            took.push(began.elapsed());
        }
    }

    fn report(mut self) {
        let [hand_over, take_back] = self.took.each_mut().map(|took| {
            took.sort();
            took[took.len() / 2].as_secs_f64() * 1e3
        });
        println!("{:<44} ADD {hand_over:>7.1} ms   DEL {take_back:>7.1} ms", self.name);
    }
}

/// Commands of ip(8), in one process; inside of a namespace if there is one.
fn ip(namespace: Option<&Namespace>, lines: &str) {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace.name()]);
    }
    let mut running = command.args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut running.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    assert!(running.wait().unwrap().success(), "{lines}");
}

/// Beside it: the same attributes and moves asked for by ip(8), by which nothing is written down, compared or read back.
/// Then, by strace, how much of a call is waiting for events.
#[test]
#[ignore = "a benchmark: make bench runs it"]
fn how_long_add_and_del_take_beside_plain_ip() {
    let nic = Nic::with_vfs(2);
    nic.bind_vfio(1);
    let pod = Namespace::new("pod");
    let more = json!({"vlan": 100, "mac": MAC});
    let (netdevice, vfio) = (nic.call(0, more.clone()).netns(&pod), nic.call(1, more).netns(&pod));
    let (pf, vf) = (&nic.link, nic.vf_link(0).unwrap());
    let (set, unset) = (format!("vlan 100 mac {MAC}"), "vlan 0 mac 00:00:00:00:00:00");
    let mut ways = [
        Way::plugin("netdevice: sriov", &netdevice),
        Way::new(
            "netdevice: ip, 2 processes each",
            || {
                ip(
                    None,
                    &format!("link set {pf} vf 0 {set}\nlink set {vf} netns {} name net1\n", pod.name()),
                );
                ip(Some(&pod), "link set net1 up\n");
            },
            || {
                ip(Some(&pod), &format!("link set net1 down\nlink set net1 netns 1 name {vf}\n"));
                ip(None, &format!("link set {pf} vf 0 {unset}\n"));
            },
        ),
        Way::plugin("vfio: sriov", &vfio),
        Way::new(
            "vfio: ip, 1 process each",
            || ip(None, &format!("link set {pf} vf 1 {set}\n")),
            || ip(None, &format!("link set {pf} vf 1 {unset}\n")),
        ),
    ];
    for _ in 0..TURNS {
        ways.iter_mut().for_each(Way::turn);
    }
    println!("sriov beside plain ip, median of {TURNS} (in the node VM, which is emulated):");
    ways.into_iter().for_each(Way::report);
    for (mode, call) in [("netdevice", &netdevice), ("vfio", &vfio)] {
        for command in ["ADD", "DEL"] {
            let (waits, took) = sum(&waits(call, command));
            println!("{mode}: {command} waits {waits} times, {:.1} ms together", took.as_secs_f64() * 1e3);
        }
    }
}
