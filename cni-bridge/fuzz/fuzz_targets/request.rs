//! Any bytes as a CNI request's standard input, for each plugin. With a NUL in them, what is before it is CNI_ARGS.
#![no_main]

use cni::{Command, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (args, stdin) = match data.iter().position(|byte| *byte == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&[][..], data),
    };
    let args = String::from_utf8_lossy(args).into_owned();
    let variable = |name: &str| match name {
        "CNI_CONTAINERID" => Some("c1".to_owned()),
        "CNI_IFNAME" => Some("net1".to_owned()),
        "CNI_PATH" => Some("/usr/lib/cni".to_owned()),
        "CNI_ARGS" => Some(args.clone()),
        _ => None,
    };
    if let Ok(request) = Request::parse(Command::Del, variable, stdin) {
        for refusal in cni_bridge::readers::request(&request).into_iter().filter_map(Result::err) {
            assert!(!refusal.msg.is_empty());
        }
    }
});
