//! Every program tells why it ended on one line of stderr, in the format of its log, and nothing else.

use std::process::Command;

use e2e::{binary, output};

/// Each program that is no pure CNI plugin, with arguments that are right.
const PROGRAMS: [(&str, &[&str]); 8] = [
    ("cnv-bridge", &["policy", "apply", "--file", "/dev/null"]),
    ("macpool", &["inspect"]),
    ("masquerade", &["serve"]),
    ("secondary-dns", &["dump", "--source", "dir:/var/empty", "--domain", "example.org"]),
    ("sriov", &["status"]),
    ("vhost-net-backend", &["ctl", "list"]),
    ("vm-launcher", &["list"]),
    ("vm-launcher", &["vmm"]),
];

/// What `program` says when its log's filter is wrong, which no program gets past.
fn failure(program: &str, arguments: &[&str], format: &str) -> String {
    let mut command = Command::new(binary(program));
    command.args(arguments).args(["--log-format", format]);
    command.env("GUESTWIRE_LOG", "cni=loud").env("RUST_BACKTRACE", "1");
    let output = output(&mut command);
    assert_eq!(output.status.code(), Some(1), "{program}: {output:?}");
    assert_eq!(output.stdout, b"", "{program}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_failure_is_one_line_for_people() {
    for (program, arguments) in PROGRAMS {
        let told = failure(program, arguments, "text");
        assert!(
            told.starts_with(&format!("{program}: GUESTWIRE_LOG=\"cni=loud\" is not a log filter")),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn a_failure_is_one_object_for_log_collectors() {
    for (program, arguments) in PROGRAMS {
        let told = failure(program, arguments, "json");
        let line: serde_json::Value =
            serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"));
        assert_eq!(line["level"], "ERROR", "{told}");
        let message = line["fields"]["message"].as_str().unwrap();
        assert!(message.starts_with("GUESTWIRE_LOG=\"cni=loud\" is not a log filter"), "{told}");
    }
}

#[test]
fn a_kubeconfig_that_is_missing_is_told_once() {
    for (program, arguments) in
        [("macpool", &["inspect"][..]), ("secondary-dns", &["dump", "--source", "kube", "--domain", "x.org"])]
    {
        let output = output(Command::new(binary(program)).args(arguments).env("KUBECONFIG", "/missing"));
        assert_eq!(output.status.code(), Some(1), "{program}: {output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.starts_with(&format!("{program}: find the API server")), "{told}");
        assert_eq!(told.matches("/missing").count(), 1, "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}
