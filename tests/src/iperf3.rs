//! iperf3 against a server that is there already.

use std::time::Duration;

use serde_json::Value;

use crate::namespace::Namespace;
use crate::wait::eventually;

/// Runs iperf3 one way; says how much arrived: bytes by TCP, datagrams by UDP.
///
/// # Panics
/// If it has not measured within a minute, or a figure is missing.
#[track_caller]
pub fn iperf3(from: &Namespace, server: &str, options: &str) -> u64 {
    // Between two clients the server listens anew, and refuses whoever comes meanwhile.
    let result = eventually("iperf3 has measured", Duration::from_secs(60), || {
        let text = from.sh(&format!("iperf3 --json --client {server} {options}"));
        let result: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        result["error"].is_null().then_some(result)
    });
    let end = |sum: &str, field: &str| {
        result["end"][sum][field].as_u64().unwrap_or_else(|| panic!("{sum}.{field} is missing: {result}"))
    };
    if options.contains("--udp") {
        end("sum", "packets") - end("sum", "lost_packets")
    } else {
        end("sum_received", "bytes")
    }
}
