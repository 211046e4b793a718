//! What one review costs without the network: `cargo bench -p macpool`. Prints one line per figure.
//!
//! Three things: an allocation in a range that is 99.9 % full (it has to cost what it costs in an empty one), a whole
//! CREATE review from bytes to bytes, and an UPDATE that changes nothing, which is what clusters send most.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run ends with the reason")]

use std::hint::black_box;
use std::time::Instant;

use macpool::admit;
use macpool::block::{Bits, BlockId};
use macpool::pool::Pool;
use macpool::range::Ranges;
use macpool::store::dir::{DirStore, Policy};
use net_types::Mac;
use serde_json::{Value, json};

const ROUNDS: u32 = 20_000;

fn main() {
    almost_full();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = DirStore::open(folder.path(), range(), Policy::default()).unwrap();
    // Dry runs: all of a review but the disk, which the cluster's store does not have either.
    let create = review("CREATE", &vm(None), &Value::Null);
    let update = review("UPDATE", &vm(Some("02:00:00:00:00:01")), &vm(Some("02:00:00:00:00:01")));
    for (name, body) in [("CREATE review", create), ("UPDATE review without a change", update)] {
        let body = body.to_string();
        let work = async {
            for _ in 0..ROUNDS {
                black_box(admit::virtual_machine(&store, black_box(body.as_bytes())).await);
            }
        };
        let began = Instant::now();
        runtime.block_on(work);
        report(&format!("{name} of {} bytes", body.len()), began, ROUNDS);
    }
}

fn report(name: &str, began: Instant, rounds: u32) {
    println!("{name}: {:.2} µs", began.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
}

fn range() -> Ranges {
    Ranges::new(&["02:00:00:00:00:00-02:00:00:ff:ff:ff".parse().unwrap()], &[]).unwrap()
}

/// Every block of 2²⁴ addresses is held, with one address in a thousand free.
fn almost_full() {
    let mut pool = Pool::new(range());
    let mut free = 0u32;
    for n in 0..65_536 {
        let block = range().block(n).unwrap();
        let mut taken = Bits::ALL;
        for offset in 0..=u8::MAX {
            if (n * 256 + u64::from(offset)) % 1000 == 0 {
                taken.remove(offset);
                free += 1;
            }
        }
        pool.hold(block, taken);
    }
    let began = Instant::now();
    let mut last = Mac::ZERO;
    for _ in 0..free {
        last = pool.give().unwrap();
    }
    report("allocation, range 99.9 % full", began, free);
    assert!(pool.give().is_none() && pool.ranges().contains(last) && pool.holds(BlockId::of(last).0));
}

fn review(operation: &str, object: &Value, old: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "0b4c6c5e-6b0e-4c0a-9c39-6c9f2f3f7c11", "operation": operation, "namespace": "ns", "name": "vm",
            "kind": {"group": "kubevirt.io", "version": "v1", "kind": "VirtualMachine"},
            "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
            "userInfo": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
            "object": object, "oldObject": old, "dryRun": operation == "CREATE",
        },
    })
}

/// A VM as users have them: two NICs, two disks, cloud-init.
fn vm(mac: Option<&str>) -> Value {
    let nic = |name: &str| {
        let mut nic = json!({"name": name, "bridge": {}, "model": "virtio"});
        if let Some(mac) = mac {
            nic["macAddress"] = json!(format!("{}{}", &mac[..16], name.len() % 10));
        }
        nic
    };
    json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
        "metadata": {"name": "vm", "namespace": "ns", "labels": {"app": "vm"}, "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}".repeat(500),
        }},
        "spec": {"running": true, "template": {"metadata": {"labels": {"kubevirt.io/vm": "vm"}}, "spec": {
            "domain": {
                "cpu": {"cores": 2}, "resources": {"requests": {"memory": "2Gi"}},
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}, {"name": "ci", "disk": {"bus": "virtio"}}],
                    "interfaces": [nic("red"), nic("blue")],
                },
            },
            "networks": [
                {"name": "red", "multus": {"networkName": "red"}}, {"name": "blue", "multus": {"networkName": "blue"}},
            ],
            "volumes": [
                {"name": "root", "containerDisk": {"image": "registry.example/fedora"}},
                {"name": "ci", "cloudInitNoCloud": {"userData": "#cloud-config\npassword: x\n".repeat(10)}},
            ],
        }}},
    })
}
