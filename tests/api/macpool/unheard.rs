//! What a replica asks of the API server comes late, or not at all, or its answer does: still nobody gives what another has.

use std::collections::HashSet;

use super::between::{Between, Fate, is};
use super::*;

const LEASES: &str = "/leases";
const BLOCKS: &str = "/macblocks";
const BLOCK: &str = "/apis/macpool.guestwire.io/v1/macblocks/02-00-00-00-00";
const GRACE: &[&str] = &["--grace", "2"];

/// Requests of this kind have this fate, all others pass.
fn only(method: &'static str, what: &'static str, fate: Fate) -> impl Fn(&str) -> Fate {
    move |line| if is(line, method, what) { fate } else { Fate::Pass }
}

/// One replica whose requests the test can get hold of.
struct Watched {
    replica: Replica,
    between: Between,
}

impl Watched {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let between = Between::start(cluster);
        let replica = Replica::start(&between.kubeconfig, arguments);
        Self { replica, between }
    }
}

/// The identities in office.
fn in_office(cluster: &Cluster) -> HashSet<String> {
    let leases = cluster.get("/apis/coordination.k8s.io/v1/namespaces/macpool/leases");
    let names = leases["items"].as_array().unwrap().iter().map(|lease| &lease["metadata"]["name"]);
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn the_one_in_office(cluster: &Cluster) -> String {
    let [one] = &in_office(cluster).into_iter().collect::<Vec<_>>()[..] else { panic!("several") };
    one.clone()
}

fn one_block() -> Cluster {
    Cluster::start("02:00:00:00:00:00", "02:00:00:00:00:ff")
}

#[test]
fn who_was_deposed_unheard_is_never_in_office_again() {
    let cluster = one_block();
    let first = Watched::start(&cluster, GRACE);
    eventually("it holds the block", PATIENCE, || first.replica.review("before"));
    let deposed = the_one_in_office(&cluster);
    let second = cluster.replica(GRACE);
    first.between.rule(only("PUT", LEASES, Fate::Held));
    eventually("it is deposed", PATIENCE, || (!in_office(&cluster).contains(&deposed)).then_some(()));
    let given: Vec<_> = (0..4)
        .map(|n| eventually("the block is another's", PATIENCE, || second.review(&format!("meanwhile-{n}"))))
        .collect();
    first.between.rule(|_| Fate::Pass);
    eventually("it begins anew", PATIENCE, || (in_office(&cluster).len() == 2).then_some(()));
    assert!(!in_office(&cluster).contains(&deposed), "a lease that was deleted was made again");
    let macs = eventually("the block is handed over", PATIENCE, || first.replica.review("after"));
    assert!(!given.contains(&macs), "{macs:?} is another's");
}

#[test]
fn who_speaks_while_being_deposed_stays() {
    let cluster = one_block();
    let first = Watched::start(&cluster, GRACE);
    let identity = the_one_in_office(&cluster);
    let second = Watched::start(&cluster, GRACE);
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/macpool/leases/{identity}");
    let version = || cluster.get(&lease)["metadata"]["resourceVersion"].clone();
    second.between.rule(only("DELETE", LEASES, Fate::Held));
    first.between.rule(only("PUT", LEASES, Fate::Held));
    second.between.await_asked("DELETE", LEASES, 1);
    let before = version();
    first.between.rule(|_| Fate::Pass);
    eventually("it speaks", PATIENCE, || (version() != before).then_some(()));
    second.between.rule(|_| Fate::Pass);
    assert_eq!(second.between.await_answer("DELETE", LEASES), "409");
    assert!(in_office(&cluster).contains(&identity));
}

#[test]
fn a_block_that_was_taken_unheard_is_handed_back_and_taken_again() {
    let cluster = one_block();
    let between = Between::start(&cluster);
    between.rule(only("POST", BLOCKS, Fate::Lost));
    let replica = Replica::start(&between.kubeconfig, GRACE);
    between.await_asked("POST", BLOCKS, 2);
    between.rule(|_| Fate::Pass);
    eventually("it gives", PATIENCE, || replica.review("one"));
}

/// The first replica's taking of the only block ends like this, and a second one has it.
fn taken_by_another(fate: Fate) {
    let cluster = one_block();
    let [one, other] = [(); 2].map(|()| Between::start(&cluster));
    one.rule(only("POST", BLOCKS, fate));
    other.rule(only("POST", BLOCKS, Fate::Held));
    let [first, second] = [&one, &other].map(|between| Replica::start(&between.kubeconfig, GRACE));
    one.await_asked("POST", BLOCKS, 1);
    other.rule(|_| Fate::Pass);
    assert_eq!(other.await_answer("POST", BLOCKS), "201");
    one.rule(|_| Fate::Pass);
    let given = eventually("it gives", PATIENCE, || second.review("one"));
    let macs = eventually("the block is handed over", PATIENCE, || first.review("two"));
    assert_ne!(macs, given);
}

#[test]
fn a_block_whose_taking_never_arrives_is_not_had() {
    taken_by_another(Fate::Refused);
}

#[test]
fn a_block_whose_taking_arrives_too_late_is_not_had() {
    taken_by_another(Fate::Held);
}

#[test]
fn who_is_deposed_while_taking_a_block_does_not_have_it() {
    let cluster = one_block();
    let between = Between::start(&cluster);
    between.rule(only("POST", BLOCKS, Fate::Unanswered));
    let replica = Replica::start(&between.kubeconfig, GRACE);
    let identity = the_one_in_office(&cluster);
    assert_eq!(between.await_answer("POST", BLOCKS), "201");
    cluster.delete(&format!("/apis/coordination.k8s.io/v1/namespaces/macpool/leases/{identity}"));
    eventually("it begins anew", PATIENCE, || {
        let now = in_office(&cluster);
        (now.len() == 1 && !now.contains(&identity)).then_some(())
    });
    between.rule(|_| Fate::Pass);
    eventually("it gives", PATIENCE, || replica.review("one"));
    let block = cluster.get(BLOCK);
    let holder = block["spec"]["holder"].as_str();
    assert!(holder.is_some_and(|holder| in_office(&cluster).contains(holder)), "{block}");
}

#[test]
fn an_address_asked_for_by_name_is_had_once_the_api_server_has_said_so() {
    let cluster = one_block();
    let strict = &["--on-duplicate", "reject"];
    let (first, second) = (Watched::start(&cluster, strict), cluster.replica(strict));
    let named = |name: &str, block: u8| vm(name, &[("red", &format!("06:00:00:00:{block:02x}:01"))]);
    let asks = |replica: &Replica, vm: &Value| Some(replica.answer("u", vm)?["allowed"] == true);
    first.between.rule(|line| match line {
        line if is(line, "GET", "watch=1") => Fate::Unanswered,
        line if is(line, "POST", BLOCKS) => Fate::Refused,
        _ => Fate::Pass,
    });
    assert_eq!(asks(&first.replica, &named("mine", 1)), None, "it never got there");
    assert_eq!(asks(&second, &named("other", 1)), Some(true));
    first.between.rule(|line| match line {
        line if is(line, "GET", "watch=1") => Fate::Unanswered,
        line if is(line, "POST", BLOCKS) => Fate::Lost,
        _ => Fate::Pass,
    });
    assert_eq!(asks(&first.replica, &named("mine", 2)), None, "nobody knows");
    first.between.rule(only("GET", "watch=1", Fate::Unanswered));
    assert_eq!(
        asks(&first.replica, &named("mine", 1)),
        Some(false),
        "its cache has not seen that it is another's"
    );
    assert_eq!(asks(&first.replica, &named("mine", 2)), Some(true), "asked again");
    assert_eq!(asks(&second, &named("other", 2)), Some(false));
}

#[test]
fn a_watch_that_does_not_begin_is_begun_again() {
    let cluster = one_block();
    let between = Between::start(&cluster);
    between.rule(only("GET", "watch=1", Fate::Unanswered));
    let replica = Replica::start(&between.kubeconfig, &[]);
    between.await_asked("GET", "/virtualmachineinstances?watch=1", 3);
    between.rule(|_| Fate::Pass);
    cluster.api.create(VMIS, &vmi_of(&vm("one", &[("red", "06:00:00:00:00:01")])).to_string());
    eventually("the guest is seen", PATIENCE, || {
        (replica.metric("macpool_objects") == Some(1)).then_some(())
    });
}

#[test]
fn the_blocks_of_one_that_is_deposed_are_taken_from_it_without_another_look() {
    let cluster = one_block();
    let first = Watched::start(&cluster, GRACE);
    eventually("it holds the block", PATIENCE, || first.replica.review("before"));
    let deposed = the_one_in_office(&cluster);
    let second = Watched::start(&cluster, GRACE);
    let deleted = AtomicBool::new(false);
    second.between.rule(move |line| {
        if is(line, "DELETE", LEASES) {
            deleted.store(true, Ordering::Relaxed);
        }
        let looks = is(line, "GET", "/leases?") && deleted.load(Ordering::Relaxed);
        if looks { Fate::Held } else { Fate::Pass }
    });
    first.between.rule(only("PUT", LEASES, Fate::Held));
    eventually("its block is another's, or nobody's", PATIENCE, || {
        (cluster.get(BLOCK)["spec"]["holder"] != *deposed).then_some(())
    });
}

#[test]
fn a_block_of_which_it_is_not_known_whether_it_has_gone_back_is_not_taken_again() {
    let cluster = one_block();
    let first = Watched::start(&cluster, &[]);
    let mut given = HashSet::from([eventually("it gives", PATIENCE, || first.replica.review("before"))]);
    first.between.rule(|line| match line {
        line if is(line, "PUT", BLOCKS) => Fate::Lost,
        line if is(line, "GET", "/macblocks/") => Fate::Held,
        _ => Fate::Pass,
    });
    // As another replica asks for it. It goes back, and nobody tells.
    let recall = json!({"spec": {"recall": true}}).to_string();
    assert_eq!(cluster.api.request("PATCH", BLOCK, Some(&recall)).0, 200);
    first.between.await_asked("GET", "/macblocks/", 1);
    first.between.rule(only("GET", "/macblocks/", Fate::Refused));
    eventually("it has tried more than once", PATIENCE, || {
        let tried = first.between.asked("GET", "/macblocks/") > 3;
        (tried || first.between.answered("PUT", BLOCKS, "200") > 2).then_some(())
    });
    first.between.rule(|_| Fate::Pass);
    let second = cluster.replica(&[]);
    for n in 0..8 {
        for (at, replica) in [&first.replica, &second].into_iter().enumerate() {
            let macs = eventually("it gives", PATIENCE, || replica.review(&format!("vm-{n}-{at}")));
            assert!(given.insert(macs.clone()), "{macs:?} was given twice");
        }
    }
}

#[test]
fn who_does_not_know_the_cluster_yet_lets_nobody_have_what_another_has() {
    let cluster = one_block();
    // Past macpool: its namespace is the cluster's own.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": "system", "labels": {"runlevel": "1"},
    }});
    cluster.api.create("/api/v1/namespaces", &namespace.to_string());
    let mut vm = vm("one", &[("red", "06:00:00:00:00:01")]);
    vm["metadata"]["namespace"] = json!("system");
    cluster.api.create(&VMS.replace("/default/", "/system/"), &vm.to_string());
    let between = Between::start(&cluster);
    between.rule(only("GET", "/virtualmachines?", Fate::Held));
    let arguments = &["--on-duplicate", "reject"];
    let mut command = Command::new(binary("macpool"));
    let replica = Replica::launch(&mut command, "127.0.0.1:0", &between.kubeconfig, arguments);
    let named = super::vm("two", &[("red", "06:00:00:00:00:01")]);
    assert_eq!(replica.answer("u", &named), None, "another replica can tell");
    between.rule(|_| Fate::Pass);
    let answer = eventually("it knows the cluster", PATIENCE, || replica.answer("u", &named));
    assert_eq!(answer["status"]["code"], 409, "{answer}");
}

#[test]
fn a_block_whose_record_is_deleted_is_let_go_with_what_was_given_of_it() {
    let cluster = one_block();
    let first = cluster.replica(&[]);
    let give = |replica: &Replica, name: &str| eventually("it gives", PATIENCE, || replica.review(name));
    let mut given: HashSet<_> = (0..3).map(|n| give(&first, &format!("before-{n}"))).collect();
    cluster.delete(BLOCK);
    eventually("it is made again", PATIENCE, || {
        (cluster.api.request("GET", BLOCK, None).0 == 200).then_some(())
    });
    let second = cluster.replica(&[]);
    for n in 0..8 {
        for (at, replica) in [&first, &second].into_iter().enumerate() {
            let macs = give(replica, &format!("vm-{n}-{at}"));
            assert!(given.insert(macs.clone()), "{macs:?} was given twice");
        }
    }
}
