//! The machine's store, over real files.

use std::fs;
use std::io::Write as _;

use super::*;
use crate::range::MacRange;
use crate::segment::Segment;
use crate::store::Kind;

fn ranges(text: &str) -> Ranges {
    Ranges::new(&[text.parse::<MacRange>().unwrap()], &[]).unwrap()
}

fn open(directory: &Path) -> DirStore {
    DirStore::open(directory, ranges("02:00:00:00:00:00-02:00:00:00:00:02"), Policy::default()).unwrap()
}

fn reject() -> Policy {
    Policy { on_duplicate: OnDuplicate::Reject, ..Policy::default() }
}

fn owner(key: &str) -> Owner {
    Owner { kind: Kind::Vm, key: key.into() }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn want(nic: &str, address: Address) -> Want {
    let segment = Segment::network("ns", nic);
    Want { index: 0, nic: nic.to_owned(), address, segment }
}

fn order(store: &DirStore, key: &str, wants: &[Want]) -> Result<Vec<Mac>, OrderError> {
    let owner = owner(key);
    let order = Order { owner: &owner, wants, dry_run: false };
    lock(&store.state).order(order, &store.policy).map(|supplied| supplied.macs)
}

#[test]
fn a_vm_that_comes_up_again_has_its_addresses_again() {
    let directory = tempfile::tempdir().unwrap();
    let wants = [want("a", Address::Any), want("b", Address::Any)];
    let first = order(&open(directory.path()), "ns/vm", &wants).unwrap();
    assert_eq!(first, [mac(0), mac(1)]);
    let store = open(directory.path());
    assert_eq!(order(&store, "ns/other", &wants[..1]).unwrap(), [mac(2)]);
    assert_eq!(order(&store, "ns/vm", &wants).unwrap(), first);
}

#[test]
fn a_full_range_is_full_until_somebody_goes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let wants = [want("a", Address::Any), want("b", Address::Any)];
    order(&store, "ns/one", &wants).unwrap();
    let error = order(&store, "ns/two", &wants).unwrap_err().to_string();
    assert_eq!(error, "the range is full: all 3 addresses of 02:00:00:00:00:00-02:00:00:00:00:02 are taken");
    assert_eq!(order(&store, "ns/three", &wants[..1]).unwrap(), [mac(2)], "the refused order left nothing");
    lock(&store.state).forget(&owner("ns/one")).unwrap();
    assert_eq!(order(&store, "ns/two", &wants).unwrap(), [mac(0), mac(1)]);
    drop(store);
    let left = DirStore::read(directory.path()).unwrap();
    let owners: Vec<_> = left.iter().map(|reservation| reservation.owner.key.to_string()).collect();
    assert_eq!(owners, ["ns/two", "ns/two", "ns/three"]);
}

#[test]
fn an_address_asked_for_by_name_is_never_given_to_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    order(&store, "ns/named", &[want("a", Address::Named(mac(0)))]).unwrap();
    assert_eq!(order(&store, "ns/any", &[want("a", Address::Any)]).unwrap(), [mac(1)]);
    let owner = owner("ns/second");
    let wants = [want("b", Address::Named(mac(0)))];
    let twice = Order { owner: &owner, wants: &wants, dry_run: false };
    let warned = lock(&store.state).order(twice, &Policy::default()).unwrap();
    assert_eq!(warned.warnings, [r#"interface "b": macAddress 02:00:00:00:00:00 is also used by ns/named"#]);
    let third = self::owner("ns/third");
    let twice = Order { owner: &third, ..twice };
    let refused = lock(&store.state).order(twice, &reject()).unwrap_err();
    assert!(matches!(refused, OrderError::Duplicate { .. }), "{refused}");
}

#[test]
fn a_dry_run_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let owner = owner("ns/vm");
    let wants = [want("a", Address::Any), want("b", Address::Named(mac(2)))];
    let dry = Order { owner: &owner, wants: &wants, dry_run: true };
    assert_eq!(lock(&store.state).order(dry, &Policy::default()).unwrap().macs, [mac(0), mac(2)]);
    assert_eq!(DirStore::read(directory.path()).unwrap(), []);
    // Nor does one of a VM that has an address already.
    assert_eq!(order(&store, "ns/vm", &wants[..1]).unwrap(), [mac(0)]);
    assert_eq!(lock(&store.state).order(dry, &Policy::default()).unwrap().macs, [mac(0), mac(2)]);
    let others = order(&store, "ns/other", &[want("a", Address::Any), want("b", Address::Any)]);
    assert_eq!(others.unwrap(), [mac(1), mac(2)]);
}

