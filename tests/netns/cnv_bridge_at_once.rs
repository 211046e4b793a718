//! `cnv-bridge` beside itself: calls that begin at the same moment leave what either order would.

use std::fs::{self, File};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use e2e::{Answer, CniCall, Namespace, Sandbox, Snapshot, at_once, binary, eventually, output, sh};
use serde_json::{Value, json};

/// How often each is tried: a moment that matters is not met every time.
const ROUNDS: u32 = 10;

const LIMIT: Duration = Duration::from_secs(60);

fn call(pod: &Namespace, more: Value) -> CniCall {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net", "type": "cnv-bridge", "bridge": "br1"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    CniCall::new("cnv-bridge", config).netns(pod).container(pod.name()).var("CNI_PATH", "/usr/lib/cni")
}

fn network_with_gateway() -> Value {
    let ipam =
        json!({"type": "host-local", "dataDir": "/run/ipam", "ranges": [[{"subnet": "192.0.2.0/24"}]]});
    json!({"isGateway": true, "forceAddress": true, "ipam": ipam})
}

fn apply(file: &str) -> Output {
    output(Command::new(binary("cnv-bridge")).args(["policy", "apply", "-f", file]))
}

/// Files with the policy for a bridge `br1`, and for none.
fn policies() -> [&'static str; 2] {
    let head = "apiVersion: nmstate.io/v1\nkind: NodeNetworkConfigurationPolicy\nmetadata: {name: p}\n";
    let (up, absent) = ("/run/up.yaml", "/run/absent.yaml");
    for (file, more) in [(up, "state: up, mtu: 1400, bridge: {port: []}"), (absent, "state: absent")] {
        let interface = format!("{{name: br1, type: linux-bridge, {more}}}");
        fs::write(file, format!("{head}spec: {{desiredState: {{interfaces: [{interface}]}}}}\n")).unwrap();
    }
    [up, absent]
}

#[test]
fn a_policy_that_is_applied_twice_at_once_is_applied_once() {
    let _sandbox = Sandbox::enter();
    let before = Snapshot::take(&[]);
    let [up, absent] = policies();
    for _ in 0..ROUNDS {
        for (file, change) in [(up, "create bridge br1"), (absent, "delete bridge br1")] {
            let (one, other) = at_once(|| apply(file), || apply(file));
            let said = [&one, &other].map(|one| String::from_utf8_lossy(&one.stdout).into_owned()).concat();
            assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
            assert_eq!(said.matches(change).count(), 1, "{said}");
            assert_eq!(said.matches("nothing to do").count(), 1, "{said}");
        }
        before.assert_unchanged();
    }
}

#[test]
fn a_bridge_is_not_removed_under_a_pod_that_is_being_attached() {
    let _sandbox = Sandbox::enter();
    let [up, absent] = policies();
    for _ in 0..ROUNDS {
        assert!(apply(up).status.success());
        let pod = Namespace::new("pod");
        let call = call(&pod, json!({}));
        let (added, removed): (Answer, Output) = at_once(|| call.call("ADD"), || apply(absent));
        match added.code {
            Some(0) => {
                assert!(!removed.status.success(), "the bridge was removed: {removed:?}");
                call.clone().with("prevResult", added.success()).call("CHECK").success();
                call.call("DEL").success();
                assert!(apply(absent).status.success());
            }
            _ => {
                assert!(removed.status.success(), "{removed:?}");
                assert_eq!(added.error().0, 100);
            }
        }
    }
}

#[test]
fn pods_that_are_attached_at_once_agree_on_the_gateway() {
    let _sandbox = Sandbox::enter();
    for _ in 0..ROUNDS {
        // One that follows its ports' addresses until it is a gateway, and has an address in the way.
        sh("ip link add br1 up type bridge");
        sh("ip address add 198.51.100.1/24 dev br1");
        let pods = [0, 1].map(|_| Namespace::new("pod"));
        let [a, b] = pods.each_ref().map(|pod| call(pod, network_with_gateway()));
        let (one, other) = at_once(|| a.call("ADD").success(), || b.call("ADD").success());
        let bridge: Value = serde_json::from_str(&sh("ip -json address show dev br1")).unwrap();
        for (call, result) in [(&a, one), (&b, other)] {
            assert_eq!(result["interfaces"][0]["mac"], bridge[0]["address"], "the gateway's address changed");
            call.clone().with("prevResult", result).call("CHECK").success();
        }
        let of_v4 = sh("ip -4 -oneline address show dev br1");
        assert!(of_v4.lines().count() == 1 && of_v4.contains("192.0.2.1/24"), "{of_v4}");
        at_once(|| a.call("DEL").success(), || b.call("DEL").success());
        sh("ip link delete br1");
    }
}

#[test]
fn a_network_s_own_bridge_and_its_rules_stay_for_the_one_that_comes_as_the_last_goes() {
    let _sandbox = Sandbox::enter();
    let pods = [0, 1].map(|_| Namespace::new("pod"));
    let before = Snapshot::take(&[]);
    let mut network = network_with_gateway();
    network["ipMasq"] = true.into();
    let [a, b] = pods.each_ref().map(|pod| call(pod, network.clone()));
    a.call("ADD").success();
    for round in 0..ROUNDS {
        let (goes, comes) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let (_, result) = at_once(|| goes.call("DEL").success(), || comes.call("ADD").success());
        comes.clone().with("prevResult", result).call("CHECK").success();
    }
    // The one that is there and the other that goes again go at once.
    b.call("ADD").success();
    at_once(|| a.call("DEL").success(), || b.call("DEL").success());
    before.assert_unchanged();
}

/// How many processes of this network namespace wait for a lock.
fn waiting() -> usize {
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let waiting = locks.lines().filter(|line| line.contains(" -> "));
    // Number, arrow, kind, strictness, mode, process.
    let processes = waiting.filter_map(|line| line.split_whitespace().nth(5));
    processes
        .filter(|id| fs::read_link(format!("/proc/{id}/ns/net")).is_ok_and(|theirs| theirs == own))
        .count()
}

#[test]
fn who_needs_the_bridges_alone_is_not_passed_by_those_who_share_them() {
    let _sandbox = Sandbox::enter();
    sh("ip link add br1 address 02:00:00:00:0b:01 up type bridge");
    let [up, _] = policies();
    let pod = Namespace::new("pod");
    let call = call(&pod, json!({}));
    // What an ADD that goes on for long has.
    let shared = File::open("/proc/thread-self/ns/net").unwrap();
    shared.lock_shared().unwrap();
    thread::scope(move |scope| {
        let alone = scope.spawn(|| apply(up));
        eventually("the policy waits", LIMIT, || (waiting() == 1).then_some(()));
        let later = scope.spawn(move || call.call("ADD"));
        let passed = eventually("the next ADD waits or is done", LIMIT, || match waiting() {
            2 => Some(false),
            _ => later.is_finished().then_some(true),
        });
        drop(shared);
        assert!(!passed, "an ADD passed the policy that waits");
        assert!(alone.join().unwrap().status.success());
        later.join().unwrap().success();
    });
}
