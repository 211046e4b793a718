//! Any bytes as a call of a plugin: variables, one a line, and the configuration, read by each plugin.
#![no_main]

libfuzzer_sys::fuzz_target!(|call: &[u8]| {
    for refusal in cni_bridge::readers::call(call) {
        assert!(!refusal.msg.is_empty());
    }
});
