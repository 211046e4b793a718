//! secondary-dns against a real API server with 5,000 VMIs: the first sync beyond the list itself, and how soon a
//! change is answered once the API server has it.
//!
//! Targets: first sync within 0.5 s beyond the list; change to answer p99 within 20 ms.
//! Run by `cargo bench -p e2e --bench dns_cluster` after `cargo build --release -p secondary-dns`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark's failure is its result")]

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::{ApiServer, Daemon, Sandbox, binary};
use serde_json::{Value, json};

const VMIS: u32 = 5_000;
const CHANGES: u32 = 300;
const COLLECTION: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";

fn main() {
    let api = ApiServer::start(&Sandbox::enter(), &[]);
    api.define_kubevirt();
    api.create_many(COLLECTION, (0..VMIS).map(vmi));
    let list = median((0..5).map(|_| time_list(&api)));
    let mut running = None;
    let sync = median((0..5).map(|_| {
        let began = Instant::now();
        running = Some(start(&api));
        began.elapsed()
    }));
    println!("{VMIS} VMIs: list {list:?}, start to first answer {sync:?}");
    println!("beyond the list: {:?} (target 0.5 s)", sync.saturating_sub(list));

    let (_process, address) = running.unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|n| {
            let address = Ipv4Addr::from(0x0b00_0000 + n);
            let interfaces = json!([{"name": "blue", "ipAddresses": [address.to_string()]}]);
            let patch = json!({"status": {"interfaces": interfaces}}).to_string();
            let (status, answer) = api.request("PATCH", &format!("{COLLECTION}/vm{n}"), Some(&patch));
            assert_eq!(status, 200, "{answer}");
            let changed = Instant::now();
            while ask(&socket, &format!("vm{n}")) != Some(address) {}
            changed.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!("patched to answered: p50 {:?}, p99 {:?} (target 20 ms)", at(50), at(99));
}

/// About what KubeVirt says of a VM: most of it is of no use to a name server, but must be read over.
fn vmi(n: u32) -> String {
    let padding: Vec<Value> = (0..20)
        .map(|n| {
            json!({"type": format!("Condition{n}"), "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "message": "as it should be"})
        })
        .collect();
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": format!("vm{n}"), "namespace": "default"},
        "spec": {"networks": [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue"}}]},
        "status": {"phase": "Running", "conditions": padding, "interfaces": [
            {"name": "blue", "ipAddresses": [Ipv4Addr::from(0x0a00_0000 + n).to_string()]},
        ]},
    })
    .to_string()
}

/// Reads the list as secondary-dns does, page by page over one connection.
fn time_list(api: &ApiServer) -> Duration {
    let began = Instant::now();
    let mut next = String::new();
    loop {
        let path = format!("/apis/kubevirt.io/v1/virtualmachineinstances?limit=1000&continue={next}");
        let (status, page) = api.request("GET", &path, None);
        assert_eq!(status, 200, "{page}");
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            return began.elapsed();
        }
    }
}

/// Starts the server and waits until it answers.
fn start(api: &ApiServer) -> (Daemon, SocketAddr) {
    let mut process = Daemon::start(
        Command::new(binary("secondary-dns"))
            .args([
                "--source",
                "kube",
                "--domain",
                "example.com",
                "--listen",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ])
            .env("KUBECONFIG", api.admin())
            .stderr(Stdio::piped()),
    );
    let stderr = process.child().stderr.take().unwrap();
    let mut lines = BufReader::new(stderr).lines().map(Result::unwrap);
    let address = lines.by_ref().find_map(|line| {
        let line: Value = serde_json::from_str(&line).unwrap();
        line["fields"]["address"].as_str().map(|text| text.parse().unwrap())
    });
    std::thread::spawn(move || lines.for_each(drop));
    (process, address.unwrap_or_else(|| panic!("secondary-dns ended")))
}

fn median(all: impl Iterator<Item = Duration>) -> Duration {
    let mut all: Vec<Duration> = all.collect();
    all.sort_unstable();
    all[all.len() / 2]
}

/// Asks for the A record of a VM's name.
fn ask(socket: &UdpSocket, vm: &str) -> Option<Ipv4Addr> {
    let mut message = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [vm, "default", "vm", "example", "com"] {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&message).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).unwrap();
    let data: [u8; 4] = reply.get(length.checked_sub(4)?..length)?.try_into().unwrap();
    (reply[7] == 1).then_some(Ipv4Addr::from(data))
}
