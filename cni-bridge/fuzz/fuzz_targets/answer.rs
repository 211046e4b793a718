//! Any bytes as the answer of an IPAM plugin.
#![no_main]

libfuzzer_sys::fuzz_target!(|answer: &[u8]| {
    if let Err(refusal) = cni_bridge::readers::answer(answer) {
        assert!(!refusal.msg.is_empty());
    }
});
