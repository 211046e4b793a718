//! Two replicas, both active: whatever happens to them, no address is given twice and no VM has to wait for a restart.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// What a client does with a write that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// No write may fail.
    Exact,
    /// One whose review was lost with a replica is tried again, as a controller does.
    TryAgain,
}

/// Creates VMs of one NIC from many clients at once, in a thread of each; `meanwhile` runs beside them.
fn create_many(
    cluster: &Cluster,
    clients: usize,
    each: usize,
    patience: Patience,
    meanwhile: impl FnOnce(&AtomicUsize),
) {
    create_more(cluster, "vm", clients, each, patience, meanwhile);
}

/// The same, with names that begin as given.
pub(super) fn create_more(
    cluster: &Cluster,
    name: &str,
    clients: usize,
    each: usize,
    patience: Patience,
    meanwhile: impl FnOnce(&AtomicUsize),
) {
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let done = &done;
            scope.spawn(move || {
                for n in 0..each {
                    let vm = vm(&format!("{name}-{client}-{n}"), &[("red", "")]);
                    eventually("the VM is created", PATIENCE, || {
                        let (status, answer) = cluster.try_create(&vm);
                        assert!(patience == Patience::TryAgain || status == 201, "{status} {answer}");
                        assert!(
                            // 0: no API server just now. 404: it does not serve VMs yet. 409: the VM was created, and
                            // only the answer got lost.
                            matches!(status, 0 | 201 | 404 | 409 | 500 | 503 | 504),
                            "{status} {answer}"
                        );
                        matches!(status, 201 | 409).then_some(())
                    });
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        meanwhile(&done);
    });
}

pub(super) fn wait_for(done: &AtomicUsize, count: usize) {
    eventually("that many are done", PATIENCE, || (done.load(Ordering::Relaxed) >= count).then_some(()));
}

#[test]
fn a_hundred_clients_of_two_replicas_get_different_addresses_up_to_the_last_one() {
    // Not a whole number of blocks, and fewer blocks than two replicas would like to have.
    let cluster = Cluster::start("02:00:00:00:00:f0", "02:00:00:00:02:1f");
    let _replicas = [cluster.replica(&[]), cluster.replica(&[])];
    create_many(&cluster, 100, 3, Patience::Exact, |_| {});
    cluster.assert_unique(300);
    // 304 in all: the last four are found too, whichever replica holds them.
    for n in 0..4 {
        cluster.create(&vm(&format!("last-{n}"), &[("red", "")]));
    }
    cluster.assert_unique(304);
    let (status, answer) = cluster.try_create(&vm("beyond", &[("red", "")]));
    assert_eq!(status, 507, "{answer}");
}

#[test]
fn replicas_killed_under_load_cost_no_address_and_no_write() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let (first, second) = (cluster.replica(&[]), cluster.replica(&[]));
    create_many(&cluster, 16, 20, Patience::TryAgain, |done| {
        wait_for(done, 60);
        first.crash();
        wait_for(done, 120);
        let _third = cluster.replica(&[]);
        second.crash();
        wait_for(done, 320);
    });
    cluster.assert_unique(320);
}

#[test]
fn every_write_succeeds_at_once_during_a_rolling_update() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:ff:ff");
    let (first, second) = (cluster.replica(&[]), cluster.replica(&[]));
    create_many(&cluster, 8, 25, Patience::Exact, |done| {
        let mut new = Vec::new();
        for (at, old) in [(40, first), (90, second)] {
            wait_for(done, at);
            new.push(cluster.replica(&[]));
            old.terminate();
        }
        wait_for(done, 200);
    });
    cluster.assert_unique(200);
}

#[test]
fn a_restart_of_the_api_server_under_load_loses_nothing() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:03:ff");
    let _replicas = [cluster.replica(&[]), cluster.replica(&[])];
    create_many(&cluster, 8, 15, Patience::TryAgain, |done| {
        wait_for(done, 40);
        cluster.api.crash();
        cluster.api.resume();
        wait_for(done, 120);
    });
    cluster.assert_unique(120);
}

