//! One block, two replicas: it is handed to and fro as it is needed, once for each time and not more.

use super::*;

const BLOCK: &str = "/apis/macpool.guestwire.io/v1/macblocks/02-00-00-00-00";

#[test]
fn a_block_that_another_replica_asks_for_is_left_to_it() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let replicas = [cluster.replica(&[]), cluster.replica(&[])];
    let mut given = std::collections::HashSet::new();
    let rounds = 30;
    for n in 0..rounds {
        for (at, replica) in replicas.iter().enumerate() {
            let macs = eventually("the block comes", PATIENCE, || replica.review(&format!("vm-{n}-{at}")));
            assert!(given.insert(macs.clone()), "{macs:?} was given twice");
        }
    }
    // Each hand-over counts once. A replica that took back at once what it had been asked for would be asked again: more
    // often than not with both as fast as each other.
    let turn = cluster.get(BLOCK)["spec"]["turn"].as_u64().unwrap();
    assert!((rounds..rounds * 5 / 2).contains(&turn), "{turn} hand-overs for {} turns", 2 * rounds);
}

#[test]
fn a_replica_whose_connections_have_died_unnoticed_is_still_asked() {
    let cluster = Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff");
    let between = Forward::start("127.0.0.1:0");
    between.add(cluster.api.address());
    let kubeconfig = cluster.api.kubeconfig_by(&cluster.kubeconfig, between.address());
    let short = &["--grace", "5"];
    let (first, second) = (Replica::start(&kubeconfig, short), cluster.replica(short));
    eventually("it holds the block", PATIENCE, || first.review("one"));
    // Each claim is a request, and they are under way together: their connections are kept for the next ones.
    std::thread::scope(|scope| {
        for n in 0..12 {
            let named = vm(&format!("named-{n}"), &[("red", &format!("06:00:00:00:{n:02x}:01"))]);
            let first = &first;
            scope.spawn(move || assert_eq!(first.answer("u", &named).unwrap()["allowed"], true));
        }
    });
    assert!(between.stall() > 0, "its watches and requests");
    // It would be told of nothing until it gave up its watches, after minutes. But its lease, which it renews by a new
    // connection, tells it that the others are dead.
    eventually("the block comes", PATIENCE, || second.review("two"));
}