#[test]
fn a_line_cut_off_by_a_crash_is_dropped_and_damage_stops_us() {
    let directory = tempfile::tempdir().unwrap();
    order(&open(directory.path()), "ns/vm", &[want("a", Address::Any)]).unwrap();
    let path = DirStore::journal_path(directory.path());
    let whole = fs::read(&path).unwrap();
    // Cut after any byte of what was appended: the header stays, and the rest is all or nothing.
    let header = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for end in header..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        drop(open(directory.path()));
        assert_eq!(DirStore::read(directory.path()).unwrap(), [], "{end}");
    }
    fs::write(&path, &whole).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"op\":\n{}\n").unwrap();
    let result = DirStore::open(directory.path(), ranges("02:00:00:00:00:00"), Policy::default());
    assert!(matches!(result.err().unwrap(), JournalError::Damaged { line: 3, .. }));
}

#[test]
fn who_has_no_name_is_refused_since_nothing_could_be_remembered_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = order(&store, "ns/web-*u-1", &[want("a", Address::Any)]).unwrap_err().to_string();
    assert_eq!(error, "metadata.name is missing; without a cluster nobody makes one up");
    assert_eq!(order(&store, "ns/vm", &[want("a", Address::Any)]).unwrap(), [mac(0)]);
}

#[test]
fn one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path());
    let second = DirStore::open(directory.path(), ranges("02:00:00:00:00:00"), Policy::default());
    assert!(matches!(second.err().unwrap(), JournalError::InUse(_)));
}

#[test]
fn the_journal_stays_small() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for _ in 0..1200 {
        order(&store, "ns/vm", &[want("a", Address::Any)]).unwrap();
        lock(&store.state).forget(&owner("ns/vm")).unwrap();
    }
    let lines = fs::read_to_string(DirStore::journal_path(directory.path())).unwrap().lines().count();
    assert!(lines < 1100, "{lines} lines for no reservation");
}

#[test]
fn what_is_written_counts_although_the_journal_cannot_be_made_shorter() {
    let directory = tempfile::tempdir().unwrap();
    let any = [want("a", Address::Any)];
    {
        let store = open(directory.path());
        let blocker = directory.path().join("journal.new");
        fs::create_dir(&blocker).unwrap();
        for _ in 0..600 {
            order(&store, "ns/vm", &any).unwrap();
            lock(&store.state).forget(&owner("ns/vm")).unwrap();
        }
        let one = order(&store, "ns/one", &any).unwrap();
        assert_ne!(order(&store, "ns/two", &any).unwrap(), one);
        assert!(lock(&store.state).journal.is_bloated(2), "it was to be made shorter");
        fs::remove_dir(&blocker).unwrap();
        order(&store, "ns/three", &any).unwrap();
        assert!(!lock(&store.state).journal.is_bloated(3), "as soon as it can be");
        lock(&store.state).forget(&owner("ns/two")).unwrap();
    }
    let left = DirStore::read(directory.path()).unwrap();
    let owners: Vec<_> = left.iter().map(|reservation| &*reservation.owner.key).collect();
    assert_eq!(owners, ["ns/one", "ns/three"], "also what was written since");
}

#[test]
fn networks_that_never_meet_may_share_an_address_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let domains = Domains::new(["prod=ns/red,ns/pink", "lab=ns/blue"]).unwrap();
    let policy = Policy { domains, ..reject() };
    let one_address = || ranges("02:00:00:00:00:00");
    let named = |network: &str| [want(network, Address::Named(mac(0)))];
    let store = DirStore::open(directory.path(), one_address(), policy.clone()).unwrap();
    order(&store, "ns/one", &named("red")).unwrap();
    drop(store);
    let store = DirStore::open(directory.path(), one_address(), policy).unwrap();
    order(&store, "ns/two", &named("blue")).unwrap();
    let refused = order(&store, "ns/three", &named("pink")).unwrap_err().to_string();
    assert_eq!(refused, "macAddress 02:00:00:00:00:00 is already used by ns/one");
    // A network that nobody said anything about may meet all; a NIC behind NAT meets none.
    order(&store, "ns/three", &named("green")).unwrap_err();
    order(&store, "ns/three", &[Want { segment: Segment::Alone, ..named("nat")[0].clone() }]).unwrap();
    // Known by its last network.
    order(&store, "ns/one", &[Want { segment: Segment::Alone, ..named("red")[0].clone() }]).unwrap();
    order(&store, "ns/four", &named("pink")).unwrap();
    // Not by the network of another NIC.
    order(&store, "ns/four", &[want("blue", Address::Named(mac(7)))]).unwrap();
    order(&store, "ns/five", &[want("blue", Address::Named(mac(0)))]).unwrap_err();
    order(&store, "ns/six", &[want("pink", Address::Named(mac(7)))]).unwrap();
    // Duplicates or not, it is given to nobody else.
    assert!(matches!(order(&store, "ns/five", &[want("red", Address::Any)]), Err(OrderError::Full { .. })));
}