/// Two blocks of 64 addresses each, one for each replica.
pub(super) fn two_small_blocks(seconds: u32) -> Cluster {
    let cluster = Cluster::with_timeout("02:00:00:00:00:00", "02:00:00:00:01:3f", seconds);
    let gap = json!({"data": {"EXCLUDE": "02:00:00:00:00:40-02:00:00:00:00:ff"}}).to_string();
    assert_eq!(cluster.api.request("PATCH", CONFIG, Some(&gap)).0, 200);
    cluster
}

/// Waits until the blocks of those who have been deposed are taken from them, and swept: all of them counted as given.
pub(super) fn await_freed(cluster: &Cluster) {
    eventually("what it did not give is free", PATIENCE, || {
        let leases = cluster.get("/apis/coordination.k8s.io/v1/namespaces/macpool/leases");
        let leases = leases["items"].as_array().unwrap();
        let in_office = |holder: &Value| leases.iter().any(|lease| lease["metadata"]["name"] == *holder);
        let blocks = cluster.get("/apis/macpool.guestwire.io/v1/macblocks");
        let freed = blocks["items"].as_array().unwrap().iter().map(|block| &block["spec"]).all(|record| {
            (record["holder"].is_null() || in_office(&record["holder"]))
                && record["taken"].as_str().unwrap() != "f".repeat(64)
        });
        freed.then_some(())
    });
}

#[test]
fn a_replica_that_was_paused_gives_nothing_of_what_was_taken_from_it() {
    // So short a grace time that the paused one's block is given by the other meanwhile. A review that went to the paused one
    // is soon given up.
    let cluster = two_small_blocks(5);
    let (paused, _other) = (cluster.replica(&["--grace", "5"]), cluster.replica(&["--grace", "5"]));
    create_more(&cluster, "before", 4, 5, Patience::Exact, |_| {});
    assert_eq!(cluster.leases(), 2);
    paused.signal("-STOP");
    cluster.service.remove(paused.reviews);
    eventually("it is deposed", PATIENCE, || (cluster.leases() == 1).then_some(()));
    await_freed(&cluster);
    create_more(&cluster, "meanwhile", 4, 15, Patience::TryAgain, |_| {});
    paused.signal("-CONT");
    cluster.service.add(paused.reviews);
    create_more(&cluster, "after", 8, 4, Patience::TryAgain, |_| {});
    cluster.assert_unique(20 + 60 + 32);
    eventually("it begins anew", PATIENCE, || (cluster.leases() == 2 && paused.is_ready()).then_some(()));
}

#[test]
fn an_address_asked_for_by_name_in_a_living_replicas_block_is_handed_over() {
    // One block: whoever gives first holds it.
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let _replicas = [cluster.replica(&[]), cluster.replica(&[])];
    let mut expected = 0;
    for n in 0..20 {
        // Reviews alternate between the replicas as connections do; either way the block has to be where it is needed.
        cluster.create(&vm(&format!("any-{n}"), &[("red", "")]));
        let named = format!("02:00:00:00:00:{:02x}", 0xff - n);
        assert_eq!(cluster.create(&vm(&format!("named-{n}"), &[("red", &named)])), [named]);
        expected += 2;
    }
    cluster.assert_unique(expected);
}

#[test]
fn an_address_asked_for_by_name_in_a_dead_replicas_block_is_had_within_the_webhooks_time() {
    let cluster = Cluster::with_timeout("02:00:00:00:00:00", "02:00:00:00:00:ff", 10);
    let first = cluster.replica(&[]);
    let given = cluster.create(&vm("before", &[("red", "")]));
    first.crash();
    let _second = cluster.replica(&[]);
    let (status, answer) = cluster.try_create(&vm("named", &[("red", "02:00:00:00:00:fe")]));
    assert_eq!(status, 201, "{answer}");
    assert_ne!(given, ["02:00:00:00:00:fe"]);
}
