//! The corpus of the fuzz target, as an ordinary test.

#![allow(clippy::expect_used, reason = "a panic is what would be found")]

#[path = "../fuzz/check.rs"]
mod check;
#[path = "support/malformed.rs"]
mod malformed;

#[test]
fn every_message_of_the_corpus_is_handled_as_the_reference_says() {
    for malformed::Case { description, octets, expected } in malformed::cases() {
        println!("{description}: {expected}");
        check::check(&octets);
        // Cut anywhere, and with any one octet turned over.
        for at in 0..octets.len() {
            check::check(octets.get(..at).expect("a shorter one"));
            let mut changed = octets.clone();
            changed.iter_mut().skip(at).take(1).for_each(|octet| *octet ^= 0xff);
            check::check(&changed);
        }
    }
}
