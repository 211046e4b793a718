//! Any octets as a message, by UDP and TCP, from a stranger and from a secondary. See `check.rs` for what must hold.
#![no_main]

#[path = "../check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|message: &[u8]| check::check(message));
