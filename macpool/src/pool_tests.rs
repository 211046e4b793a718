//! The pool against its promises, and against a plain set in random histories.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::range::{MacRange, Ranges};

fn ranges(texts: &[&str]) -> Ranges {
    let ranges: Vec<MacRange> = texts.iter().map(|text| text.parse().unwrap()).collect();
    Ranges::new(&ranges, &[]).unwrap()
}

fn block(last: u8) -> BlockId {
    BlockId::of(Mac([2, 0, 0, 0, last, 0])).0
}

fn mac(block: u8, offset: u8) -> Mac {
    Mac([2, 0, 0, 0, block, offset])
}

fn small() -> Pool {
    Pool::new(ranges(&["02:00:00:00:00:fe-02:00:00:00:01:01"]))
}

#[test]
fn only_held_blocks_give_and_only_inside_the_range() {
    let mut pool = small();
    assert_eq!(pool.give(), None);
    pool.hold(block(0), Bits::EMPTY);
    assert_eq!((pool.give(), pool.give(), pool.give()), (Some(mac(0, 0xfe)), Some(mac(0, 0xff)), None));
    pool.hold(block(1), [0].into_iter().collect());
    assert_eq!((pool.give(), pool.give()), (Some(mac(1, 1)), None));
}

#[test]
fn a_dry_run_takes_nothing() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    assert_eq!(pool.peek(5), [mac(0, 0xfe), mac(0, 0xff)]);
    assert_eq!(pool.free(), 2);
    assert_eq!(pool.give(), Some(mac(0, 0xfe)));
}

#[test]
fn an_address_asked_for_by_name_is_not_given_again() {
    let mut pool = small();
    assert_eq!(pool.give_exact(mac(0, 0xfe), "a/b"), Exact::NotHeld);
    pool.hold(block(0), [0x10].into_iter().collect());
    assert_eq!(pool.give_exact(mac(0, 0xfe), "a/b"), Exact::Given);
    assert_eq!(pool.give_exact(mac(0, 0xfe), "a/c"), Exact::Taken);
    assert_eq!(pool.give_exact(mac(0, 0x10), "a/d"), Exact::Taken);
    assert_eq!(pool.give(), Some(mac(0, 0xff)));
    let back = pool.let_go(block(0)).unwrap();
    assert_eq!(back.given, [0x10, 0xfe, 0xff].into_iter().collect());
    assert_eq!(back.claims, BTreeMap::from([(0x10, "a/d".into()), (0xfe, "a/c".into())]));
}

#[test]
fn what_is_seen_in_use_is_not_given() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    pool.seen(mac(0, 0xfe));
    assert_eq!((pool.give(), pool.give()), (Some(mac(0, 0xff)), None));
}

#[test]
fn an_undone_review_leaves_no_trace() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    let given = [pool.give().unwrap(), pool.give().unwrap()];
    pool.undo(&given);
    assert_eq!(pool.free(), 2);
    assert_eq!(pool.give_exact(mac(0, 0xfe), "a/b"), Exact::Given);
    pool.undo(&[mac(0, 0xfe)]);
    let back = pool.let_go(block(0)).unwrap();
    assert_eq!((back.given, back.claims), (Bits::EMPTY, BTreeMap::new()));
}

#[test]
fn an_undone_review_frees_nothing_that_others_have_or_that_is_no_more_in_the_range() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    let given = [pool.give().unwrap(), pool.give().unwrap()];
    pool.seen(given[0]);
    pool.undo(&given);
    assert_eq!(pool.peek(5), [given[1]]);
    assert_eq!(pool.give(), Some(given[1]));
    pool.set_ranges(ranges(&["02:00:00:00:00:10"]));
    pool.undo(&given[1..]);
    assert_eq!(pool.peek(5), [mac(0, 0x10)]);
}

#[test]
fn only_what_is_old_and_gone_is_given_again() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    while pool.give().is_some() {}
    assert_eq!(pool.age(), [], "given since the last look");
    assert_eq!(pool.age(), [(block(0), [0xfe, 0xff].into_iter().collect())]);
    // Somebody asks for one by name while the lists are read, which therefore do not show him.
    assert_eq!(pool.give_exact(mac(0, 0xff), "a/b"), Exact::Taken);
    assert_eq!(pool.reclaim(block(0), Bits::EMPTY), 1);
    assert_eq!((pool.give(), pool.give()), (Some(mac(0, 0xfe)), None));
    assert_eq!(pool.reclaim(block(0), Bits::EMPTY), 0);
    assert_eq!(pool.age(), []);
    assert_eq!(pool.age(), [(block(0), [0xfe, 0xff].into_iter().collect())]);
    // One is seen only while the lists are read.
    pool.seen(mac(0, 0xfe));
    assert_eq!(pool.reclaim(block(0), Bits::EMPTY), 1);
    let back = pool.let_go(block(0)).unwrap();
    assert_eq!((back.given, back.claims), ([0xfe].into_iter().collect(), BTreeMap::new()));
}

