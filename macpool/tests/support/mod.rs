#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "a helper's failure is the test's failure, and not every test file uses every helper"
)]
//! The real binary with `--store dir:`, and curl for its client.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

/// Where VMs are reviewed.
pub(crate) const VMS: &str = "/mutate-virtualmachines";

/// A running macpool, killed when dropped.
pub(crate) struct Macpool {
    child: Child,
    folder: tempfile::TempDir,
    pub(crate) reviews: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Macpool {
    /// Starts it on ports of its own and waits until it serves.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::run(&mut Command::new(env!("CARGO_BIN_EXE_macpool")), arguments)
    }

    /// By a shell that sets things up first.
    pub(crate) fn start_after(script: &str) -> Self {
        let script = format!("{script}; exec \"$@\"");
        Self::run(Command::new("sh").args(["-c", &script, "sh", env!("CARGO_BIN_EXE_macpool")]), &[])
    }

    fn run(command: &mut Command, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = command
            .arg(format!("--store=dir:{}", folder.path().display()))
            .args(["--range", "02:00:00:00:00:00-02:00:00:00:ff:ff", "--log-format", "json"])
            .args(["--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let found = lines.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            let field = |name: &str| line["fields"][name].as_str()?.parse().ok();
            Some((field("address")?, field("metrics")?))
        });
        let Some((reviews, metrics)) = found else { panic!("macpool ended") };
        // Keep reading, or it blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, folder, reviews, metrics }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The store's directory.
    pub(crate) fn store(&self) -> &Path {
        self.folder.path()
    }

    /// The certificate that verifies it, unless it was given files of its own.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Posts a body: the status code (0: no answer) and what was answered.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> (u16, String) {
        let file = self.folder.path().join("body");
        std::fs::write(&file, body).unwrap();
        let data = format!("@{}", file.display());
        self.curl(path, &["-H", "Content-Type: application/json", "-H", "Expect:", "--data-binary", &data])
    }

    /// Posts a review of a VM and gives its response.
    #[track_caller]
    pub(crate) fn review(&self, review: &Value) -> Value {
        let (status, text) = self.post(VMS, review.to_string().as_bytes());
        assert_eq!(status, 200, "{text}");
        serde_json::from_str::<Value>(&text).unwrap()["response"].clone()
    }

    /// It still gives addresses.
    #[track_caller]
    pub(crate) fn assert_serves(&self) {
        let response = self.review(&create("after", &[("red", "")]));
        assert_eq!(response["allowed"], true, "{response}");
        assert!(response["patch"].is_string(), "{response}");
    }

    /// The status code of `/readyz` (0: no answer).
    pub(crate) fn readyz(&self) -> u16 {
        let url = format!("http://{}/readyz", self.metrics);
        let output =
            Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
        String::from_utf8(output.unwrap().stdout).unwrap().parse().unwrap()
    }

    /// Any request.
    pub(crate) fn curl(&self, path: &str, arguments: &[&str]) -> (u16, String) {
        let output = self.curl_with(&self.ca(), path, arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// Any request, trusting this certificate.
    pub(crate) fn curl_with(&self, ca: &Path, path: &str, arguments: &[&str]) -> Output {
        Command::new("curl")
            .args(["-s", "-w", "\n%{http_code}", "--max-time", "60", "--cacert"])
            .arg(ca)
            .args(arguments)
            .arg(format!("https://{}{path}", self.reviews))
            .output()
            .unwrap()
    }
}

impl Drop for Macpool {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A review of a new VM with NICs on secondary networks: name and address ("" for any).
pub(crate) fn create(name: &str, nics: &[(&str, &str)]) -> Value {
    let interfaces: Vec<_> = nics
        .iter()
        .map(|(nic, mac)| match *mac {
            "" => json!({"name": nic, "bridge": {}}),
            mac => json!({"name": nic, "bridge": {}, "macAddress": mac}),
        })
        .collect();
    let networks: Vec<_> =
        nics.iter().map(|(nic, _)| json!({"name": nic, "multus": {"networkName": "br1"}})).collect();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": "ns", "name": name,
            "resource": {"group": "kubevirt.io", "version": "v1", "resource": "virtualmachines"},
            "object": {
                "metadata": {"name": name, "namespace": "ns"},
                "spec": {"running": true, "template": {"spec": {
                    "domain": {"devices": {"interfaces": interfaces}}, "networks": networks,
                }}},
            },
            "oldObject": null,
        },
    })
}
