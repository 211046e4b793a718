//! The cache of the records: what has been as it is for how long, and where to look for free addresses.

use super::*;

const GRACE: Duration = Duration::from_secs(300);

fn ranges(text: &str) -> Ranges {
    Ranges::new(&[text.parse().unwrap()], &[]).unwrap()
}

/// Blocks 02:00:00:00:00 to 02:00:00:00:03.
fn state() -> State {
    State::new(ranges("02:00:00:00:00:00-02:00:00:00:03:ff"), 0)
}

fn block(last: u8) -> BlockId {
    format!("02-00-00-00-{last:02x}").parse().unwrap()
}

fn versioned(version: &str, record: Record) -> Versioned {
    Versioned { record, version: Some(version.into()) }
}

fn taken(places: &[u8]) -> Record {
    Record { taken: places.iter().copied().collect(), ..Record::default() }
}

fn idle(state: &State, now: Instant) -> Vec<BlockId> {
    let idle = state.idle(GRACE, |_, _| true, now);
    idle.into_iter().map(|(block, _)| block).collect()
}

#[test]
fn a_record_is_idle_when_one_version_was_seen_for_the_whole_time() {
    let mut state = state();
    let before = Instant::now();
    state.put(block(0), versioned("1", taken(&[1])));
    let after = Instant::now();
    assert!(idle(&state, before + GRACE - Duration::from_nanos(1)).is_empty());
    assert_eq!(idle(&state, after + GRACE), [block(0)]);
    // Seen again, and in another range, it is the same one.
    state.put(block(0), versioned("1", taken(&[1])));
    state.set_ranges(ranges("02:00:00:00:00:00-02:00:00:00:00:ff"));
    assert_eq!(idle(&state, after + GRACE), [block(0)]);
    let changed = Instant::now();
    state.put(block(0), versioned("2", taken(&[1])));
    assert!(idle(&state, changed + GRACE - Duration::from_nanos(1)).is_empty(), "its time begins anew");
    assert!(state.idle(GRACE, |_, _| false, Instant::now() + GRACE).is_empty(), "nothing there to be freed");
}

#[test]
fn a_record_that_somebody_holds_is_never_idle() {
    let mut state = state();
    let record = taken(&[1]).hold(&Identity("somebody".into())).unwrap();
    state.put(block(0), versioned("1", record));
    assert!(idle(&state, Instant::now() + GRACE).is_empty());
}

#[test]
fn an_older_answer_hides_no_newer_one() {
    let mut state = state();
    state.put(block(0), versioned("10", taken(&[1])));
    state.put(block(0), versioned("9", taken(&[])));
    assert_eq!(state.cache[&block(0)].versioned, versioned("10", taken(&[1])));
    state.put(block(0), versioned("11", taken(&[2])));
    assert_eq!(state.cache[&block(0)].versioned, versioned("11", taken(&[2])));
}

#[test]
fn untouched_blocks_are_tried_before_those_with_something_left() {
    let mut state = state();
    let nobody = HashSet::new();
    state.put(block(0), versioned("1", taken(&[1])));
    state.put(block(1), versioned("2", Record { taken: Bits::ALL, ..Record::default() }));
    state.put(block(2), versioned("3", taken(&[]).hold(&Identity("somebody".into())).unwrap()));
    assert_eq!(state.candidates(4, &nobody), [block(3), block(0)]);
    assert_eq!(state.candidates(1, &nobody), [block(3)]);
    assert_eq!(state.candidates(4, &[block(3)].into()), [block(0)]);
    assert_eq!(state.candidates(4, &[block(0)].into()), [block(3)]);
    // The holder lets it go with one address taken, and what was taken elsewhere is free again.
    state.put(block(2), versioned("4", taken(&[7])));
    state.remove(block(1));
    let mut found = state.candidates(4, &nobody);
    found.sort_unstable();
    assert_eq!(found, [block(0), block(1), block(2), block(3)]);
}
