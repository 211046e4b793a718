//! How long one frame takes through an idle link, beside the least that two threads can do with eventfds.
//!
//! A measurement, not a promise: `make bench` runs it in a release build.

use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::Joined;

const ROUNDS: usize = 2000;
/// Longer than a link polls after its last frame.
const REST: Duration = Duration::from_micros(300);

/// The median time of `round`, each begun after a rest.
fn median(mut round: impl FnMut(u8)) -> Duration {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|number| {
            std::thread::sleep(REST);
            let begin = Instant::now();
            round(number.to_le_bytes()[0]);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

#[test]
#[ignore = "a measurement: make bench runs it"]
fn a_frame_through_an_idle_link_beside_two_eventfds() {
    let joined = Joined::new();
    let (mut alice, mut bob) = joined.vms();
    let frame = median(|seed| {
        alice.send(seed);
        bob.expect(seed);
    });
    let [there, back] = [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()];
    let (heard, answer) = (there.try_clone().unwrap(), back.try_clone().unwrap());
    let echo = std::thread::spawn(move || {
        for _ in 0..ROUNDS {
            answer.write(heard.read().unwrap()).unwrap();
        }
    });
    let eventfds = median(|_| {
        there.write(1).unwrap();
        back.read().unwrap();
    });
    echo.join().unwrap();
    let ratio = frame.as_secs_f64() / eventfds.as_secs_f64();
    println!("| idle path | two eventfds | vhost-net-backend | ratio |\n| --- | --- | --- | --- |");
    println!("| one frame, guest to guest, median of {ROUNDS} | {eventfds:?} | {frame:?} | {ratio:.2} |");
}
