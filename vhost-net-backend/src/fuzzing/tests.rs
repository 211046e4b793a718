//! The inputs that fuzzing found worth keeping, and a bounded number of others.

use super::*;

fn corpus(text: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
}

/// Each input of the corpus, and each with bytes of it changed.
fn with_variants(text: &str) -> impl Iterator<Item = Vec<u8>> {
    let inputs = corpus(text);
    assert!(inputs.len() >= 10, "the corpus is lost");
    inputs.into_iter().flat_map(|input| {
        let variants = (0..20_usize).map({
            let input = input.clone();
            move |round| {
                let mut changed = input.clone();
                let length = changed.len().max(1);
                if let Some(byte) = changed.get_mut(round * 7919 % length) {
                    *byte ^= 1 << (round % 8);
                }
                changed
            }
        });
        std::iter::once(input.clone()).chain(variants)
    })
}

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
    at_random().for_each(|input| rings(&input));
}

#[test]
fn no_random_message_does_harm() {
    at_random().for_each(|input| messages(&input));
}

#[test]
fn no_ring_that_fuzzing_found_does_harm() {
    with_variants(include_str!("../../fuzz/corpus/rings.hex")).for_each(|input| rings(&input));
}

#[test]
fn no_message_that_fuzzing_found_does_harm() {
    with_variants(include_str!("../../fuzz/corpus/messages.hex")).for_each(|input| messages(&input));
}