#[test]
fn a_block_that_comes_back_is_young_again() {
    let mut pool = small();
    pool.hold(block(0), [0xfe].into_iter().collect());
    assert_eq!(pool.age(), []);
    pool.hold(block(0), [0xfe].into_iter().collect());
    assert_eq!(pool.age(), [], "somebody may have claimed it in between");
    assert_eq!(pool.age(), [(block(0), [0xfe].into_iter().collect())]);
    assert_eq!(pool.reclaim(block(0), [0xfe].into_iter().collect()), 0, "it exists");
    assert_eq!(pool.reclaim(block(0), Bits::EMPTY), 1);
}

#[test]
fn a_new_range_counts_at_once_and_keeps_what_was_given() {
    let mut pool = small();
    pool.hold(block(0), Bits::EMPTY);
    assert_eq!(pool.give(), Some(mac(0, 0xfe)));
    pool.set_ranges(ranges(&["02:00:00:00:00:10-02:00:00:00:00:11"]));
    assert_eq!(pool.peek(9), [mac(0, 0x10), mac(0, 0x11)]);
    pool.set_ranges(ranges(&["02:00:00:00:00:fe-02:00:00:00:00:ff"]));
    assert_eq!(pool.peek(9), [mac(0, 0xff)]);
}

#[derive(Debug, Clone)]
enum Step {
    Hold(u8),
    LetGo(u8),
    Give,
    Exact(u8, u8),
    Seen(u8, u8),
    UndoLast,
    Exhausted,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0u8..4).prop_map(Step::Hold),
        1 => (0u8..4).prop_map(Step::LetGo),
        6 => Just(Step::Give),
        1 => (0u8..4, 0u8..6).prop_map(|(block, offset)| Step::Exact(block, offset)),
        1 => (0u8..4, 0u8..6).prop_map(|(block, offset)| Step::Seen(block, offset)),
        1 => Just(Step::UndoLast),
        1 => Just(Step::Exhausted),
    ]
}

proptest! {
    /// Whatever happens: nothing is given twice, nothing outside held blocks or the range, and the count is right.
    #[test]
    fn no_history_gives_an_address_twice(steps in prop::collection::vec(step(), 0..200)) {
        let mut pool = Pool::new(ranges(&[
            "02:00:00:00:00:00-02:00:00:00:00:05", "02:00:00:00:01:00-02:00:00:00:01:05",
            "02:00:00:00:02:00-02:00:00:00:02:05", "02:00:00:00:03:00-02:00:00:00:03:05",
        ]));
        // What a store would write into records: the addresses that are taken for whoever holds the block next.
        let mut taken: HashSet<Mac> = HashSet::new();
        let mut last = None;
        for step in steps {
            match step {
                Step::Hold(id) if !pool.holds(block(id)) => {
                    pool.hold(block(id), (0..6).filter(|offset| taken.contains(&mac(id, *offset))).collect());
                }
                Step::Hold(_) => {}
                Step::LetGo(id) => {
                    last = None;
                    if let Some(back) = pool.let_go(block(id)) {
                        prop_assert!(back.given.iter().all(|offset| taken.contains(&mac(id, offset))));
                    }
                }
                Step::Give => {
                    last = pool.give();
                    if let Some(given) = last {
                        prop_assert!(taken.insert(given), "{given} was given twice");
                        prop_assert!(pool.holds(BlockId::of(given).0) && pool.ranges().contains(given));
                    }
                }
                Step::Exact(id, offset) => {
                    if pool.give_exact(mac(id, offset), "ns/vm") == Exact::Given {
                        prop_assert!(taken.insert(mac(id, offset)));
                    }
                    last = None;
                }
                Step::Seen(id, offset) => {
                    pool.seen(mac(id, offset));
                    taken.insert(mac(id, offset));
                    last = None;
                }
                Step::UndoLast => {
                    if let Some(given) = last.take().filter(|given| pool.holds(BlockId::of(*given).0)) {
                        pool.undo(&[given]);
                        taken.remove(&given);
                    }
                }
                Step::Exhausted => {
                    last = None;
                    pool.let_go_of_exhausted();
                }
            }
            prop_assert_eq!(pool.peek(usize::MAX).len() as u64, pool.free());
        }
    }
}
