//! Run as root: each test has a network namespace of its own.

use std::io::Write as _;

use netns::NetNs;

use super::*;

/// Runs `work` in a new network namespace that goes with its thread.
fn in_own_namespace(work: impl FnOnce() + Send) {
    let own = (std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(format!("tap-test-{own:?}"));
    let _leftover = NetNs::remove(&path);
    let namespace = NetNs::create(&path).unwrap();
    let result = namespace.run(work);
    NetNs::remove(&path).unwrap();
    result.unwrap();
}

fn new_tap(multi_queue: bool) -> NewTap {
    NewTap { name: "tap0".parse().unwrap(), owner: Some(1234), group: Some(2345), multi_queue }
}

fn link_names() -> Vec<String> {
    // /sys shows the namespace it was mounted in; /proc/thread-self follows the thread.
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

#[test]
fn a_persistent_tap_outlives_its_maker_and_opens_again() {
    in_own_namespace(|| {
        create(&new_tap(false)).unwrap();
        assert!(link_names().contains(&"tap0".to_owned()));
        let queue = Queue::open(&"tap0".parse().unwrap(), false).unwrap();
        queue.set_offloads(Offloads { checksum: true, tso4: true, tso6: true, uso: false }).unwrap();
        Queue::from_fd(queue.into()).unwrap();
    });
}

#[test]
fn a_second_tap_of_one_name_is_refused_and_the_first_kept() {
    in_own_namespace(|| {
        create(&new_tap(false)).unwrap();
        assert!(matches!(create(&new_tap(true)), Err(TapError::Exists { .. })));
        Queue::open(&"tap0".parse().unwrap(), false).unwrap();
    });
}

#[test]
fn opening_what_is_not_there_makes_nothing() {
    in_own_namespace(|| {
        let name = "tap7".parse().unwrap();
        assert!(matches!(Queue::open(&name, false), Err(TapError::NotFound(_))));
        assert!(!link_names().contains(&"tap7".to_owned()));
    });
}

#[test]
fn several_queues_open_only_if_the_tap_was_made_for_them() {
    in_own_namespace(|| {
        create(&new_tap(true)).unwrap();
        let name = "tap0".parse().unwrap();
        let queues = [Queue::open(&name, true).unwrap(), Queue::open(&name, true).unwrap()];
        assert!(matches!(Queue::open(&name, false), Err(TapError::SetInterface { .. })));
        drop(queues);
    });
}

#[test]
fn a_queue_of_several_can_be_left_out_and_taken_in_again() {
    in_own_namespace(|| {
        create(&new_tap(true)).unwrap();
        let name = "tap0".parse().unwrap();
        let queues = [Queue::open(&name, true).unwrap(), Queue::open(&name, true).unwrap()];
        for queue in &queues {
            assert!(
                matches!(queue.attach(), Err(TapError::Ioctl { operation: "TUNSETQUEUE", .. })),
                "it is in"
            );
        }
        for _ in 0..2 {
            queues[1].detach().unwrap();
            assert!(queues[1].detach().is_err(), "it is out");
            queues[1].attach().unwrap();
        }
        drop(queues);
        create(&NewTap { name: "tap1".parse().unwrap(), ..new_tap(false) }).unwrap();
        assert!(Queue::open(&"tap1".parse().unwrap(), false).unwrap().detach().is_err(), "the only one");
    });
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"not a tap").unwrap();
    assert!(matches!(Queue::from_fd(file.into()), Err(TapError::Ioctl { operation: "TUNGETIFF", .. })));
}
