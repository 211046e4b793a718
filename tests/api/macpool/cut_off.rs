//! A replica that the network keeps from the API server, while the API server still reaches it: what it was given the right to
//! give it gives, and then nothing.

use e2e::{Namespace, sh};

use super::replicas::{Patience, await_freed, create_more, two_small_blocks};
use super::*;

/// A replica in a network namespace of its own, with one link to the API server and another to the Service.
struct Apart {
    replica: Replica,
    namespace: Namespace,
    _to_the_api_server: Forward,
}

impl Apart {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let namespace = Namespace::new("replica");
        for (link, network) in [("api", "10.9.0"), ("reviews", "10.9.1")] {
            sh(&format!("ip link add to-{link} type veth peer name {link} netns {}", namespace.name()));
            sh(&format!("ip address add {network}.1/30 dev to-{link}"));
            sh(&format!("ip link set to-{link} up"));
            namespace.sh(&format!("ip address add {network}.2/30 dev {link}"));
            namespace.sh(&format!("ip link set {link} up"));
        }
        let api = Forward::start("10.9.0.1:0");
        api.add(cluster.api.address());
        let kubeconfig = cluster.api.kubeconfig_by(&cluster.kubeconfig, api.address());
        let mut command = namespace.command(binary("macpool"));
        let replica = Replica::run(&mut command, "10.9.1.2:0", &kubeconfig, arguments);
        cluster.service.add(replica.reviews);
        Self { replica, namespace, _to_the_api_server: api }
    }

    /// From now on its packets to the API server go nowhere, and nothing tells it so.
    fn cut_off(&self) {
        self.namespace.sh("ip neighbour replace 10.9.0.1 lladdr 02:00:00:00:de:ad dev api nud permanent");
    }

    fn join_again(&self) {
        self.namespace.sh("ip neighbour del 10.9.0.1 dev api");
    }
}

#[test]
fn a_replica_cut_off_from_the_api_server_costs_no_write_and_no_address() {
    let cluster = two_small_blocks(30);
    // So short a grace time that the other one gives from its block before it is back.
    let (apart, _other) = (Apart::start(&cluster, &["--grace", "5"]), cluster.replica(&["--grace", "5"]));
    create_more(&cluster, "before", 4, 3, Patience::Exact, |_| {});
    assert_eq!(cluster.leases(), 2);
    create_more(&cluster, "during", 4, 4, Patience::Exact, |_| apart.cut_off());
    // Most of its block is still to be given: asked all the time it would have nothing left before it stops.
    eventually("its lease runs out", PATIENCE, || (!apart.replica.is_ready()).then_some(()));
    assert_eq!(apart.replica.review("past"), None, "it holds back what it has");
    // The Service does not know yet, and still no write fails: the API server asks again, and reaches the other one.
    create_more(&cluster, "refused", 4, 2, Patience::Exact, |_| {});
    cluster.service.remove(apart.replica.reviews);
    eventually("it is deposed", PATIENCE, || (cluster.leases() == 1).then_some(()));
    await_freed(&cluster);
    create_more(&cluster, "meanwhile", 4, 14, Patience::Exact, |_| {
        assert_eq!(apart.replica.review("late"), None, "its blocks are another's");
    });
    apart.join_again();
    eventually("it begins anew", PATIENCE, || {
        (cluster.leases() == 2 && apart.replica.is_ready()).then_some(())
    });
    cluster.service.add(apart.replica.reviews);
    create_more(&cluster, "after", 4, 4, Patience::Exact, |_| {});
    cluster.assert_unique(12 + 16 + 8 + 56 + 16);
}
