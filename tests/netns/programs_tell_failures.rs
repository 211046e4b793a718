//! Every program tells why it ended on one line of stderr, in the format of its log, and nothing else.

use std::collections::BTreeSet;
use std::path::Path;
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

#[test]
fn an_address_that_is_none_is_told_what_is_one() {
    for (program, arguments) in [
        ("macpool", &["--listen", "8000"][..]),
        ("macpool", &["--listen-metrics", "localhost:8080"]),
        ("secondary-dns", &["--domain", "x.org", "--source", "kube", "--http", ":8080"]),
        ("vhost-net-backend", &["--metrics", "9105"]),
    ] {
        let output = output(Command::new(binary(program)).args(arguments));
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{program}: {told}");
        assert!(told.contains("is not ADDRESS:PORT (such as 127.0.0.1:8080 or [::]:8080)"), "{told}");
    }
}

#[test]
fn a_mistake_in_a_file_is_told_on_one_line_with_the_file_and_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vhost.yaml");
    let name = file.display();
    for (text, expected) in [
        ("cores: 0\ncore: 1", "line 2, column 1: unknown field `core`, expected one of cores, control, "),
        ("{", "line 1, column 1: unclosed bracket '{'"),
        ("links: [a]", "links[0]: link \"a\" has not two ends: write [NAME=]END,END"),
        ("metrics: 9105", "metrics: \"9105\" is not ADDRESS:PORT (such as "),
    ] {
        std::fs::write(&file, text).unwrap();
        let output = output(Command::new(binary("vhost-net-backend")).arg("--config").arg(&file));
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.starts_with(&format!("vhost-net-backend: {name}: {expected}")), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

/// The codes of plugins' own in a crate's sources, but not in their tests.
fn codes(folder: &Path, found: &mut BTreeSet<u32>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            let numbers =
                text.split("Plugin(").skip(1).filter_map(|rest| rest.split(')').next()?.parse::<u32>().ok());
            found.extend(numbers);
        }
    }
}

#[test]
fn every_error_code_is_listed_once_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut given = BTreeSet::new();
    for room in ["crates/cni", "cni-bridge", "masquerade", "sriov", "vhost-net-backend"] {
        codes(&root.join(room).join("src"), &mut given);
    }
    let page = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let rows =
        page.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<u32>().ok());
    let rows: Vec<_> = rows.collect();
    assert!(rows.is_sorted_by(|one, next| one < next), "{rows:?}");
    let listed: BTreeSet<_> = rows.into_iter().filter(|code| *code >= 100).collect();
    assert_eq!(listed, given, "listed, and in the sources");
}
