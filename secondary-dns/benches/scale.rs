//! What size costs: 100,000 VMs with two NICs and two addresses each, read as the list of a cluster is; then single
//! changes in a zone of that size, and lookups while it was read.
//!
//! Prints time and memory next to their targets: a full sync within 5 s of the list's arrival, at most 200 MB.
//! Run by `cargo bench -p secondary-dns --bench scale [-- VMS]`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark's failure is its result")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use secondary_dns::name::NameBuf;
use secondary_dns::zone::{InfoSource, Policy, Settings, SharedZone, VmRecords, Zone, ZoneWriter};
use vm_api::vmi::Vmi;

const VMS: u32 = 100_000;
const CHANGES: u32 = 1000;

fn main() {
    let vms = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(VMS);
    let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    let settings = Settings::new(&"example.com".parse().unwrap(), &[], &networks, 30, 5).unwrap();
    let shared = Arc::new(SharedZone::new(Zone::new(Arc::new(settings), 1)));
    let mut writer = ZoneWriter::new(Arc::clone(&shared));
    let before = resident_mb();
    let (reader, stop) = read_meanwhile(Arc::clone(&shared));
    let mut busy = Duration::ZERO;
    for n in 0..vms {
        let text = object(n, 0);
        let began = Instant::now();
        apply(&mut writer, &text);
        busy += began.elapsed();
    }
    let began = Instant::now();
    writer.publish(2);
    busy += began.elapsed();
    let memory = resident_mb() - before;
    stop.store(true, Ordering::Relaxed);
    let slowest = reader.join().unwrap();
    let (names, pointers) = shared.load().size();
    println!("{vms} VMs: {names} names, {pointers} PTR records");
    println!("full sync {:.2} s (target 5 s at 100,000 VMs)", busy.as_secs_f64());
    println!("memory {memory} MB (target 200 MB at 100,000 VMs)");
    println!("slowest of 1,000 lookups each while it was read: {slowest:?}");

    let mut took: Vec<Duration> = (0..CHANGES)
        .map(|n| {
            let text = object(n * (vms / CHANGES).max(1), 1);
            let began = Instant::now();
            apply(&mut writer, &text);
            writer.publish(3 + n);
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!("one change, applied and published: p50 {:?}, p99 {:?}", at(50), at(99));
}

fn policy() -> Policy {
    Policy { trusted: InfoSource::ALL.to_vec(), only_ready: false, ttl: 30, room: 200 }
}

/// What the API server says of a VM; `generation` changes its addresses.
fn object(n: u32, generation: u32) -> String {
    let nic = |name: &str, number: u32| {
        let [_, a, b, c] = number.to_be_bytes();
        let v6 =
            format!("2001:db8:{generation}:{}:{:x}:{:x}:{:x}:{:x}", u32::from(a), b, c, n >> 16, n & 0xffff);
        serde_json::json!({"name": name, "mac": "02:00:00:00:00:01", "ipAddress": format!("10.{a}.{b}.{c}"),
            "ipAddresses": [format!("10.{a}.{b}.{c}/8"), v6], "infoSource": "domain, guest-agent, multus-status"})
    };
    let number = 2 * n + generation * 1_000_000;
    serde_json::json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": format!("vm-{n}"), "namespace": format!("ns-{}", n % 1000), "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"kubevirt.io/domain": format!("vm-{n}")}},
        "spec": {"networks": [{"name": "default", "pod": {}}, {"name": "blue", "multus": {"networkName": "blue"}}]},
        "status": {"phase": "Running", "interfaces": [nic("blue", number), nic("red", number + 1)]},
    })
    .to_string()
}

fn apply(writer: &mut ZoneWriter, text: &str) {
    let vmi: Vmi = serde_json::from_str(text).unwrap();
    let records = VmRecords::of(&vmi, &policy()).unwrap().expect("a VM with NICs");
    writer.set(&records.name.clone(), Some(records));
}

/// Looks names up until told to stop; gives the slowest thousand.
fn read_meanwhile(shared: Arc<SharedZone>) -> (std::thread::JoinHandle<Duration>, Arc<AtomicBool>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        let name = NameBuf::read(b"\x04blue\x04vm-1\x04ns-1\x02vm\x07example\x03com\x00", 0).unwrap();
        let mut slowest = Duration::ZERO;
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            for _ in 0..1000 {
                std::hint::black_box(shared.load().find(&name).is_some());
            }
            slowest = slowest.max(began.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        slowest
    });
    (thread, stop)
}

/// Resident memory of this process.
fn resident_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
