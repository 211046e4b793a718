//! A bounded number of inputs, the same in every run.

use super::*;

/// Inputs of up to 2 KiB, the same ones each time. GUESTWIRE_FUZZ_INPUTS says how many, 3000 otherwise.
fn at_random() -> impl Iterator<Item = Vec<u8>> {
    let count = std::env::var("GUESTWIRE_FUZZ_INPUTS").map_or(3000, |count| count.parse().unwrap());
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    (0..count).map(move |_| {
        let [low, high, ..] = next();
        let length = usize::from(u16::from_le_bytes([low, high]) % 2048);
        (0..length).map(|_| next()[0]).collect()
    })
}

#[test]
fn no_random_ring_does_harm() {
    sigbus::install().unwrap();
    at_random().for_each(|input| rings(&input));
}

#[test]
fn no_random_message_does_harm() {
    at_random().for_each(|input| messages(&input));
}
