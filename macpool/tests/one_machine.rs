//! `--store dir:` as a process: what is freed, what a disk that is full costs, and who waits for whom.

#![expect(clippy::unwrap_used, reason = "a helper's failure is the test's failure")]

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

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
fn a_pod_is_told_what_it_gets_and_only_if_it_gets_something() {
    let macpool = Macpool::start(&["--on-duplicate", "reject"]);
    let review = |name: &str, networks: &str, dry_run: bool| {
        let mut review = create(name, &[]);
        let request = &mut review["request"];
        request["resource"] = json!({"group": "", "version": "v1", "resource": "pods"});
        request["dryRun"] = json!(dry_run);
        let annotations = json!({"k8s.v1.cni.cncf.io/networks": networks});
        request["object"] =
            json!({"metadata": {"name": name, "namespace": "ns", "annotations": annotations}});
        let (status, text) = macpool.post("/mutate-pods", review.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["response"].clone()
    };
    let address = |response: &Value| {
        let networks: Value = serde_json::from_str(&given(response)).unwrap();
        networks[0]["mac"].as_str().unwrap().to_owned()
    };
    let shown = address(&review("zero", "red", true));
    let first = address(&review("one", "red", false));
    assert_eq!(first, shown, "free until now");
    // A VM of the pod's name is somebody else.
    assert_ne!(one_nic(&macpool, "one"), first);
    let named = |address: &str| format!(r#"[{{"name":"red","mac":"{address}"}}]"#);
    let again = review("one", &named(&first), false);
    assert_eq!((&again["allowed"], &again["patch"]), (&json!(true), &Value::Null), "{again}");
    let other = review("two", &named(&first), false);
    assert_eq!((&other["allowed"], &other["status"]["code"]), (&json!(false), &json!(409)), "{other}");
    assert_eq!(other["status"]["message"], format!("macAddress {first} is already used by pod ns/one"));
}

#[test]
fn pods_are_not_served_where_they_are_left_alone() {
    let macpool = Macpool::start(&["--no-pods"]);
    let mut review = create("pod", &[]);
    review["request"]["resource"] = json!({"group": "", "version": "v1", "resource": "pods"});
    let (status, text) = macpool.post("/mutate-pods", review.to_string().as_bytes());
    assert_eq!((status, text.as_str()), (404, "no such path\n"));
    macpool.assert_serves();
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
    let inspect = Command::new(env!("CARGO_BIN_EXE_macpool"))
        .arg(format!("--store=dir:{}", macpool.store().display()))
        .args(["inspect", "02:00:00:00:00:01"])
        .output()
        .unwrap();
    let table = String::from_utf8(inspect.stdout).unwrap();
    let [_, row] = table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells, ["02:00:00:00:00:01", "reserved", "vm", "ns/three", "red", "ns/br1"]);
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
    let both = || {
        std::thread::sleep(Duration::from_millis(10));
        (sleeps(&macpool, "reviews"), sleeps(&macpool, "store"))
    };
    let before = std::iter::repeat_with(both).take(3000).find(|(reviews, store)| *reviews > 0 && *store > 0);
    let before = before.expect("both threads are there");
    let reviews = 40;
    for n in 0..reviews {
        one_nic(&macpool, &format!("vm-{n}"));
    }
    let woken = sleeps(&macpool, "store") - before.1;
    assert!(woken < reviews / 2, "{woken} times for {reviews} reviews");
    assert!(sleeps(&macpool, "reviews") - before.0 >= reviews / 2, "they have to run somewhere");
}
