//! `--store dir:` as a process: what is freed, what a disk that is full costs, and who waits for whom.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

mod support;

use std::fs;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use macpool::store::dir::DirStore;
use serde_json::{Value, json};
use support::{Macpool, VMS, create};

/// The address that the VM's only NIC is given.
#[track_caller]
fn given(response: &Value) -> String {
    let patch = STANDARD.decode(response["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    patch[0]["value"].as_str().unwrap().to_owned()
}

fn one_nic(macpool: &Macpool, name: &str) -> String {
    given(&macpool.review(&create(name, &[("red", "")])))
}

#[test]
fn only_a_delete_that_is_no_dry_run_frees_an_address() {
    let macpool = Macpool::start(&[]);
    let address = one_nic(&macpool, "one");
    let mut delete = create("one", &[("red", &address)]);
    let request = &mut delete["request"];
    request["operation"] = json!("DELETE");
    request["oldObject"] = request["object"].take();
    request["dryRun"] = json!(true);
    assert_eq!(macpool.review(&delete)["allowed"], true);
    assert_ne!(one_nic(&macpool, "two"), address);
    delete["request"]["dryRun"] = json!(false);
    assert_eq!(macpool.review(&delete)["allowed"], true);
    assert_eq!(one_nic(&macpool, "three"), address);
}

#[test]
fn an_entry_that_the_disk_has_half_room_for_is_cut_off_and_its_address_free() {
    let macpool = Macpool::start_after("trap '' XFSZ");
    let limit = |size: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args([&format!("--pid={}", macpool.pid()), &format!("--fsize={size}:")]);
        assert!(prlimit.status().unwrap().success());
    };
    assert_eq!(one_nic(&macpool, "one"), "02:00:00:00:00:00");
    let journal = DirStore::journal_path(macpool.store());
    let whole = fs::read(&journal).unwrap();
    limit(&(whole.len() + 40).to_string());
    let (status, text) = macpool.post(VMS, create("two", &[("red", "")]).to_string().as_bytes());
    assert!(status == 503 && text.contains("append to"), "{status} {text}");
    assert_eq!(fs::read(&journal).unwrap(), whole);
    assert_eq!(DirStore::read(macpool.store()).unwrap().len(), 1);
    limit("unlimited");
    assert_eq!(one_nic(&macpool, "three"), "02:00:00:00:00:01", "the refused review left nothing");
    let left = DirStore::read(macpool.store()).unwrap();
    let owners: Vec<_> = left.iter().map(|reservation| &*reservation.owner.key).collect();
    assert_eq!(owners, ["ns/one", "ns/three"]);
    assert_eq!(one_nic(&macpool, "two"), "02:00:00:00:00:02", "nor does memory have what the disk has not");
}

/// How often the threads of this name have gone to sleep, all together.
fn sleeps(macpool: &Macpool, thread: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", macpool.pid())).unwrap();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let ours = statuses.filter(|status| status.starts_with(&format!("Name:\t{thread}\n")));
    ours.map(|status| {
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    })
    .sum()
}

#[test]
fn reviews_do_not_wake_the_thread_that_the_store_works_on() {
    let macpool = Macpool::start(&[]);
    let before = (sleeps(&macpool, "reviews"), sleeps(&macpool, "store"));
    assert!(before.0 > 0 && before.1 > 0, "both threads are there: {before:?}");
    let reviews = 40;
    for n in 0..reviews {
        one_nic(&macpool, &format!("vm-{n}"));
    }
    let woken = sleeps(&macpool, "store") - before.1;
    assert!(woken < reviews / 2, "{woken} times for {reviews} reviews");
    assert!(sleeps(&macpool, "reviews") - before.0 >= reviews, "they have to run somewhere");
}
