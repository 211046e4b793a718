//! Command lines that make no sense are refused with the reason, before anything is served.

use std::process::Command;

const RANGE: [&str; 2] = ["--range", "02:00:00:00:00:00-02:00:00:00:00:ff"];

#[test]
fn a_wrong_command_line_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("--store=dir:{}", folder.path().display());
    for (arguments, reason) in [
        (vec!["--store=file:x"], "is not a store"),
        (vec![&*store, "--range", "02:00:00:00:00:ff-02:00:00:00:00:00"], "before its start"),
        (vec![&*store, "--range", "01:00:00:00:00:00-01:00:00:00:00:ff"], "--range"),
        (vec![&*store, "--exclude", "02:00:00:00:00:00"], "--range"),
        (vec![&*store, RANGE[0], RANGE[1], "--exclude", RANGE[1]], "contain no address"),
        (vec!["--store=kube", "--l2-domain", "a=b/c"], "--l2-domain needs --range"),
        (vec![&*store, RANGE[0], RANGE[1], "--l2-domain", "a=b"], "--l2-domain"),
        (vec![&*store, "--tls-cert", "x"], "--tls-key"),
        (vec![&*store, "--grace", "0"], "from 1 to 86400"),
        (vec![&*store, "--on-duplicate", "ignore"], "warn, reject"),
    ] {
        let macpool = Command::new(env!("CARGO_BIN_EXE_macpool")).args(&arguments).output().unwrap();
        let text = String::from_utf8(macpool.stderr).unwrap();
        assert!(!macpool.status.success() && text.contains(reason), "{arguments:?}: {text}");
        assert!(macpool.stdout.is_empty());
    }
}
