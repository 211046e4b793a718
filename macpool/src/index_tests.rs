//! What the index says of objects that come, change and go.

use super::*;

const ONE: Mac = Mac([2, 0, 0, 0, 0, 1]);
const TWO: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn owner(kind: Kind, key: &str) -> Owner {
    Owner { kind, key: key.into() }
}

fn nic(mac: Mac, network: &str) -> Nic {
    let segment = if network.is_empty() { Segment::Alone } else { Segment::network("ns", network) };
    Nic { mac, segment }
}

fn on_red(macs: &[Mac]) -> Sighting {
    Sighting { nics: macs.iter().map(|mac| nic(*mac, "red")).collect(), migrations: Vec::new() }
}

fn collisions(index: &Index) -> Vec<(Mac, usize)> {
    index.collisions().collect()
}

#[test]
fn a_vm_and_its_instance_are_one_owner() {
    let mut index = Index::default();
    index.put(Place::Vm, "ns/a", on_red(&[ONE]), 1);
    index.put(Place::Vmi, "ns/a", on_red(&[ONE]), 1);
    assert_eq!(index.owners(ONE), [owner(Kind::Vm, "ns/a")]);
    assert_eq!(collisions(&index), []);
    index.put(Place::Pod, "ns/a", on_red(&[ONE]), 1);
    assert_eq!(index.owners(ONE).len(), 2);
    assert_eq!(collisions(&index), [(ONE, 2)]);
}

#[test]
fn an_address_is_used_until_the_guest_is_gone_too() {
    let mut index = Index::default();
    index.put(Place::Vm, "ns/a", on_red(&[ONE]), 1);
    index.put(Place::Vmi, "ns/a", on_red(&[ONE]), 1);
    index.remove(Place::Vm, "ns/a");
    assert!(index.used(BlockId::of(ONE).0).contains(1));
    index.remove(Place::Vmi, "ns/a");
    assert!(index.users.is_empty() && index.networks.is_empty() && index.is_empty());
}

#[test]
fn what_a_listing_does_not_show_is_gone() {
    let mut index = Index::default();
    index.put(Place::Vm, "ns/a", on_red(&[ONE]), 1);
    index.put(Place::Vm, "ns/b", on_red(&[TWO]), 1);
    index.put(Place::Vmi, "ns/b", on_red(&[TWO]), 1);
    index.put(Place::Vm, "ns/a", on_red(&[ONE, TWO]), 2);
    index.retain_round(Place::Vm, 2);
    assert_eq!(index.owners(TWO), [owner(Kind::Vm, "ns/a"), owner(Kind::Vm, "ns/b")]);
    index.put(Place::Vm, "ns/a", on_red(&[ONE]), 2);
    index.retain_round(Place::Vmi, 2);
    assert_eq!(index.owners(TWO), []);
    assert_eq!(index.owners(ONE), [owner(Kind::Vm, "ns/a")]);
    index.put(Place::Vm, "ns/a", on_red(&[ONE]), 3);
    index.retain_round(Place::Vm, 3);
    assert_eq!(index.owners(ONE), [owner(Kind::Vm, "ns/a")], "shown again, as it was");
}

#[test]
fn networks_that_never_meet_may_share_an_address() {
    let mut index = Index::default();
    let on = |network: &str| Sighting { nics: vec![nic(ONE, network)], migrations: Vec::new() };
    index.put(Place::Vm, "ns/a", on("red"), 1);
    index.put(Place::Vm, "ns/b", on("blue"), 1);
    let rivals =
        |index: &Index, network: &str| index.rivals(&owner(Kind::Vm, "ns/c"), &nic(ONE, network)).len();
    assert_eq!(collisions(&index), [(ONE, 2)], "two definitions may lead to one wire");
    assert_eq!((rivals(&index, "red"), rivals(&index, "green"), rivals(&index, "")), (2, 2, 0));
    index.set_domains(Domains::new(["prod=ns/red", "lab=ns/blue"]).unwrap());
    assert_eq!(collisions(&index), []);
    assert_eq!((rivals(&index, "red"), rivals(&index, "blue"), rivals(&index, "green")), (1, 1, 2));
    index.put(Place::Vm, "ns/c", on("blue"), 1);
    assert_eq!(collisions(&index), [(ONE, 2)], "a is still apart");
    index.put(Place::Vm, "ns/c", on(""), 1);
    assert_eq!(collisions(&index), [], "nobody sees an address behind NAT");
    assert_eq!(index.owners(ONE).len(), 3, "it is not free for all that");
}

#[test]
fn the_two_halves_of_a_migration_are_one_guest() {
    let mut index = Index::default();
    let half = |uids: &[&str]| Sighting {
        nics: vec![nic(ONE, "red")],
        migrations: uids.iter().map(|uid| (*uid).into()).collect(),
    };
    for key in ["a/vm", "b/vm"] {
        index.put(Place::Vm, key, half(&[]), 1);
        index.put(Place::Vmi, key, half(&["source", "target"]), 1);
    }
    assert_eq!(collisions(&index), []);
    index.put(Place::Vmi, "c/vm", half(&["other"]), 1);
    assert_eq!(collisions(&index), [(ONE, 3)], "a stranger collides with both");
    index.remove(Place::Vmi, "c/vm");
    index.put(Place::Vmi, "b/vm", half(&[]), 1);
    assert_eq!(collisions(&index), [(ONE, 2)], "the migration is over, and both are there");
}

#[test]
fn who_had_an_address_last_is_remembered_for_a_while() {
    let mut index = Index::default();
    let (a, b) = (owner(Kind::Vm, "ns/a"), owner(Kind::Vm, "ns/b"));
    let long = Duration::from_secs(3600);
    index.put(Place::Vm, "ns/a", on_red(&[ONE, TWO]), 1);
    assert!(!index.had_last(&a, ONE, long), "it has it still");
    index.put(Place::Vm, "ns/a", on_red(&[TWO]), 1);
    assert!(
        index.had_last(&a, ONE, long) && !index.had_last(&b, ONE, long) && !index.had_last(&a, TWO, long)
    );
    assert!(!index.had_last(&a, ONE, Duration::ZERO), "too long ago");
    assert!(!index.had_last(&owner(Kind::Pod, "ns/a"), ONE, long), "a pod of the same name");
    assert_eq!(index.departures(long), [(BlockId::of(ONE).0, [1].into_iter().collect())].into());
    index.put(Place::Vm, "ns/b", on_red(&[ONE]), 1);
    index.remove(Place::Vm, "ns/b");
    assert!(index.had_last(&b, ONE, long) && !index.had_last(&a, ONE, long));
    for _ in 0..2 * DEPARTURES {
        index.put(Place::Vm, "ns/c", on_red(&[TWO]), 1);
        index.remove(Place::Vm, "ns/c");
    }
    assert_eq!(index.departed.len(), DEPARTURES);
}

#[test]
fn an_address_that_all_have_is_counted_in_no_time() {
    let mut index = Index::default();
    let count = 20_000;
    for n in 0..count {
        index.put(Place::Vm, &format!("ns/vm-{n}"), on_red(&[ONE]), 1);
    }
    // Each of them compared with each other would take longer than the test runner waits.
    assert_eq!(collisions(&index), [(ONE, count)]);
}
