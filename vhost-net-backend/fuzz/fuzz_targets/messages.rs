//! See `vhost_net_backend::fuzzing::messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_net_backend::fuzzing::messages(data));
