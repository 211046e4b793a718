//! Any text as node policies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _read = cni_bridge::readers::policy(text);
});