#[test]
fn a_nic_that_moved_to_another_network_is_known_there_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let policy = Policy { domains: Domains::new(["prod=ns/red", "lab=ns/blue"]).unwrap(), ..reject() };
    let open = || DirStore::open(directory.path(), ranges("02:00:00:00:00:00"), policy.clone()).unwrap();
    let on = |network: &str, address: Address| {
        [Want { segment: Segment::network("ns", network), ..want("nic", address) }]
    };
    let store = open();
    order(&store, "ns/one", &on("red", Address::Any)).unwrap();
    order(&store, "ns/two", &on("blue", Address::Named(mac(0)))).unwrap();
    let refused = order(&store, "ns/one", &on("blue", Address::Moved(mac(0)))).unwrap_err().to_string();
    assert_eq!(refused, "macAddress 02:00:00:00:00:00 is already used by ns/two");
    lock(&store.state).forget(&owner("ns/two")).unwrap();
    order(&store, "ns/one", &on("blue", Address::Moved(mac(0)))).unwrap();
    drop(store);
    let store = open();
    order(&store, "ns/two", &on("blue", Address::Named(mac(0)))).unwrap_err();
    order(&store, "ns/two", &on("red", Address::Named(mac(0)))).unwrap();
}

#[test]
fn a_nic_has_the_address_again_that_it_had_last() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for address in [Address::Named(mac(0)), Address::Named(mac(1)), Address::Named(mac(0))] {
        order(&store, "ns/vm", &[want("a", address)]).unwrap();
    }
    drop(store);
    assert_eq!(order(&open(directory.path()), "ns/vm", &[want("a", Address::Any)]).unwrap(), [mac(0)]);
}

#[test]
fn a_journal_without_networks_is_read_and_its_nics_may_meet_all() {
    let directory = tempfile::tempdir().unwrap();
    let old = r#"{"op":"version","version":1}
{"op":"reserve","kind":"vm","owner":"ns/old","nic":"a","mac":"02:00:00:00:00:00"}
"#;
    fs::write(DirStore::journal_path(directory.path()), old).unwrap();
    let policy = Policy { domains: Domains::new(["x=ns/a", "y=ns/b"]).unwrap(), ..reject() };
    let store = DirStore::open(directory.path(), ranges("02:00:00:00:00:00"), policy).unwrap();
    order(&store, "ns/new", &[want("b", Address::Named(mac(0)))]).unwrap_err();
    // Until its own next review tells.
    order(&store, "ns/old", &[want("a", Address::Any)]).unwrap();
    order(&store, "ns/new", &[want("b", Address::Named(mac(0)))]).unwrap();
}

#[test]
fn a_list_is_no_line_of_a_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = DirStore::journal_path(directory.path());
    fs::write(&path, "{\"op\":\"version\",\"version\":1}\n[\"forget\",\"vm\",\"ns/vm\"]\n").unwrap();
    assert!(matches!(DirStore::read(directory.path()), Err(JournalError::Damaged { line: 2, .. })));
}

#[test]
fn a_nic_does_not_have_its_address_again_that_another_nic_of_its_vm_is_to_have() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    assert_eq!(order(&store, "ns/vm", &[want("a", Address::Any)]).unwrap(), [mac(0)]);
    for wants in [
        [want("a", Address::Any), want("b", Address::Named(mac(0)))],
        [want("b", Address::Named(mac(0))), want("a", Address::Any)],
    ] {
        let macs = order(&store, "ns/vm", &wants).unwrap();
        assert_ne!(macs[0], macs[1]);
    }
    assert_eq!(order(&store, "ns/other", &[want("a", Address::Any)]).unwrap(), [mac(2)]);
}
