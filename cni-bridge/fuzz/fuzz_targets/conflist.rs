//! Any text as a network configuration.
#![no_main]

use cni::runtime::NetworkConfigList;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _read = NetworkConfigList::parse(text);
});
