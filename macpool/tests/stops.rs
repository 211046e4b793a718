//! macpool stops when it is told to, also while it waits for an API server that does not answer.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[test]
fn a_start_without_an_api_server_is_ended_by_sigterm_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("config");
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let listen = ["--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"];
    // Until it has its range, and then until it has its certificate.
    for (arguments, waits) in [
        (&[][..], "cannot read the range yet"),
        (&["--range", "02:00:00:00:00:00-02:00:00:00:00:ff"][..], "there is no certificate yet"),
    ] {
        let mut macpool = Command::new(env!("CARGO_BIN_EXE_macpool"))
            .args(listen)
            .args(arguments)
            .env("KUBECONFIG", &kubeconfig)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(macpool.stderr.take().unwrap()).lines().map(|line| line.unwrap());
        assert!(lines.any(|line| line.contains(waits)), "{waits}");
        assert!(Command::new("kill").arg(macpool.id().to_string()).status().unwrap().success());
        assert!(lines.any(|line| line.contains("stopping")));
        assert!(macpool.wait().unwrap().success(), "{waits}");
    }
}
